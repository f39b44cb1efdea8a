"""The service at full load for a long while: do memory, open files and keys stay where they are?

    python benchmarks/soak.py --minutes 30

A weightless engine, one API, one worker, a real Redis; requests for images, jobs that are followed by their events, jobs that
are cancelled, at full load from this process. Times to live are short (a minute), so that what is kept for a while is
forgotten as fast as it comes. Memories alone grow, and are counted apart: a tenant's name changes every `--rename`
seconds, so that no single one gets long. Every few seconds: resident memory and open files of each process, keys in
Redis and its memory. The slope of each over the second half, with the first half as warm-up, is printed; the picture and
the figures go to `--out`.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib import pyplot as plt
from redis.asyncio import Redis
from service_load import client_of, generate
from service_scene import MODEL, Scene, scene

from app.redis.connection import connect

_SHORT = {"job_ttl_s": "60", "idempotency_ttl_s": "60", "image_ttl_s": "60", "image_url_ttl_s": "60"}
_MEMORIES = "sparke:{t:*}:memory:*"


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment: `copies_bytes` are the worker's copies of memories, `other_keys` Redis' keys but for memories'."""

    at_s: float
    done: int
    rss_bytes: dict[str, int]
    open_files: dict[str, int]
    copies_bytes: int
    redis_bytes: int
    memory_keys: int
    other_keys: int


def main() -> None:
    """Loads, samples, prints, draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("--every-s", type=float, default=5.0)
    parser.add_argument("--rename", type=float, default=60.0, help="seconds that a memory is written to")
    parser.add_argument("--cache-mib", type=float, help="bound on the worker's copies of memories")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    bounds = {} if asked.cache_mib is None else {"memory_cache_bytes": str(int(asked.cache_mib * 2**20))}
    with (
        tempfile.TemporaryDirectory() as folder,
        scene(Path(folder), num_workers=1, tenants=("acme",), **_SHORT, **bounds) as there,
    ):
        samples = asyncio.run(soak(there, asked))
    where = (
        f"{platform.node()}, {os.cpu_count()} cores, {asked.minutes:g} minutes, {asked.at_a_time} at a time"
    )
    rows = list(slopes(samples))
    report = {"where": where, "rows": rows, "samples": [asdict(one) for one in samples]}
    (asked.out / "soak.json").write_text(json.dumps(report))
    draw(samples, asked.out / "soak.png")
    print(
        f"{where}; {samples[-1].done} requests\n\n| | at half time | at the end | change an hour |\n|---|---|---|---|"
    )
    for name, half, end, an_hour in rows:
        print(f"| {name} | {half:.4g} | {end:.4g} | {an_hour:+.3g} |")


async def soak(there: Scene, asked: argparse.Namespace) -> list[Sample]:
    """Samples from the first request to the last."""
    began_s, samples = time.monotonic(), []
    shared = _Load(began_s + 60 * asked.minutes, asked.rename)
    redis = connect(there.redis_url)
    async with client_of(there, "acme", asked.at_a_time) as client:
        loads = [asyncio.create_task(_load(client, shared)) for _ in range(asked.at_a_time)]
        while time.monotonic() < shared.until_s:
            samples.append(await _sample(there, redis, time.monotonic() - began_s, shared.done))
            await asyncio.sleep(asked.every_s)
        await asyncio.gather(*loads)
    await redis.aclose()
    return samples


@dataclass
class _Load:
    """What all loads share: until when, how long a memory is written to, requests begun and done."""

    until_s: float
    rename_s: float
    begun: int = 0
    done: int = 0


async def _load(client: httpx.AsyncClient, shared: _Load) -> None:
    """One request after another: mostly images, now and then a job that is followed, or one that is cancelled."""
    while time.monotonic() < shared.until_s:
        shared.begun += 1
        number = shared.begun
        memory = {"name": f"m{int(time.monotonic() / shared.rename_s)}"}
        body = {"prompt": f"a star {number % 40}", "model": MODEL, "diversity": {"memory": memory}}
        if number % 10 == 0:
            await _follow(client, {**body, "num_previews": 1, "steps": 4})
        elif number % 10 == 1:
            job = await client.post("/v1/jobs", json=body, headers={"idempotency-key": f"soak-{number}"})
            job.raise_for_status()
            (await client.post(f"/v1/jobs/{job.json()['id']}/cancel")).raise_for_status()
        elif number % 10 == 2:
            await generate(client)
        else:
            answer = await client.post("/v1/images/generations", json={**body, "response_format": "url"})
            answer.raise_for_status()
        shared.done += 1


async def _follow(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    job = await client.post("/v1/jobs", json=body)
    job.raise_for_status()
    async with client.stream("GET", f"/v1/jobs/{job.json()['id']}/events") as events:
        async for _ in events.aiter_lines():
            pass


async def _sample(there: Scene, redis: Redis, at_s: float, done: int) -> Sample:
    memory_keys = 0
    async for _ in redis.scan_iter(match=_MEMORIES, count=1000):
        memory_keys += 1
    pids = {**there.pids, "redis": int((await redis.info("server"))["process_id"])}
    return Sample(
        at_s=at_s,
        done=done,
        rss_bytes={name: _rss_bytes(pid) for name, pid in pids.items()},
        open_files={name: _num_open_files(pid) for name, pid in pids.items()},
        copies_bytes=await _copies_bytes(there),
        redis_bytes=int((await redis.info("memory"))["used_memory"]),
        memory_keys=memory_keys,
        other_keys=int(await redis.dbsize()) - memory_keys,
    )


async def _copies_bytes(there: Scene) -> int:
    async with httpx.AsyncClient() as client:
        told = [(await client.get(url)).text for url in there.metrics_urls]
    lines = [
        line for text in told for line in text.splitlines() if line.startswith("sparke_memory_cache_bytes ")
    ]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _num_open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def series(samples: list[Sample]) -> dict[str, list[float]]:
    """Each quantity over time, memory in MiB."""
    names = samples[0].rss_bytes
    return {
        **{f"{name}: resident, MiB": [one.rss_bytes[name] / 2**20 for one in samples] for name in names},
        **{f"{name}: open files": [float(one.open_files[name]) for one in samples] for name in names},
        "worker's copies of memories, MiB": [one.copies_bytes / 2**20 for one in samples],
        "Redis' own count, MiB": [one.redis_bytes / 2**20 for one in samples],
        "keys of memories": [float(one.memory_keys) for one in samples],
        "other keys": [float(one.other_keys) for one in samples],
    }


def slopes(samples: list[Sample]) -> list[tuple[str, float, float, float]]:
    """Name, value at half time, at the end, and change an hour: a straight line through the second half."""
    half = len(samples) // 2
    hours = np.array([one.at_s for one in samples[half:]]) / 3600
    return [
        (name, values[half], values[-1], float(np.polyfit(hours, values[half:], 1)[0]))
        for name, values in series(samples).items()
    ]


def draw(samples: list[Sample], path: Path) -> None:
    """Memory, open files and keys over time."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), constrained_layout=True)
    minutes = [one.at_s / 60 for one in samples]
    for name, values in series(samples).items():
        axis = axes[0 if "MiB" in name else 1 if "files" in name else 2]
        axis.plot(minutes, values, label=name)
    for axis in axes:
        axis.set_xlabel("minutes")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
