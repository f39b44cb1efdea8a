"""What was forgotten is nowhere: in no image made afterwards, and in no byte of the data directory."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import redis
from patience import PATIENCE_S, wait_until

SECRET = "zqxjkvbwptr"
LOG = "sparke:{t:default}:memory:toy:secret:log"


@contextmanager
def _second_worker(folder: Path) -> Iterator[None]:
    command = [sys.executable, "-P", "-m", "app.cli", "worker", "--data-dir", str(folder / "data")]
    env = {**os.environ, "SPARKE_MODELS_FILE": str(folder / "models.toml"), "SPARKE_DEVICE": "cpu"}
    with subprocess.Popen(command, env=env) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


class Load:
    """Clients that read a memory all the time; after each acknowledgement it may guide by no more than it holds."""

    def __init__(self, service: Any, num_held: int) -> None:
        self.service, self.num_held = service, num_held
        self.num_answers, self.faults = 0, []
        self.threads = [threading.Thread(target=self._read) for _ in range(4)]

    def __enter__(self) -> Self:
        self.is_over = False
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        for thread in self.threads:
            thread.join()

    def _read(self) -> None:
        while not self.is_over:
            most = self.num_held
            answer = self.service.generate(diversity={"memory": {"name": "loaded", "write": False}})
            found = answer.json()["data"][0]["diversity"]["num_neighbours"]
            self.num_answers += 1
            if found > most:
                self.faults.append((most, found))


def _rewrite(server: redis.Redis) -> None:
    server.bgrewriteaof()
    wait_until(
        lambda: not server.info("persistence")["aof_rewrite_in_progress"], "the file was not rewritten"
    )
    wait_until(
        lambda: not server.info("persistence")["aof_rewrite_scheduled"], "the file was not rewritten, later"
    )


def _places(folder: Path, needles: list[bytes]) -> set[str]:
    """The files that hold any of the needles."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    }


def _features(server: redis.Redis) -> list[bytes]:
    """Bytes of each entry's vectors that no other entry has."""
    entries = [fields[b"e"] for _, fields in server.xrange(LOG)]
    found = []
    for number, entry in enumerate(entries):
        others = b"".join(entries[:number] + entries[number + 1 :])
        pieces = (entry[start : start + 16] for start in range(80, len(entry) - 20))
        found.append(next(piece for piece in pieces if piece not in others))
    return found


def _run_batch(url: str) -> dict[str, Any]:
    line = {
        "custom_id": "mine",
        "method": "POST",
        "url": "/v1/images/generations",
        "body": {"prompt": f"a {SECRET} in a batch", "diversity": {"memory": {"name": "secret"}}},
    }
    file = {"file": ("lines.jsonl", json.dumps(line).encode()), "purpose": (None, "batch")}
    sent = httpx.post(f"{url}/v1/files", files=file, timeout=PATIENCE_S).json()
    body = {"input_file_id": sent["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch = httpx.post(f"{url}/v1/batches", json=body, timeout=PATIENCE_S).json()
    wait_until(
        lambda: (
            httpx.get(f"{url}/v1/batches/{batch['id']}", timeout=PATIENCE_S).json()["status"] == "completed"
        ),
        "no batch",
    )
    return dict(httpx.get(f"{url}/v1/batches/{batch['id']}", timeout=PATIENCE_S).json())


def test_nothing_of_what_was_forgotten_is_left(start: Any, tmp_path: Path) -> None:
    """Two workers under load: no image begun later is guided by it; after a rewrite no file has its prompt or features."""
    service = start(tmp_path / "data")
    url, data = service.url, tmp_path / "data"
    server = redis.Redis.from_url((data / "redis" / "url").read_text())
    server.config_set("rdbcompression", "no")  # else bytes that are there might not be found
    with _second_worker(tmp_path):
        wait_until(
            lambda: httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json()["workers"]["ready"] == 2,
            "no second worker",
        )
        asked = {"prompt": f"a {SECRET}", "n": 3, "diversity": {"memory": {"name": "secret"}}}
        key = {"idempotency-key": "mine"}
        httpx.post(f"{url}/v1/images/generations", json=asked, headers=key, timeout=60).raise_for_status()
        job = httpx.post(
            f"{url}/v1/jobs", json={**asked, "n": 1, "num_previews": 2}, timeout=PATIENCE_S
        ).json()
        wait_until(
            lambda: (
                httpx.get(f"{url}/v1/jobs/{job['id']}", timeout=PATIENCE_S).json()["status"] == "succeeded"
            ),
            "no image",
        )
        batch = _run_batch(url)
        asked = httpx.post(
            f"{url}/v1/memories/toy.secret/search", json={"prompt": f"an asked {SECRET}"}, timeout=PATIENCE_S
        )
        assert len(asked.json()["data"]) == 5
        features = _features(server)
        assert len(features) == 5
        _rewrite(server)
        assert any(place.startswith("redis/") for place in _places(data, [SECRET.encode()]))
        assert any(place.startswith("images/") for place in _places(data, [SECRET.encode()]))
        for feature in features:
            assert _places(data, [feature]), "the search finds what is there"

        service.generate(n=8, diversity={"memory": {"name": "loaded"}})
        with Load(service, 8) as load:
            for version in (8, 1, 4, 7, 2, 3):
                seen = load.num_answers
                gone = httpx.delete(f"{url}/v1/memories/toy.loaded/entries/{version}", timeout=60).json()
                assert gone["num_forgotten"] == 1
                load.num_held -= 1
                wait_until(lambda seen=seen: load.num_answers > seen + 8, "the load stands still")
            assert httpx.delete(f"{url}/v1/memories/toy.secret/entries/2", timeout=60).status_code == 200
            act = httpx.post(f"{url}/v1/memories/toy.secret/forget", json={"all": True}, timeout=60).json()
            assert (act["num_forgotten"], act["num_remaining"]) == (4, 0)
            httpx.delete(f"{url}/v1/files/{batch['input_file_id']}", timeout=PATIENCE_S).raise_for_status()
        assert load.faults == []
        _rewrite(server)
        assert _places(data, [SECRET.encode(), *features]) == set()
        assert (
            service.generate(diversity={"memory": {"name": "loaded"}}).json()["data"][0]["diversity"][
                "num_neighbours"
            ]
            == 2
        )
    server.close()
