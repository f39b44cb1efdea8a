"""A memory of a million entries, and ten thousand small ones: what they cost in Redis and in a worker, and how fast they are.

    python benchmarks/memory_scale.py --entries 1000000 --tenants 10000       some minutes on two cores, some 15 GiB
    python benchmarks/memory_scale.py --entries 20000 --tenants 100           the short form

Entries are synthetic and of the size that SDXL's have: a pooled feature of 1,024 halves, a prompt embedding of 512.
Prompts are clustered like real ones: subjects with many wordings each, popular ones far more often than others; one
single prompt has a twentieth of all entries. Measured are a worker's own parts, in one process: `MemoryCache`, which
follows the log in Redis, and `HostMemory`, which chooses neighbours; and the error of the push's direction, by the
sample that is chosen above the cap, against all that qualify.
"""

import argparse
import asyncio
import json
import platform
import resource
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.domain.request import Diversity
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.store import MemoryStore
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.telemetry.metrics import Metrics
from app.worker.host_memory import Chosen, HostMemory
from app.worker.memory_cache import Dimensions, MemoryCache
from app.worker.neighbours import neighbour_query
from sparke_engine.guidance.presets import preset_named

FEATURE, PROMPT = 1024, 512
SUBJECTS, WORDINGS = 2000, 10
SHARE_OF_ONE = 0.05
SPREAD = 0.25  # how far two wordings of a subject lie apart, in norms
WRITTEN_AT_ONCE = 1000
SPACE = LatentSpace("scale")
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Prompts:
    """Unit embeddings of all prompts, and how often each is asked for; the first is the one with many entries."""

    embeddings: Rows
    shares: NDArray[np.float64]

    @classmethod
    def drawn(cls, generator: np.random.Generator) -> "Prompts":
        """Subjects of Zipf's popularity, with wordings around each."""
        subjects = unit(generator.standard_normal((SUBJECTS, PROMPT)))
        noise = unit(generator.standard_normal((SUBJECTS * WORDINGS, PROMPT)))
        embeddings = unit(np.repeat(subjects, WORDINGS, axis=0) + SPREAD * noise)
        popularity = np.repeat(1 / np.arange(1, SUBJECTS + 1), WORDINGS)
        popularity[0] = 0
        shares = (1 - SHARE_OF_ONE) * popularity / popularity.sum()
        shares[0] = SHARE_OF_ONE
        return cls(embeddings, shares)


@dataclass
class Report:
    """All figures, by name, with the machine's."""

    where: str
    figures: dict[str, Any] = field(default_factory=dict)

    def tell(self, name: str, value: float | str) -> None:
        """Prints a figure, and keeps it."""
        self.figures[name] = value
        print(f"| {name} | {value if isinstance(value, str) else format(value, ',.4g')} |", flush=True)

    def quantiles_ms(self, name: str, seconds: list[float]) -> None:
        """The median and the 99th percentile."""
        p50, p99 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
        self.tell(f"{name}, p50 and p99, ms", f"{p50:.1f}, {p99:.1f}")


def unit(rows: NDArray[Any]) -> Rows:
    """Rows at unit norm."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def main() -> None:
    """Prints the figures and writes them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--entries-a-tenant", type=int, default=100)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--cache-mib", type=int, default=16_384)
    parser.add_argument("--out", type=Path, default=Path("runs/memory-scale"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    report = Report(f"{platform.node()}, {torch.get_num_threads()} CPU threads")
    print(f"{report.where}\n\n| | |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedRedis.start(Path(folder))
        try:
            asyncio.run(_measure(server.url, asked, report))
        finally:
            server.stop()
    (asked.out / "memory-scale.json").write_text(json.dumps(asdict(report), indent=1))


async def _measure(url: str, asked: argparse.Namespace, report: Report) -> None:
    redis = connect(url, timeout_s=120)
    try:
        prompts = Prompts.drawn(np.random.default_rng(0))
        large = MemoryKey(TenantId("large"), SPACE, MemoryName("default"))
        empty_bytes = await _used(redis)
        await _fill(redis, large, asked.entries, prompts)
        report.tell("bytes an entry in Redis", (await _used(redis) - empty_bytes) / asked.entries)
        cache = MemoryCache(
            MemoryStore(redis), budget_bytes=asked.cache_mib * 2**20, metrics=Metrics(CollectorRegistry())
        )
        before_bytes, start_s = _resident(), time.perf_counter()
        synced = await cache.sync(large, Dimensions(FEATURE, PROMPT))
        report.tell("time until a worker has read all entries, s", time.perf_counter() - start_s)
        report.tell("bytes an entry in the worker", (_resident() - before_bytes) / asked.entries)
        await _time_tail(cache, large, report)
        _time_choice(synced.memory, prompts, asked.queries, report)
        await _time_small(redis, cache, asked, report)
    finally:
        await redis.aclose()


async def _fill(redis: Redis, memory: MemoryKey, size: int, prompts: Prompts) -> None:
    """Writes entries as the script that commits them would, many at once."""
    generator = np.random.default_rng(size)
    for start in range(0, size, WRITTEN_AT_ONCE):
        number = min(WRITTEN_AT_ONCE, size - start)
        asked = generator.choice(len(prompts.shares), number, p=prompts.shares)
        features = unit(generator.standard_normal((number, FEATURE)) + 2 * _likeness(asked))
        pipe = redis.pipeline(transaction=False)
        for row in range(number):
            version = start + row + 1
            entry = MemoryEntry(
                image_id=image_id(make_job_id(version, generator.bytes(8)), 0),
                seed=version,
                created_at_ms=version,
                feature=features[row].astype(np.float16),
                prompt_embedding=prompts.embeddings[asked[row]].astype(np.float16),
            )
            pipe.xadd(log_key(memory), {"e": encode_entry(entry)}, id=f"{version}-0")
        await pipe.execute()
    await redis.hset(meta_key(memory), mapping={"version": size, "created_at_ms": 1})
    await redis.sadd(index_key(memory.tenant_id), index_member(memory))


def _likeness(asked: NDArray[np.int64]) -> Rows:
    """What images of a prompt have in common: a direction for each, drawn anew from its number."""
    rows = [np.random.default_rng(int(number)).standard_normal(FEATURE) for number in np.unique(asked)]
    found: Rows = np.stack(rows)[np.searchsorted(np.unique(asked), asked)].astype(np.float32)
    return found


async def _time_tail(cache: MemoryCache, memory: MemoryKey, report: Report) -> None:
    times = []
    for _ in range(50):
        start_s = time.perf_counter()
        await cache.sync(memory, Dimensions(FEATURE, PROMPT))
        times.append(time.perf_counter() - start_s)
    report.quantiles_ms("following the log where nothing is new", times)


def _time_choice(memory: HostMemory, prompts: Prompts, queries: int, report: Report) -> None:
    """Neighbours of popular, rare and the one large prompt, and the error of the direction that they give."""
    generator = np.random.default_rng(1)
    kinds = {
        "a prompt by popularity": generator.choice(len(prompts.shares), queries, p=prompts.shares),
        "a rare prompt": generator.integers(len(prompts.shares) // 2, len(prompts.shares), queries),
        "the prompt of a twentieth": np.zeros(max(queries // 10, 5), np.int64),
    }
    for name, asked in kinds.items():
        times, qualified, errors = [], [], []
        for number in asked:
            start_s = time.perf_counter()
            chosen = _chosen(memory, prompts.embeddings[number], cap=None)
            times.append(time.perf_counter() - start_s)
            qualified.append(chosen.num_qualified)
        for number in asked[:5]:
            errors += _direction_errors(memory, prompts.embeddings[number], generator)
        report.quantiles_ms(f"{name}: choice of neighbours", times)
        report.tell(f"{name}: entries that qualify, median", float(np.median(qualified)))
        report.tell(f"{name}: error of the direction, median and largest", _two(errors))


def _chosen(memory: HostMemory, prompt: Rows, *, cap: int | None) -> Chosen:
    rule = preset_named("sdxl")
    if cap is not None:
        rule = replace(rule, max_neighbours=cap)
    return memory.select(
        neighbour_query(rule, Diversity(strength=1.0), torch.from_numpy(prompt), version=len(memory))
    )


def _direction_errors(memory: HostMemory, prompt: Rows, generator: np.random.Generator) -> list[float]:
    """‖D̂ − D‖/‖D‖, D by all that qualify and D̂ by the sample, for three latents."""
    whole, sample = _chosen(memory, prompt, cap=len(memory)), _chosen(memory, prompt, cap=None)
    if not whole.num_qualified:
        return []
    errors = []
    for _ in range(3):
        own = unit(whole.features.mean(0)[None] + 0.5 * unit(generator.standard_normal((1, FEATURE))))[0]
        exact, estimated = (_direction(own, prompt, one) for one in (whole, sample))
        errors.append(float(np.linalg.norm(estimated - exact) / np.linalg.norm(exact)))
    return errors


def _direction(own: Rows, prompt: Rows, chosen: Chosen) -> NDArray[np.float64]:
    """(I − ffᵀ) Σ w_j (f_j − f) of the preset `sdxl`, in float64."""
    preset = preset_named("sdxl")
    features = chosen.features.astype(np.float64)
    near = np.exp(-(1 - features @ own) * preset.power / preset.latent_bandwidth**2)
    asked = np.exp(
        -(1 - chosen.prompt_embeddings.astype(np.float64) @ prompt)
        * preset.power
        / preset.prompt_bandwidth**2
    )
    weights = chosen.weights * near * asked
    direction = weights @ features - weights.sum() * own
    return np.asarray(direction - own * (direction @ own))


async def _time_small(redis: Redis, cache: MemoryCache, asked: argparse.Namespace, report: Report) -> None:
    """Ten thousand tenants on one worker: the first request of each, and those that come again."""
    prompts = Prompts.drawn(np.random.default_rng(0))
    keys = [
        MemoryKey(TenantId(f"small-{number}"), SPACE, MemoryName("default"))
        for number in range(asked.tenants)
    ]
    used = await _used(redis)
    for key in keys:
        await _fill(redis, key, asked.entries_a_tenant, prompts)
    report.tell(
        "small tenants: bytes an entry in Redis",
        (await _used(redis) - used) / (len(keys) * asked.entries_a_tenant),
    )
    before_bytes = _resident()
    for name in ("first", "second"):
        times = []
        for key in keys:
            start_s = time.perf_counter()
            synced = await cache.sync(key, Dimensions(FEATURE, PROMPT))
            _chosen(synced.memory, prompts.embeddings[0], cap=None)
            times.append(time.perf_counter() - start_s)
        report.quantiles_ms(f"small tenants: memory and neighbours of the {name} request", times)
    report.tell("small tenants: held at the end", float(cache.num_memories))
    report.tell(
        "small tenants: bytes an entry in the worker",
        (_resident() - before_bytes) / (len(keys) * asked.entries_a_tenant),
    )
    report.tell(
        "the worker's largest resident size, MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _two(values: list[float]) -> str:
    return f"{np.median(values):.3f}, {max(values):.3f}" if values else "none qualify"


if __name__ == "__main__":
    main()
