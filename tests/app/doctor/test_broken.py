"""Broken set-ups, each with what is said of it and what to do."""

import runpy
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import redis as blocking_redis
from acl_lines import acl_lines
from serving import serving

from app.doctor.examination import examine_all
from app.doctor.finding import Finding, State
from app.domain.ids import ModelId, image_id, make_job_id
from app.memory.codec import MemoryEntry
from app.memory.keys import DATA_FORMAT_KEY
from app.redis.embedded import EmbeddedRedis

ENCODE_OLD = runpy.run_path(str(Path(__file__).parents[1] / "memory" / "old_entries.py"))["encode_old"]
ROOT = Path(__file__).resolve().parents[3]
LOG = "sparke:{t:acme}:memory:demo:default:log"
CATALOGUE = """
[[models]]
model_id = "mine"
source = "./weights"
latent_space = "mine"

[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8

[[models.loras]]
name = "ink"
source = "./ink.safetensors"
"""


def found(check: str, findings: list[Finding]) -> Finding:
    """The worst finding of a check."""
    order = {State.PROBLEM: 0, State.WARNING: 1, State.OK: 2}
    return min((each for each in findings if each.check == check), key=lambda each: order[each.state])


def looked_at(folder: Path, **settings: object) -> list[Finding]:
    """What is found of a set-up in a folder, with a device and a port that are there."""
    return examine_all(**{"data_dir": folder, "device": "cpu", "port": 0, "least_free_bytes": 0, **settings})


@pytest.fixture
def admin(redis_server: EmbeddedRedis) -> Iterator[blocking_redis.Redis]:
    """A client of the shared Redis that may do everything; what a test sets is as it was after it."""
    client = blocking_redis.Redis.from_url(redis_server.url, protocol=2)
    client.flushall()
    yield client
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("appendfsync", "always")
    client.config_set("maxmemory", 0)
    client.acl_deluser("doctor")
    client.flushall()
    client.close()


def _set(name: str, value: str):
    return lambda admin: admin.config_set(name, value)


def _store_old(admin: blocking_redis.Redis) -> None:
    halves = np.ones(3, np.float16)
    entry = MemoryEntry(image_id(make_job_id(1, b"12345678"), 0), 1, 2, halves, halves)
    admin.xadd(LOG, {"e": ENCODE_OLD(entry)}, id="1-0")


@pytest.mark.parametrize(
    ("breaking", "check", "state", "said", "advised"),
    [
        (
            _set("maxmemory-policy", "allkeys-lru"),
            "redis eviction",
            "problem",
            "maxmemory-policy is allkeys-lru",
            "noeviction",
        ),
        (
            _set("maxmemory-policy", "volatile-lru"),
            "redis eviction",
            "warning",
            "jobs and images' records go early",
            "noeviction",
        ),
        (
            _set("appendfsync", "everysec"),
            "redis persistence",
            "warning",
            "appendfsync everysec",
            "set appendfsync to always",
        ),
        (_set("maxmemory", "1"), "redis memory", "problem", "takes no writes", "raise maxmemory"),
        (_store_old, "redis data format", "problem", "data format 1", "sparke redis migrate"),
        (
            lambda admin: admin.set(DATA_FORMAT_KEY, 99),
            "redis data format",
            "problem",
            "data format 99",
            "install the release",
        ),
        (
            lambda admin: admin.set(DATA_FORMAT_KEY, "none"),
            "redis data format",
            "problem",
            "expected a number",
            "backup",
        ),
    ],
)
def test_a_wrong_redis(admin, redis_server, tmp_path, breaking, check, state, said, advised):
    """Each setting of a real server, and each form of its data, is told with what to do."""
    breaking(admin)
    told = found(check, looked_at(tmp_path, redis_url=redis_server.url))
    assert told.state == state
    assert said in told.found
    assert advised in told.advice


def test_a_redis_without_an_append_only_file(tmp_path):
    """A restart of it loses what was acknowledged. A server of its own: one that begins such a file is slow to stop."""
    with EmbeddedRedis.start(tmp_path) as server, blocking_redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "no")
        told = found("redis persistence", looked_at(tmp_path))
    assert told.state is State.PROBLEM
    assert "appendonly is no" in told.found
    assert "set appendonly to yes" in told.advice


def test_replicas_that_are_asked_for_and_not_there(admin, redis_server, tmp_path):
    """One replica must have what is acknowledged, and none follows."""
    admin.ping()
    told = found("redis replicas", looked_at(tmp_path, redis_url=redis_server.url, redis_replicas=1))
    assert told.state is State.PROBLEM
    assert "SPARKE_REDIS_REPLICAS is 1, and 0 follow" in told.found


def test_a_redis_that_is_not_there(tmp_path):
    """A wrong address is told, without the password that it has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told = found("redis", looked_at(tmp_path, redis_url=f"redis://me:secret@127.0.0.1:{port}/0"))
    assert told.state is State.PROBLEM
    assert f"redis://127.0.0.1:{port}/0 does not answer" in told.found
    assert "SPARKE_REDIS_URL" in told.advice
    assert "secret" not in told.found


def test_a_wrong_password(admin, redis_server, tmp_path):
    """A server that refuses the user is not one that is away."""
    admin.ping()
    path = redis_server.url.removeprefix("unix://")
    told = found("redis", looked_at(tmp_path, redis_url=f"unix://nobody:wrong@{path}"))
    assert told.state is State.PROBLEM
    assert "refuses the user or password" in told.found


def test_a_member_of_the_url_that_is_none(tmp_path):
    """It is named, and nothing is asked of the server."""
    told = found("redis", looked_at(tmp_path, redis_url="redis://me:secret@127.0.0.1:9/0?foo=bar"))
    assert told.state is State.PROBLEM
    assert "no member 'foo'" in told.found
    assert "secret" not in told.found


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ("~sparke:* allchannels +@all -evalsha", "evalsha"),
        ("~other:* allchannels +@all", "del, "),
        ("~sparke:* resetchannels +@all", "publish, subscribe"),
    ],
)
def test_wrong_rights(admin, redis_server, tmp_path, rights, said):
    """Commands, keys and channels that a user lacks are named; nothing that was asked has been done."""
    admin.execute_command("ACL", "SETUSER", "doctor", "reset", "on", ">secret", *rights.split())
    admin.set(DATA_FORMAT_KEY, 2)
    before = admin.dbsize()
    path = redis_server.url.removeprefix("unix://")
    findings = looked_at(tmp_path, redis_url=f"unix://doctor:secret@{path}")
    told = found("redis rights", findings)
    assert told.state is State.PROBLEM
    assert said in told.found
    assert "ACL lines" in told.advice
    assert admin.dbsize() == before


@pytest.mark.parametrize("user", ["sparke-api", "sparke-worker"])
def test_a_documented_user_is_well(admin, redis_server, tmp_path, user):
    """With no right beyond docs/redis-security.md nothing of Redis is a problem, and what it may not read is said."""
    for words in acl_lines(user):
        admin.execute_command("ACL", "SETUSER", "doctor", *words[3:])
    path = redis_server.url.removeprefix("unix://")
    findings = looked_at(tmp_path, redis_url=f"unix://doctor:secret@{path}")
    told = [each for each in findings if each.check.startswith(("redis", "api"))]
    assert {each.state for each in told} == {State.OK}, told
    assert "appendfsync cannot be read by this user" in found("redis persistence", findings).found


def test_a_folder_that_cannot_be_written():
    """Not even by root: what the kernel shows of processes."""
    told = found("data directory", looked_at(Path("/proc")))
    assert told.state is State.PROBLEM
    assert "/proc cannot be written by the user" in told.found
    below = found("image store", looked_at(Path("/proc/sparke")))
    assert below.state is State.PROBLEM
    assert "another folder than /proc/sparke/images" in below.advice


def test_a_folder_that_is_a_file(tmp_path):
    """A data directory of that name cannot be made."""
    (tmp_path / "data").write_text("", encoding="utf-8")
    told = found("data directory", looked_at(tmp_path / "data"))
    assert told.state is State.PROBLEM
    assert "is no folder" in told.found


def test_a_full_disk(tmp_path):
    """Fewer free bytes than asked for are a problem, fewer than four times that a warning."""
    told = found("data disk", looked_at(tmp_path, least_free_bytes=10**18))
    assert told.state is State.PROBLEM
    assert "--least-free-bytes" in told.advice


def test_models_that_are_not_there(tmp_path):
    """A folder without a pipeline and a LoRA without its file; both are well once they are there."""
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(CATALOGUE, encoding="utf-8")
    findings = looked_at(tmp_path, models_file=catalogue)
    for check, name in (("model mine", "weights/model_index.json"), ("LoRA mine ink", "ink.safetensors")):
        told = found(check, findings)
        assert told.state is State.PROBLEM
        assert told.found == f"there is no file {tmp_path / name}"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
        assert found(check, looked_at(tmp_path, models_file=catalogue)).state is State.OK


def test_a_catalogue_that_is_none(tmp_path):
    """It is told where it ends, and so is a model that the worker should serve and it has not."""
    catalogue = tmp_path / "models.toml"
    catalogue.write_text("[[models", encoding="utf-8")
    assert "is not TOML" in found("catalogue", looked_at(tmp_path, models_file=catalogue)).found
    catalogue.write_bytes(b"\xff")
    assert "is not UTF-8" in found("catalogue", looked_at(tmp_path, models_file=catalogue)).found
    told = found("catalogue", looked_at(tmp_path, models=(ModelId("mine"),)))
    assert told.state is State.PROBLEM
    assert "SPARKE_MODELS names mine" in told.found


class _Stranger(BaseHTTPRequestHandler):
    """Answers like some other program."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_port_that_is_taken(tmp_path):
    """By somebody else it is a problem."""
    with serving(_Stranger) as port:
        told = found("port", looked_at(tmp_path, port=port))
    assert told.state is State.PROBLEM
    assert f"127.0.0.1 port {port} is taken, and not by this service" in told.found
    assert found("port", looked_at(tmp_path, port=port)).state is State.OK


def test_a_host_that_is_not_this_machines(tmp_path):
    """Nothing can listen there."""
    told = found("port", looked_at(tmp_path, host="192.0.2.1", port=8000))
    assert told.state is State.PROBLEM
    assert "192.0.2.1" in told.found


def test_a_store_that_is_not_there(tmp_path):
    """A scheme that no store has is told as such."""
    told = found("image store", looked_at(tmp_path, image_url="nothing://bucket"))
    assert told.state is State.PROBLEM
    assert "cannot be opened" in told.found


def test_a_store_that_cannot_be_written(tmp_path):
    """Whose folder is there, and takes no object."""
    told = found("image store", looked_at(tmp_path, image_url="file:///proc"))
    assert told.state is State.PROBLEM
    assert "file:///proc: an object cannot be written" in told.found
    assert "SPARKE_IMAGE_URL" in told.advice


def test_settings_that_are_wrong_are_findings(tmp_path):
    """Each on its own line, and the only ones: nothing else can be looked at."""
    findings = looked_at(tmp_path, device="gpu", redis_url="http://example.org")
    assert [each.check for each in findings] == ["settings", "settings"]
    assert all(each.state is State.PROBLEM for each in findings)
    assert "SPARKE_REDIS_URL" in " ".join(each.found for each in findings)
