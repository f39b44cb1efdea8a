"""Two whole workers, one tenant, two hundred requests at once: one memory, in one order, and both hold it."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.domain.job import JobState
from app.jobs.waiter import JobWaiter
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.keys import MemoryKey
from app.worker.loops.batcher import Batcher
from app.worker.loops.loop import LoopParts, WorkerLoop
from app.worker.memory.host_memory import NeighbourQuery
from app.worker.memory.selection import unit_rows
from app.worker.patience import Patience

pytestmark = pytest.mark.anyio

NUM_REQUESTS = 200
KEY = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("default"))


@asynccontextmanager
async def _looping(bench):
    """A worker's own loop, which takes jobs until the end."""
    stop = asyncio.Event()
    parts = LoopParts(
        source=bench.queue,
        runner=bench.runner,
        batcher=Batcher(max_images=8, window_ms=5),
        models=(bench.model.spec.model_id,),
        worker_id=bench.worker_id,
        patience=Patience(stop, now_ms, bench.metrics),
        clock_ms=now_ms,
        stop=stop,
        metrics=bench.metrics,
    )
    task = asyncio.create_task(WorkerLoop(parts).run())
    try:
        yield
    finally:
        stop.set()
        await task


async def test_two_hundred_requests_at_once(open_bench, make_job):
    """Every image is an entry, once; versions have no gap; each worker's copy is what Redis has, in its order and to the bit."""
    benches = [open_bench("one"), open_bench("other")]
    redis, store = benches[0].redis, benches[0].jobs
    now = now_ms()
    jobs = [
        make_job(
            number,
            num_images=1 + number % 3,
            seed=1000 * number,
            prompt=f"a {number % 7}",
            created_at_ms=now,
            deadline_at_ms=now + 200_000,
        )
        for number in range(NUM_REQUESTS)
    ]
    registry = WorkerRegistry(redis)  # which nobody tells that there are workers
    async with JobWaiter(redis, store, registry, no_worker_grace_s=200, poll_s=0.1) as waiter:

        async def ask(job):
            await store.accept(job)
            return await waiter.wait(job.tenant_id, job.job_id, 200)

        async with _looping(benches[0]), _looping(benches[1]):
            records = await asyncio.gather(*map(ask, jobs))
    assert {record.state for record in records} == {JobState.SUCCEEDED}
    assert {record.worker_id for record in records} == {bench.worker_id for bench in benches}

    entries = await benches[0].memory_store.read_entries_after(KEY, 0, 10_000)
    made = sorted(image.image_id for record in records for image in record.result.images)
    assert sorted(entry.image_id for _, entry in entries) == made
    assert [version for version, _ in entries] == list(range(1, len(made) + 1))
    for bench in benches:
        held = await _held(bench)
        assert held.versions.tolist() == [version for version, _ in entries]
        for name, found in (("feature", held.features), ("prompt_embedding", held.prompt_embeddings)):
            expected = unit_rows(np.stack([getattr(entry, name) for _, entry in entries]))
            assert np.array_equal(found, expected), f"{name} of worker {bench.worker_id}"


async def _held(bench):
    """All that a worker's copy holds, after it has followed the log."""
    assert bench.memories.num_memories == 1
    synced = await bench.memories.sync(KEY, bench.model.dimensions)
    anything = np.zeros(bench.model.dimensions.prompt, np.float32)
    return synced.memory.select(NeighbourQuery(anything, synced.version, -1.0, 0.0, 10_000))
