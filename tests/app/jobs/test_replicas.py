"""Jobs on a Redis with a replica: what is acknowledged survives the first server."""

import pytest
from patience import PATIENCE_S

from app.domain.ids import ModelId
from app.domain.job import JobState
from app.errors import NotReplicated
from app.jobs.store import JobStore
from app.jobs.types import Idempotency
from app.jobs.waiter import JobWaiter
from app.memory.forgetting import Forgotten, MemoryForgetter
from app.redis.connection import connect
from app.redis.replicas import Replicas

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
KEY = Idempotency("mine", "fingerprint")
FROZEN_S = 0.2  # how long one is waited for that is frozen


@pytest.fixture
async def bench(replicated, make_bench):
    """A bench on the first server."""
    client = connect(replicated.url, timeout_s=2 * PATIENCE_S)
    yield make_bench(client)
    await client.aclose()


def _store(bench, timeout_s: float) -> JobStore:
    replicas = Replicas(bench.redis, number=1, timeout_s=timeout_s)
    return JobStore(bench.redis, bench.limits, clock_ms=bench.clock_ms, replicas=replicas)


async def test_an_acknowledged_job_survives_a_fail_over(bench, replicated, make_bench):
    """Accepted, then the first server dies at once: the replica has the job, and a worker gets it there."""
    job = bench.job()
    await _store(bench, PATIENCE_S).accept(job)
    promoted = await replicated.fail_over()
    after = make_bench(promoted, now_ms=bench.now_ms)
    worker_id = await after.live("w1")
    await after.sweeper().sweep((MODEL,))
    [reserved] = await after.queue().reserve((MODEL,), worker_id, 1, 0)
    assert reserved.job == job
    await promoted.aclose()


async def test_a_job_that_is_not_acknowledged_runs_and_its_key_finds_it(bench, replicated):
    """The replica is frozen: the client is told so, the job has its turn, and asked again under its key it is the same."""
    job, again = bench.job(), bench.job()
    replicated.pause()
    for each in (job, again):
        with pytest.raises(NotReplicated):
            await _store(bench, FROZEN_S).accept(each, KEY)
    worker_id, queue = await bench.live("w1"), bench.queue()
    [reserved] = await queue.reserve((MODEL,), worker_id, 4, 0)
    assert reserved.job == job
    replicated.resume()
    assert (await _store(bench, PATIENCE_S).accept(again, KEY)).job_id == job.job_id


async def test_an_end_is_answered_once_a_replica_has_it(bench, replicated):
    """Who waits for a job that ended while the replica is frozen hears that; after the thaw it gets the record."""
    store = _store(bench, PATIENCE_S)
    job, worker_id, queue = bench.job(), await bench.live("w1"), bench.queue()
    await store.accept(job)
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    replicated.pause()
    await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    async with JobWaiter(bench.redis, _store(bench, FROZEN_S), bench.registry()) as waiter:
        with pytest.raises(NotReplicated):
            await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)
    replicated.resume()
    async with JobWaiter(bench.redis, store, bench.registry()) as waiter:
        record = await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)
    assert record.state is JobState.SUCCEEDED


async def test_a_cancel_is_acknowledged_once_a_replica_has_it(bench, replicated):
    """Frozen, it is refused although the job has ended; thawed, the second call acknowledges the first."""
    store, job = _store(bench, PATIENCE_S), bench.job()
    await store.accept(job)
    replicated.pause()
    with pytest.raises(NotReplicated):
        await _store(bench, FROZEN_S).cancel(job.tenant_id, job.job_id)
    replicated.resume()
    assert await store.cancel(job.tenant_id, job.job_id) is JobState.CANCELLED


async def test_what_was_forgotten_stays_so_after_a_fail_over(bench, replicated, make_bench):
    """Acknowledged once a replica has it; while that is frozen, nobody is told so."""
    job, queue = bench.job(num_images=3), bench.queue()
    await _store(bench, PATIENCE_S).accept(job)
    [reserved] = await queue.reserve((MODEL,), await bench.live("w1"), 4, 0)
    await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    memory, deed = bench.memory(), MemoryForgetter.forget_versions
    assert await deed(_forgetter(bench, PATIENCE_S), memory, [2]) == Forgotten(1, 4)
    replicated.pause()
    for act in (
        deed(_forgetter(bench, FROZEN_S), memory, [1]),
        _forgetter(bench, FROZEN_S).forget_all(memory),
    ):
        with pytest.raises(NotReplicated):
            await act
    replicated.resume()
    await _forgetter(bench, PATIENCE_S).forget_all(memory)
    promoted = await replicated.fail_over()
    assert await make_bench(promoted).memories().count(memory) == 0
    await promoted.aclose()


def _forgetter(bench, timeout_s: float) -> MemoryForgetter:
    replicas = Replicas(bench.redis, number=1, timeout_s=timeout_s)
    return MemoryForgetter(bench.redis, clock_ms=bench.clock_ms, replicas=replicas)
