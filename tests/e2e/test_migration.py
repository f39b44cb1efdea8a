"""A data directory of the release before entries could have prompts, as `sparke serve` meets it."""

import base64
import io
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_S
from PIL import Image
from redis import Redis

from app.memory.codec import decode_entry
from app.redis.embedded import EmbeddedRedis

ENCODE_OLD = runpy.run_path(str(Path(__file__).parents[1] / "app" / "memory" / "old_entries.py"))[
    "encode_old"
]
LOG = "sparke:{t:default}:memory:toy:default:log"
LARGE = "sparke:{t:default}:memory:toy:large:log"
NUM_LARGE = 5000
DAMAGED = range(2001, 3001)
"""The versions of the large memory's entries that are damaged."""


def _pixels(answer):
    assert answer.status_code == 200, answer.text
    return [
        Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).tobytes()
        for image in answer.json()["data"]
    ]


def _damage(entry):
    """The entry with a checksum that is not its own."""
    return entry[:-1] + bytes([entry[-1] ^ 1])


def _make_old(data_dir):
    """Makes the data what the older release would have left, and gives it a large memory with damaged entries amid it."""
    with EmbeddedRedis.start(data_dir) as server, Redis(unix_socket_path=server.url[7:]) as redis:
        page = redis.xrange(LOG)
        redis.delete(LOG, "sparke:data-format")
        entries = [decode_entry(fields[b"e"]) for _, fields in page]
        for (entry_id, _), entry in zip(page, entries, strict=True):
            redis.xadd(LOG, {"e": ENCODE_OLD(entry)}, id=entry_id)
        with redis.pipeline(transaction=False) as pipeline:
            for version in range(1, NUM_LARGE + 1):
                old = ENCODE_OLD(entries[version % len(entries)])
                pipeline.xadd(LARGE, {"e": _damage(old) if version in DAMAGED else old}, id=f"{version}-0")
            pipeline.hset(LARGE.replace(":log", ":meta"), mapping={"version": NUM_LARGE, "created_at_ms": 1})
            pipeline.sadd("sparke:{t:default}:memories", "toy:large")
            pipeline.execute()
    return entries


def _kill_in_the_middle(data_dir, environment):
    """Starts a service, and kills all of it by SIGKILL while the large memory is half copied.

    Of each damaged entry the service writes a line before it goes on, and these are many more than a pipe takes that nobody
    reads: it waits among them until it is killed.
    """
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said = next((line for line in process.stderr if "memory_entry_damaged" in line), None)
            with Redis(unix_socket_path=str(data_dir / "redis" / "redis.sock")) as redis:
                num_copied = redis.xlen(f"{LARGE}:rewritten")
        finally:
            process.kill()
            process.wait(PATIENCE_S)
    assert said
    assert 0 < num_copied < DAMAGED.stop
    return process.returncode


@pytest.mark.slow
def test_an_older_releases_data_directory_is_gone_on_with(start, tmp_path, toy_environment):
    """Killed amid the migration and started again: the same entries, images by their URLs, replays to the bit."""
    service = start(tmp_path / "data")
    for seed in range(3):
        assert service.generate(seed=seed, n=2).status_code == 200
    asked = {"seed": 7, "n": 2, "reproducible": True, "response_format": "b64_json"}
    made = service.generate(**asked)
    version, pixels = made.json()["memory_version"], _pixels(made)
    shown = httpx.get(f"{service.url}/v1/memories/toy.default/entries", timeout=PATIENCE_S).json()
    service.process.terminate()
    service.process.wait(60)
    entries = _make_old(tmp_path / "data")

    refused = subprocess.run(
        [sys.executable, "-P", "-m", "app.cli", "keys", "list", "--data-dir", str(tmp_path / "data")],
        env=toy_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "sparke redis migrate" in refused.stderr
    assert _kill_in_the_middle(tmp_path / "data", toy_environment) == -signal.SIGKILL

    again = start(tmp_path / "data")
    found = httpx.get(f"{again.url}/v1/memories/toy.default/entries", timeout=PATIENCE_S).json()
    assert [_bare(entry) for entry in found["data"]] == [_bare(entry) for entry in shown["data"]]
    assert all(
        httpx.get(entry["image_url"], timeout=PATIENCE_S).status_code == 200 for entry in found["data"]
    )
    replay = again.generate(**asked, diversity={"memory": {"version": version, "write": False}})
    assert _pixels(replay) == pixels
    large = httpx.get(f"{again.url}/v1/memories/toy.large", timeout=PATIENCE_S).json()
    assert (large["num_entries"], large["version"]) == (NUM_LARGE, NUM_LARGE)
    again.process.terminate()
    again.process.wait(60)
    with EmbeddedRedis.start(tmp_path / "data") as server, Redis(unix_socket_path=server.url[7:]) as redis:
        after = [decode_entry(fields[b"e"]) for _, fields in redis.xrange(LOG)]
        assert [entry.feature.tobytes() for entry in after] == [e.feature.tobytes() for e in entries]
        assert [entry.image_id for entry in after] == [entry.image_id for entry in entries]
        assert redis.exists(f"{LARGE}:rewritten", "sparke:data-migrated:2") == 0
        newest = redis.xrevrange(LARGE, count=1)[0][1][b"e"]
        assert decode_entry(newest).image_id == entries[NUM_LARGE % len(entries)].image_id
        version = DAMAGED.start
        [(_, fields)] = redis.xrange(LARGE, f"{version}-0", f"{version}-0")
        assert fields[b"e"] == _damage(ENCODE_OLD(entries[version % len(entries)]))


def _bare(entry):
    """Without its signed URLs, which name the moment."""
    return {name: value for name, value in entry.items() if not name.endswith("_url")}


@pytest.fixture
def toy_environment(tmp_path):
    """The environment of a command that knows the toy model."""
    conftest = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
    return conftest["make_env"](tmp_path)
