"""How long nothing is accepted while the sentinels of Redis put a replica in the place of the master.

    python benchmarks/failover.py --times 10 --down-after-ms 5000

A master, two replicas and three sentinels, two replicas of the API, two workers with the weightless engine, one replica of
Redis waited for. A client asks for a job again and again; the master is killed, frozen, or replaced by SENTINEL FAILOVER, with its
writes paused before or not. Printed for each: from that moment to the first job that is accepted by the next master, and to the end of
that job; how many answers were no yes meanwhile, and how many jobs that were accepted are gone at the end.
"""

import argparse
import asyncio
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from chaos_redis import WatchedServers
from chaos_scene import Scene

KILLED, FROZEN, PAUSED, REPLACED = KINDS = ("killed", "frozen", "paused, replaced", "replaced")
_PAUSE_MS = 10_000
_BETWEEN_S = 0.02
_ENDED = ("succeeded", "failed", "cancelled", "expired")
_PATIENCE_S = 120.0


@dataclass
class Heard:
    """What one fail-over was like for a client."""

    accepted_s: float = 0.0
    ended_s: float = 0.0
    refused: dict[int, int] = field(default_factory=dict)  # answers that were no yes, by status
    accepted: list[str] = field(default_factory=list)


async def fail_over(scene: Scene, servers: WatchedServers, how: str) -> Heard:
    """One fail-over under a client that asks for one job after another, from before it to the first yes after it."""
    heard = Heard()
    async with httpx.AsyncClient(timeout=60) as http:
        for _ in range(5):
            await _ask(http, scene.urls[0], heard)
        heard.refused.clear()
        master = await asyncio.to_thread(lambda: servers.scene.master_port)
        began_s = time.monotonic()
        await _disturb(servers, how, master)
        if how == REPLACED:  # the master takes writes until it is replaced
            while await asyncio.to_thread(lambda: servers.scene.master_port) == master:
                await _ask(http, scene.urls[0], heard)
        turn = 0
        while (job := await _ask(http, scene.urls[turn % len(scene.urls)], heard)) is None:
            turn += 1
            await asyncio.sleep(_BETWEEN_S)
        heard.accepted_s = time.monotonic() - began_s
        await _end_of(http, scene.urls, job)
        heard.ended_s = time.monotonic() - began_s
    if how == PAUSED:  # else it would still be paused where it is the master again soon
        with servers.scene.server(master) as server:
            server.client_unpause()
    servers.scene.start_dead()
    await asyncio.to_thread(servers.scene.mend)
    return heard


async def _disturb(servers: WatchedServers, how: str, master: int) -> None:
    if how in (KILLED, FROZEN):
        servers.scene.send(master, signal.SIGKILL if how == KILLED else signal.SIGSTOP)
        return
    if how == PAUSED:
        with servers.scene.server(master) as server:
            server.client_pause(_PAUSE_MS, all=False)
    await asyncio.to_thread(servers.scene.fail_over)


async def _ask(http: httpx.AsyncClient, url: str, heard: Heard) -> str | None:
    answer = await http.post(f"{url}/v1/jobs", json={"prompt": "a star"})
    if answer.status_code != 202:
        heard.refused[answer.status_code] = heard.refused.get(answer.status_code, 0) + 1
        return None
    heard.accepted.append(answer.json()["id"])
    return heard.accepted[-1]


async def _end_of(http: httpx.AsyncClient, urls: list[str], job: str) -> str:
    """How a job ended. Raises TimeoutError."""
    until_s, turn = time.monotonic() + _PATIENCE_S, 0
    while time.monotonic() < until_s:
        answer = await http.get(f"{urls[turn % len(urls)]}/v1/jobs/{job}")
        if answer.status_code == 404:
            return "lost"
        if answer.status_code == 200 and answer.json()["status"] in _ENDED:
            return str(answer.json()["status"])
        turn += 1
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{job} has no end after {_PATIENCE_S:g} s")


async def measure(folder: Path, kinds: Sequence[str], times: int, down_after_ms: int) -> int:
    """Prints a row for each kind; how many jobs were accepted and are gone."""
    servers = WatchedServers(folder, down_after_ms=down_after_ms)
    scene = Scene.start(folder, num_workers=2, num_replicas=2, redis=servers)
    num_lost = 0
    try:
        await scene.wait_until_ready()
        for how in kinds:
            heard = [await fail_over(scene, servers, how) for _ in range(times)]
            async with httpx.AsyncClient(timeout=60) as http:
                ends = [await _end_of(http, scene.urls, job) for one in heard for job in one.accepted]
            _show(how, down_after_ms, heard, ends)
            num_lost += sum(end != "succeeded" for end in ends)
    finally:
        scene.stop()
    return num_lost


def _show(how: str, down_after_ms: int, heard: Sequence[Heard], ends: Sequence[str]) -> None:
    measured = ([one.accepted_s for one in heard], [one.ended_s for one in heard])
    columns = [" / ".join(f"{of(values):.2f}" for of in (min, statistics.median, max)) for values in measured]
    statuses = sorted({status for one in heard for status in one.refused})
    told = ", ".join(f"{sum(one.refused.get(status, 0) for one in heard)} × {status}" for status in statuses)
    lost = sum(end != "succeeded" for end in ends)
    row = (down_after_ms, how, len(heard), *columns, told or "none", f"{lost} of {len(ends)}")
    print(f"| {' | '.join(map(str, row))} |", flush=True)


def main() -> int:
    """Prints the table; 1 where a job that was accepted is gone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="fail-overs of each kind")
    parser.add_argument("--down-after-ms", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[KILLED, FROZEN, PAUSED])
    given = parser.parse_args()
    print(f"on {platform.node()} with {os.cpu_count()} cores; seconds are min / median / max", flush=True)
    print(
        "| down-after-milliseconds | master | times | first job accepted | that job ended | refused | accepted and lost |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    num_lost = 0
    for down_after_ms in given.down_after_ms:
        with tempfile.TemporaryDirectory(prefix="sparke-failover-") as folder:
            num_lost += asyncio.run(measure(Path(folder), given.kinds, given.times, down_after_ms))
    return 1 if num_lost else 0


if __name__ == "__main__":
    sys.exit(main())
