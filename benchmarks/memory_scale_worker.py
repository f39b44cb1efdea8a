"""One worker's start and work on a large memory, for `memory_scale.py`, which starts it: figures as one line of JSON."""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from prometheus_client import CollectorRegistry
from scale_scene import FEATURE, PROMPT, SUBJECTS, WORDINGS, Prompts, Rows, chosen_of, direction_errors

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.memory.keys import MemoryKey
from app.memory.snapshot_keys import SnapshotKeys
from app.memory.store import MemoryStore
from app.redis.connection import connect
from app.telemetry.metrics import Metrics
from app.worker.memory.host_memory import Chosen, HostMemory
from app.worker.memory.memory_cache import Dimensions, MemoryCache
from app.worker.memory.neighbours import to_entries
from app.worker.memory.snapshot_keeper import SnapshotKeeper
from app.worker.memory.snapshots import SnapshotFolder
from sparke_engine.guidance.denoised import Extrapolation, denoised_push
from sparke_engine.guidance.presets import preset_named

LARGE = MemoryKey(TenantId("large"), LatentSpace("scale"), MemoryName("default"))
Figures = dict[str, Any]


def main() -> None:
    """Arguments: URL of Redis, folder of snapshots, when this process was started (Unix seconds), number of queries."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    url, folder, started_s, queries = sys.argv[1:]
    print(json.dumps(asyncio.run(_work(url, Path(folder), float(started_s), int(queries)))))


async def _work(url: str, folder: Path, started_s: float, queries: int) -> Figures:
    figures: Figures = {"the process has loaded its code, s": time.time() - started_s}
    redis = connect(url, timeout_s=120)
    is_first = _size_bytes(folder) == 0
    keeper = SnapshotKeeper(
        SnapshotFolder.open(folder, max_bytes=2**40), SnapshotKeys(redis), least_entries=1
    )
    store, metrics = MemoryStore(redis), Metrics(CollectorRegistry())
    cache = MemoryCache(store, budget_bytes=2**40, metrics=metrics, snapshots=keeper)
    prompts = Prompts.drawn(np.random.default_rng(0))
    start_s, cpu_s, before_bytes = time.perf_counter(), time.process_time(), _resident_bytes()
    memory = (await cache.sync(LARGE, Dimensions(FEATURE, PROMPT))).memory
    read_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    _step(chosen_of(memory, prompts.one))
    figures["time until the memory is read, s"] = read_s
    figures["time until the first step of guidance is done, from the start of the process, s"] = (
        time.time() - started_s
    )
    figures["microseconds an entry, and of CPU time"] = _two(
        1e6 * read_s / len(memory), 1e6 * cpu_s / len(memory)
    )
    figures["distinct prompts"] = memory.num_prompts
    figures["bytes an entry in the worker"] = (_resident_bytes() - before_bytes) / len(memory)
    figures["bytes an entry, counted"] = memory.size_bytes / len(memory)
    start_s = time.perf_counter()
    await keeper.save(cache)
    figures["snapshot: looked at and, where due, written, s"] = time.perf_counter() - start_s
    figures["snapshot: bytes an entry on disk"] = _size_bytes(folder) / len(memory)
    figures |= await _tail(cache)
    if is_first:
        figures |= _choices(memory, prompts, queries)
    figures["largest resident size, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    await redis.aclose()
    return figures


async def _tail(cache: MemoryCache) -> Figures:
    times = []
    for _ in range(50):
        start_s = time.perf_counter()
        await cache.sync(LARGE, Dimensions(FEATURE, PROMPT))
        times.append(time.perf_counter() - start_s)
    return {"following the log where nothing is new, p50 and p99, ms": _quantiles_ms(times)}


def _choices(memory: HostMemory, prompts: Prompts, queries: int) -> Figures:
    """Neighbours of popular, rare and the one large prompt, and the error of the direction that they give."""
    generator = np.random.default_rng(1)
    rare = generator.integers(SUBJECTS * WORDINGS // 2, SUBJECTS * WORDINGS - WORDINGS, queries)
    kinds = {
        "prompts by popularity": prompts.asked(queries, generator).embeddings,
        "rare prompts": prompts.known[rare],
        "the prompt of a twentieth": np.repeat(prompts.one[None], queries, axis=0),
        "the most popular subject": np.repeat(prompts.known[:1], queries, axis=0),
    }
    figures: Figures = {}
    for name, asked in kinds.items():
        times, qualified, cpu_s = [], [], time.process_time()
        for prompt in asked:
            start_s = time.perf_counter()
            qualified.append(chosen_of(memory, prompt).num_qualified)
            times.append(time.perf_counter() - start_s)
        cpu_ms = 1000 * (time.process_time() - cpu_s) / queries
        errors = _errors(memory, asked, generator)
        figures[f"{name}: choice of neighbours, p50 and p99, ms"] = _quantiles_ms(times)
        figures[f"{name}: choice of neighbours, CPU time, ms"] = cpu_ms
        figures[f"{name}: entries that qualify, median and largest"] = (
            f"{np.median(qualified):,.0f}, {max(qualified):,}"
        )
        figures[f"{name}: error of the direction, median and largest"] = errors
    return figures


def _errors(memory: HostMemory, asked: Rows, generator: np.random.Generator) -> str:
    distinct = np.unique(asked, axis=0)
    drawn = distinct[generator.permutation(len(distinct))[:8]]
    errors = [error for prompt in drawn for error in direction_errors(memory, prompt, generator)]
    return f"{np.median(errors):.3f}, {max(errors):.3f}" if errors else "all that qualify are neighbours"


def _step(chosen: Chosen) -> None:
    """One guided step of an image of 1024 px."""
    clean, prompted = torch.randn(2, 1, 4, 128, 128)
    extrapolation = Extrapolation(prompted, torch.full((1,), 7.5))
    preset, limit = preset_named("sdxl"), torch.ones(1)
    entries = to_entries(chosen)
    denoised_push(clean, entries, preset, eta=1.0, limit=limit, extrapolation=extrapolation, relax=0.5)


def _two(one: float, other: float) -> str:
    return f"{one:.1f}, {other:.1f}"


def _quantiles_ms(seconds: list[float]) -> str:
    return ", ".join(f"{1000 * float(np.quantile(seconds, share)):.1f}" for share in (0.5, 0.99))


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.snapshot"))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
