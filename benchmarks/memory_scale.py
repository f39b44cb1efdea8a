"""A memory of a million entries, and ten thousand small ones: what they cost in Redis and in a worker, and how fast they are.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/memory_scale.py --entries 1000000 --tenants 10000    some minutes, 8 GiB
    python benchmarks/memory_scale.py --entries 20000 --tenants 100                                the short form

Entries are synthetic and of the size that SDXL's have: a pooled feature of 1,024 halves, a prompt embedding of 512.
Prompts are clustered like real ones: subjects of which popular ones are asked for far more often, half of all in one of
ten wordings, half in a wording of their own; one single prompt has a twentieth of all entries.

Each worker is a process of its own that starts, reads the memory, chooses neighbours and does one step of guidance: first
from the log in Redis, and then from the snapshot that the first one left. Redis' append-only file is off, since it is the
memory of Redis that is measured. Before the second start the snapshot is taken out of the page cache.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from scale_scene import FEATURE, PROMPT, Prompts, Report, chosen_of, drawn_rows

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.store import MemoryStore
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.telemetry.metrics import Metrics
from app.worker.memory.memory_cache import Dimensions, MemoryCache

SPACE = LatentSpace("scale")
LARGE = MemoryKey(TenantId("large"), SPACE, MemoryName("default"))
BUDGET_BYTES = 2 * 2**30  # the default of SPARKE_MEMORY_CACHE_BYTES


def main() -> None:
    """Prints the figures and writes them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--entries-a-tenant", type=int, default=100)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/memory-scale"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    report = Report.begin()
    with tempfile.TemporaryDirectory(dir=asked.out) as folder:
        server = EmbeddedRedis.start(Path(folder))
        try:
            asyncio.run(_measure(server.url, Path(folder), asked, report))
        finally:
            server.stop()
    (asked.out / "memory-scale.json").write_text(json.dumps(asdict(report), indent=1))


async def _measure(url: str, folder: Path, asked: argparse.Namespace, report: Report) -> None:
    redis = connect(url, timeout_s=120)
    try:
        await redis.config_set("appendonly", "no")
        prompts = Prompts.drawn(np.random.default_rng(0))
        empty_bytes = await _used(redis)
        await _fill(redis, LARGE, asked.entries, prompts)
        report.tell("bytes an entry in Redis", (await _used(redis) - empty_bytes) / asked.entries)
        for start in ("the log", "a snapshot"):
            for name, value in (await _worker(url, folder / "snapshots", asked.queries)).items():
                report.tell(f"from {start}: {name}", value)
            report.tell_load()
            _forget_pages(folder / "snapshots")
        await redis.flushall()
        await _small(redis, asked, report)
    finally:
        await redis.aclose()


async def _worker(url: str, snapshots: Path, queries: int) -> dict[str, Any]:
    """What a worker of its own says."""
    command = (sys.executable, str(Path(__file__).with_name("memory_scale_worker.py")), url, str(snapshots))
    started_s = time.time()
    child = await asyncio.create_subprocess_exec(
        *command, str(started_s), str(queries), stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    told, _ = await child.communicate()
    if child.returncode:
        raise SystemExit(f"the worker ended with {child.returncode}")
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


async def _fill(redis: Redis, memory: MemoryKey, size: int, prompts: Prompts) -> None:
    """Writes entries as the script that commits them would, many at once."""
    generator = np.random.default_rng(size)
    for rows in drawn_rows(prompts, size, generator):
        pipe = redis.pipeline(transaction=False)
        for row, version in enumerate(rows.versions.tolist()):
            entry = MemoryEntry(
                image_id=image_id(make_job_id(version, generator.bytes(8)), 0),
                seed=version,
                created_at_ms=version,
                feature=rows.features[row],
                prompt_embedding=rows.prompt_embeddings[row],
            )
            pipe.xadd(log_key(memory), {"e": encode_entry(entry)}, id=f"{version}-0")
        await pipe.execute()
    await redis.hset(meta_key(memory), mapping={"version": size, "created_at_ms": 1})
    await redis.sadd(index_key(memory.tenant_id), index_member(memory))


def _forget_pages(folder: Path) -> None:
    """Lets the next reading of the files come from the disk."""
    for path in folder.glob("*.snapshot"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _small(redis: Redis, asked: argparse.Namespace, report: Report) -> None:
    """Ten thousand tenants on one worker: the first request of each, and later ones, with room for all and without."""
    prompts, store = Prompts.drawn(np.random.default_rng(0)), MemoryStore(redis)
    keys = [
        MemoryKey(TenantId(f"small-{number}"), SPACE, MemoryName("default"))
        for number in range(asked.tenants)
    ]
    used, num_entries = await _used(redis), asked.tenants * asked.entries_a_tenant
    for key in keys:
        await _fill(redis, key, asked.entries_a_tenant, prompts)
    report.tell("small tenants: bytes an entry in Redis", (await _used(redis) - used) / num_entries)
    before_bytes = _resident()
    for room, budget_bytes in (("all", 2**40), ("2 GiB of them", BUDGET_BYTES)):
        cache = MemoryCache(store, budget_bytes=budget_bytes, metrics=Metrics(CollectorRegistry()))
        request = partial(_request, cache, prompts)
        firsts = [await request(key) for key in keys]
        report.quantiles_ms(f"small tenants, room for {room}: first request of each", firsts)
        later = np.random.default_rng(1).permutation(len(keys))
        report.quantiles_ms(
            f"small tenants, room for {room}: later requests, in any order",
            [await request(keys[place]) for place in later],
        )
        report.tell(f"small tenants, room for {room}: memories held", float(cache.num_memories))
        report.tell(f"small tenants, room for {room}: counted, GiB", cache.size_bytes / 2**30)
        if budget_bytes > BUDGET_BYTES:
            report.tell(
                "small tenants: bytes an entry in the worker", (_resident() - before_bytes) / num_entries
            )
        del cache, request


async def _request(cache: MemoryCache, prompts: Prompts, key: MemoryKey) -> float:
    """Seconds until a request has its neighbours."""
    start_s = time.perf_counter()
    synced = await cache.sync(key, Dimensions(FEATURE, PROMPT))
    chosen_of(synced.memory, prompts.one)
    return time.perf_counter() - start_s


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
