"""docs/backup.md on a shared Redis and an object store, carried out: a backup, a restoration on new servers, an upgrade."""

import base64
import io
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from documented import copy_append_only
from patience import PATIENCE_S
from PIL import Image
from processes import free_port

from app.redis.server_binary import find_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MEMORY = "/v1/memories/toy.default"
START_S = 200.0  # a worker loads torch, several of them at once


def _until(holds: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    until_s = time.monotonic() + timeout_s
    while True:
        with suppress(httpx.TransportError, redis.RedisError):
            if holds():
                return
        assert time.monotonic() < until_s, what
        time.sleep(0.05)


class Machines:
    """A Redis, an object store in a folder, and any number of API processes and workers, each a process of its own."""

    def __init__(self, folder: Path, stack: ExitStack, make_env: Callable[..., dict[str, str]]) -> None:
        folder.mkdir()
        self.redis_dir, self.objects = folder / "redis", folder / "objects"
        self._folder, self._stack, self._make_env = folder, stack, make_env
        self.processes: list[subprocess.Popen[str]] = []
        self.key = ""

    def start_redis(self, *, append_only: bool = True) -> None:
        """On what lies in its folder."""
        self.redis_dir.mkdir(exist_ok=True)
        self.objects.mkdir(exist_ok=True)
        port = free_port()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.redis_dir), "--save", ""]
        words += ["--appendonly", "yes" if append_only else "no", "--appendfsync", "always"]
        self._run([str(find_server().path), *words], {}, stdout=subprocess.DEVNULL)
        self.redis = self._stack.enter_context(redis.Redis(port=port))
        _until(self.redis.ping, "Redis does not answer")
        self.env = self._make_env(
            self._folder,
            SPARKE_REDIS_URL=f"redis://127.0.0.1:{port}/0",
            SPARKE_IMAGE_URL=self.objects.as_uri(),
            SPARKE_DATA_DIR=str(self._folder / "data"),
            SPARKE_PORT="0",
            SPARKE_HEARTBEAT_INTERVAL_S="0.5",
            SPARKE_HEARTBEAT_TTL_S="8",
        )

    def sparke(self, *words: str) -> str:
        """What a command prints."""
        command = [sys.executable, "-P", "-m", "app.cli", *words]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=True
        ).stdout.strip()

    def start_api(self) -> tuple[subprocess.Popen[str], httpx.Client]:
        """A replica, and a client of it."""
        process = self._run([sys.executable, "-P", "-m", "app.cli", "api"], self.env, stdout=subprocess.PIPE)
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("SPARKE API: ").strip()
        headers = {"authorization": f"Bearer {self.key}"}
        return process, self._stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))

    def start_worker(self) -> subprocess.Popen[str]:
        """A worker, once its own port says that it is ready."""
        port = free_port()
        env = {**self.env, "SPARKE_WORKER_METRICS_PORT": str(port)}
        process = self._run([sys.executable, "-P", "-m", "app.cli", "worker"], env, stdout=subprocess.DEVNULL)
        _until(
            lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_S).status_code == 200,
            "no worker",
            START_S,
        )
        return process

    def lose(self) -> None:
        """All processes at once, and what they had written."""
        for process in self.processes:
            process.kill()
            process.wait(PATIENCE_S)
        shutil.rmtree(self._folder)

    def _run(self, command: list[str], env: dict[str, str], *, stdout: int) -> subprocess.Popen[str]:
        process = self._stack.enter_context(
            subprocess.Popen(command, env=env or None, stdout=stdout, text=True)
        )
        self._stack.callback(process.kill)
        self.processes.append(process)
        return process


@pytest.fixture
def machines(
    tmp_path: Path, make_env_of: Callable[..., dict[str, str]]
) -> Iterator[Callable[[str], Machines]]:
    """Makes them in a folder of a name; they end with the test."""
    with ExitStack() as stack:
        yield lambda name: Machines(tmp_path / name, stack, make_env_of)


def _ask(http: httpx.Client, **members: object) -> dict:
    answer = http.post("/v1/images/generations", json={"prompt": "a star", **members})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _pixels(answer: dict) -> list[bytes]:
    return [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).tobytes() for one in answer["data"]]


def _copy_redis(server: redis.Redis, source: Path, target: Path) -> None:
    """A snapshot of one moment, and the append-only files."""
    target.mkdir()
    before = server.lastsave()
    server.bgsave()
    _until(lambda: server.lastsave() > before, "no snapshot")
    shutil.copy2(source / "dump.rdb", target)
    copy_append_only(source, target)


def _restore_redis(new: Machines, backup: Path, *, of: str) -> None:
    if of == "append-only files":
        new.redis_dir.mkdir()
        copy_append_only(backup, new.redis_dir)
        new.start_redis()
        return
    # with `appendonly yes` and no such files it would begin empty, and not look at the snapshot
    new.redis_dir.mkdir()
    shutil.copy2(backup / "dump.rdb", new.redis_dir)
    new.start_redis(append_only=False)
    new.redis.config_set("appendonly", "yes")
    _until(lambda: not new.redis.info("persistence")["aof_rewrite_in_progress"], "no append-only file")


@pytest.mark.parametrize("of", ["append-only files", "snapshot"])
def test_a_backup_becomes_a_service_on_new_servers(machines, tmp_path, of):
    """Taken while all runs: memories, images, keys, signed URLs and replays are there, and a job that ran ends there."""
    old = machines("old")
    old.start_redis()
    old.key = old.sparke("keys", "create", "--tenant", "acme")
    (_, one), (_, other) = old.start_api(), old.start_api()
    old.start_worker()
    for seed in range(3):
        _ask(one, seed=seed, n=2)
    asked = {"seed": 7, "n": 2, "reproducible": True, "response_format": "b64_json"}
    made = _ask(other, **asked)
    url = urlsplit(_ask(one, seed=9, response_format="url")["data"][0]["url"])
    png, archive = other.get(f"{url.path}?{url.query}").content, one.get(f"{MEMORY}/export").content
    job = one.post("/v1/jobs", json={"prompt": "a ring", "steps": 20_000}).json()["id"]
    _until(lambda: other.get(f"/v1/jobs/{job}").json()["status"] == "running", "not running")

    backup = tmp_path / "backup"
    backup.mkdir()
    _copy_redis(old.redis, old.redis_dir, backup / "redis")
    shutil.copytree(old.objects, backup / "objects")
    late = one.post("/v1/jobs", json={"prompt": "a square"}).json()["id"]
    old.lose()

    new = machines("new")
    new.key = old.key
    shutil.copytree(backup / "objects", new.objects)
    _restore_redis(new, backup / "redis", of=of)
    new.start_worker()
    (_, one), (_, other) = new.start_api(), new.start_api()
    assert one.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 401
    assert one.get(f"{url.path}?{url.query}").content == png
    replay = {"memory": {"version": made["memory_version"], "write": False}}
    assert _pixels(_ask(other, **asked, diversity=replay)) == _pixels(made)
    _until(lambda: one.get(f"/v1/jobs/{job}").json()["status"] == "succeeded", "the job does not end")
    entries = one.get(f"{MEMORY}/entries", params={"limit": 100}).json()["data"]
    assert [entry["version"] for entry in entries] == list(range(10, 0, -1)), "nine, and the job's"
    assert other.get(f"/v1/jobs/{late}").status_code == 404, "it came after the copy"
    assert other.get(f"{MEMORY}/export", params={"version": 9}).content == archive
    assert new.redis.config_get("appendonly")["appendonly"] == "yes"
    assert _ask(one, seed=11)["memory_version"] == 10


class Clients:
    """Two of them that ask for images all the time, at whichever replica a balancer would send them to."""

    def __init__(self, replicas: list[httpx.Client]) -> None:
        self.replicas = replicas
        self.statuses: list[int] = []
        self.seeds: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(first,)) for first in (0, 1)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask_on(self, number: int) -> None:
        while not self._stop.is_set():
            replicas = self.replicas
            http, key = replicas[number % len(replicas)], {"idempotency-key": uuid.uuid4().hex}
            body = {"prompt": "a star", "seed": number, "steps": 200}
            answer = http.post("/v1/images/generations", json=body, headers=key)
            self.statuses.append(answer.status_code)
            self.seeds += [one["seed"] for one in answer.json().get("data", [])]
            number += 2


def _replace_apis(machines: Machines, clients: Clients, replicas: list) -> None:
    """One after the other: a new one takes requests, the old one gets no more, and is told to end."""
    for _ in range(2):
        process, _old = replicas.pop(0)
        replicas.append(machines.start_api())
        http = replicas[-1][1]
        _until(lambda http=http: http.get("/readyz?exclude=workers").status_code == 200, "not ready")
        clients.replicas = [client for _, client in replicas]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        time.sleep(1)


def test_processes_are_replaced_one_by_one_under_load(machines):
    """Workers first, then API processes: every request is answered, and every image is remembered once."""
    service = machines("service")
    service.start_redis()
    service.key = service.sparke("keys", "create", "--tenant", "acme")
    replicas = [service.start_api(), service.start_api()]
    workers = [service.start_worker(), service.start_worker()]
    with Clients([http for _, http in replicas]) as clients:
        _until(lambda: len(clients.statuses) > 5, "no answers")
        for old in workers:
            service.start_worker()
            old.send_signal(signal.SIGTERM)
            assert old.wait(90) == 0
        _replace_apis(service, clients, replicas)
        before = len(clients.statuses)
        _until(lambda: len(clients.statuses) > before + 5, "no answers by the new ones")
    assert set(clients.statuses) == {200}, len(clients.statuses)
    http = replicas[0][1]
    (memory,) = [one for one in http.get("/v1/memories").json()["data"] if one["id"] == "toy.default"]
    assert memory["num_entries"] == len(clients.seeds) == len(set(clients.seeds)) == len(clients.statuses)
    assert http.get("/readyz").json()["workers"]["ready"] == 2
    assert service.redis.zcard("sparke:{m:toy}:open") == 0


def test_a_request_may_be_what_starts_a_worker(machines):
    """From zero and back: with no worker a replica takes requests, the backlog has the job, and the answer comes."""
    service = machines("service")
    service.start_redis()
    service.env |= {"SPARKE_NO_WORKER_GRACE_S": "120"}
    service.key = service.sparke("keys", "create", "--tenant", "acme")
    _, http = service.start_api()

    def backlog() -> str:
        return re.search(r'^sparke_jobs_open\{model="toy"\} (\S+)$', http.get("/metrics").text, re.MULTILINE)[
            1
        ]

    answers: list[dict] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(http)))
    assert (http.get("/readyz?exclude=workers").status_code, backlog()) == (200, "0.0")
    asking.start()
    _until(lambda: backlog() == "1.0", "nothing to start a worker for")
    assert http.get("/readyz").status_code == 503
    worker = service.start_worker()
    asking.join(60)
    assert len(answers[0]["data"]) == 1
    _until(lambda: backlog() == "0.0", "nothing to end a worker for")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert http.get("/readyz?exclude=workers").status_code == 200


def test_a_migration_says_what_to_stop(machines):
    """With a worker there it changes nothing and names it; without any it does what there is to do, here nothing."""
    service = machines("service")
    service.start_redis()
    worker = service.start_worker()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        service.sparke("redis", "migrate")
    assert "stop every worker and every API process first" in caught.value.stderr.replace("\n", " ")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    service.sparke("redis", "migrate")
