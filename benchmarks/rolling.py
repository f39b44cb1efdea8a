"""Replaces every process of a service under load, one by one with SIGTERM, and counts what fails.

    python benchmarks/rolling.py --rounds 2

Replicas of the API behind HAProxy, which asks each for `/readyz`; workers with the weightless engine; clients that wait for
images, stream them, follow jobs, or ask what is answered at once, and a batch. None of them asks twice: an answer that is no yes and a connection that breaks
are failures. Who follows a job comes back with the last event it got where the stream ends before the job, as such streams
mean it. Exit code 1 where a request failed, or a job is not done once.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from chaos_scene import REPLICA, WORKER, Scene
from processes import free_ports

KINDS = ("waits", "streams", "follows", "asks")
_NOTICE_S = 3.0
_STEPS = (4, 100)  # a moment, and longer than a replica takes to be told
_START_S = 120.0
_NUM_LINES = 300
_SEEN_S = 2.5  # until the balancer has seen that a replica is back
_BALANCER = """
defaults
  mode http
  timeout connect 5s
  timeout check 10s
  timeout client 180s
  timeout server 180s
frontend service
  bind 127.0.0.1:{port}
  default_backend replicas
backend replicas
  option httpchk GET /readyz?exclude=workers
  http-check expect status 200
  retries 0
"""


@dataclass
class Tally:
    """What clients were told."""

    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    num_images: int = 0
    num_followed_again: int = 0


@dataclass(frozen=True)
class Client:
    """One that asks through the balancer, until it is told to end."""

    http: httpx.AsyncClient
    tally: Tally
    over: asyncio.Event
    numbers: Iterator[int]

    async def run(self, kind: str) -> None:
        """One request of a kind after the other."""
        deed = {"waits": self.wait, "streams": self.stream, "follows": self.follow, "asks": self.ask}[kind]
        while not self.over.is_set():
            try:
                number = next(self.numbers)
                await deed({"prompt": f"star {number}", "steps": _STEPS[number % len(_STEPS)]})
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.tally.failures.append(f"{kind}: {type(error).__name__}: {error}")
            else:
                self.tally.done[kind] += 1

    async def ask(self, _body: dict[str, Any]) -> None:
        """What is answered at once, so that hardly a moment is without a request."""
        (await self.http.get("/v1/models")).raise_for_status()

    async def wait(self, body: dict[str, Any]) -> None:
        """An answer with an image, and the image by its URL."""
        answer = await self.http.post("/v1/images/generations", json={**body, "response_format": "url"})
        answer.raise_for_status()
        self.tally.num_images += 1
        url = httpx.URL(answer.json()["data"][0]["url"]).raw_path.decode()
        (await self.http.get(url)).raise_for_status()

    async def stream(self, body: dict[str, Any]) -> None:
        """A stream that ends with an image."""
        asked = {**body, "stream": True}
        async with self.http.stream("POST", "/v1/images/generations", json=asked) as answer:
            answer.raise_for_status()
            kinds = [line async for line in answer.aiter_lines() if line.startswith("event:")]
        if not kinds or "completed" not in kinds[-1]:
            raise ValueError(f"a stream ended with {kinds[-1:]}")
        self.tally.num_images += 1

    async def follow(self, body: dict[str, Any]) -> None:
        """A job to its end, at whichever replica."""
        answer = await self.http.post("/v1/jobs", json=body)
        answer.raise_for_status()
        job, last = answer.json()["id"], None
        self.tally.jobs.append(job)
        self.tally.num_images += 1
        while True:
            async for event_id, kind in self._events(job, last):
                last = event_id
                if kind == "succeeded":
                    return
                if kind in ("failed", "expired", "cancelled"):
                    raise ValueError(f"{job} {kind}")
            self.tally.num_followed_again += 1

    async def _events(self, job: str, last: str | None) -> AsyncIterator[tuple[str, str]]:
        headers = {} if last is None else {"last-event-id": last}
        async with self.http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
            answer.raise_for_status()
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(":")
                if line and name:
                    fields[name] = value.strip()
                elif not line and "id" in fields:
                    yield fields["id"], fields["event"]
                    fields = {}


async def play(folder: Path, rounds: int, num_clients: int, *, notice_s: float = _NOTICE_S) -> Tally:
    """Everything, to the last job; raises where the service does not come up."""
    scene = Scene.start(
        folder, num_workers=3, num_replicas=2, SPARKE_STOP_NOTICE_S=str(notice_s), SPARKE_STOP_TIMEOUT_S="120"
    )
    try:
        with _balancer(folder, scene.ports) as url:
            await scene.wait_until_ready()
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=url, timeout=180, limits=limits) as http:
                await _until_ready(http, len(scene.workers))
                return await _play(scene, http, rounds, num_clients)
    finally:
        scene.stop()


async def _play(scene: Scene, http: httpx.AsyncClient, rounds: int, num_clients: int) -> Tally:
    tally, over, numbers = Tally(), asyncio.Event(), itertools.count()
    batch = await _start_batch(http)
    async with asyncio.TaskGroup() as group:
        for number in range(num_clients):
            kind = KINDS[number % len(KINDS)]
            group.create_task(Client(http, tally, over, numbers).run(kind))
        for _ in range(rounds):
            await _replace_all(scene, http)
        over.set()
    await _judge(http, tally, batch)
    return tally


async def _replace_all(scene: Scene, http: httpx.AsyncClient) -> None:
    """Replicas and workers in turn; the new one is ready before the next goes."""
    for place in range(len(scene.replicas)):
        await scene.restart(REPLICA, place)
        async with httpx.AsyncClient(base_url=scene.urls[place], timeout=10) as own:
            await _until_ready(own, 0)
        await asyncio.sleep(_SEEN_S)
    for place in range(len(scene.workers)):
        await scene.restart(WORKER, place)
        await _until_ready(http, len(scene.workers))


async def _until_ready(http: httpx.AsyncClient, num_workers: int) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        try:
            answer = await http.get("/readyz?exclude=workers")
        except httpx.TransportError:
            pass
        else:
            if answer.status_code == 200 and answer.json()["workers"]["ready"] >= num_workers:
                return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{num_workers} workers are not ready after {_START_S:g} s")


async def _start_batch(http: httpx.AsyncClient) -> str:
    line = {"method": "POST", "url": "/v1/images/generations"}
    lines = [
        json.dumps({**line, "custom_id": str(number), "body": {"prompt": f"line {number}"}})
        for number in range(_NUM_LINES)
    ]
    form = {"file": ("lines.jsonl", "\n".join(lines).encode())}
    sent = await http.post("/v1/files", files=form, data={"purpose": "batch"})
    file = sent.raise_for_status().json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    return str((await http.post("/v1/batches", json=body)).raise_for_status().json()["id"])


async def _judge(http: httpx.AsyncClient, tally: Tally, batch: str) -> None:
    """Every job and line is done once, and every image is an entry once."""
    until_s = time.monotonic() + _START_S
    while (await http.get(f"/v1/batches/{batch}")).json()["status"] != "completed":
        if time.monotonic() > until_s:
            tally.failures.append("the batch has no end")
            return
        await asyncio.sleep(0.2)
    counts = (await http.get(f"/v1/batches/{batch}")).json()["request_counts"]
    if counts != {"total": _NUM_LINES, "completed": _NUM_LINES, "failed": 0}:
        tally.failures.append(f"lines of the batch: {counts}")
    for job in tally.jobs:
        status = (await http.get(f"/v1/jobs/{job}")).json().get("status")
        if status != "succeeded":
            tally.failures.append(f"{job} is {status}")
    entries = sum(memory["num_entries"] for memory in (await http.get("/v1/memories")).json()["data"])
    if entries != tally.num_images + _NUM_LINES:
        tally.failures.append(f"{entries} entries of {tally.num_images} images and {_NUM_LINES} lines")


@contextmanager
def _balancer(folder: Path, ports: Sequence[int]) -> Iterator[str]:
    """HAProxy before the replicas; its URL."""
    binary = shutil.which("haproxy")
    if binary is None:
        raise FileNotFoundError("haproxy is not on PATH: install it")
    [port] = free_ports(1)
    servers = [f"  server r{each} 127.0.0.1:{each} check inter 1s fall 1 rise 1" for each in ports]
    config = folder / "haproxy.cfg"
    config.write_text(_BALANCER.format(port=port) + "\n".join(servers) + "\n", encoding="utf-8")
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([binary, "-db", "-f", str(config)], stdout=log, stderr=log)  # noqa: S603 - as above
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Prints the figures; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often every process is replaced")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--notice-s", type=float, default=_NOTICE_S, help="SPARKE_STOP_NOTICE_S")
    given = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sparke-rolling-") as folder:
        tally = asyncio.run(play(Path(folder), given.rounds, given.clients, notice_s=given.notice_s))
    num_done = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.done.items()))
    print(f"on {platform.node()} with {os.cpu_count()} cores, {time.monotonic() - began_s:.0f} s")
    print(f"replaced {given.rounds} times: 2 replicas of the API, 3 workers")
    print(
        f"requests done: {num_done}; lines of the batch {_NUM_LINES}; followers came back {tally.num_followed_again} times"
    )
    print(f"failures: {len(tally.failures)}", *Counter(tally.failures).most_common(20), sep="\n  ")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
