"""Whoever waits for a job gets its end, whatever happens to the worker."""

import asyncio
import time

import pytest
from patience import PATIENCE_S, eventually

from app.domain.ids import ModelId, WorkerId
from app.domain.job import JobRecord, JobState
from app.domain.result import Failure
from app.errors import NotFound, NoWorker, StoreUnavailable, WaitTimeout
from app.jobs.types import WorkerInfo
from app.jobs.waiter import JobWaiter
from app.jobs.workers import WorkerRegistry

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")


WAIT_S = 600.0
"""How long is waited for jobs; who is not woken looks as seldom, unless a test says otherwise."""


def _waiter(bench, *, grace_s: float = 10.0, poll_s: float = WAIT_S) -> JobWaiter:
    return JobWaiter(bench.redis, bench.store(), bench.registry(), no_worker_grace_s=grace_s, poll_s=poll_s)


async def test_every_waiter_is_woken_by_the_end(bench):
    """Two waiters of one job get its record by notification, long before they would look themselves."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    async with _waiter(bench) as waiter:
        waits = [asyncio.create_task(waiter.wait(job.tenant_id, job.job_id, WAIT_S)) for _ in range(2)]
        [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
        await asyncio.sleep(0.1)
        await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
        records = await asyncio.wait_for(asyncio.gather(*waits), PATIENCE_S)
    assert [record.result for record in records] == [bench.result(reserved)] * 2


async def test_a_failure_is_returned_with_its_reason(bench):
    """The worker's own failure is a record, not an exception: the edge says what it means."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    await queue.fail(reserved, Failure("oom", "out of memory"))
    async with _waiter(bench) as waiter:
        record = await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)
    assert (record.state, record.failure) == (JobState.FAILED, Failure("oom", "out of memory"))


async def test_a_waiter_waits_through_a_redelivery(bench):
    """The worker dies and nobody serves the model for longer than the grace: the job has begun, and is not given up."""
    registry = WorkerRegistry(bench.redis, ttl_s=0.2)
    await registry.beat(WorkerInfo(WorkerId("w1"), "ready", (MODEL,), 0))
    job = bench.job()
    await bench.store().accept(job)
    [lost] = await bench.queue().reserve((MODEL,), WorkerId("w1"), 1, 0)
    async with _waiter(bench, grace_s=0.1, poll_s=0.05) as waiter:
        wait = asyncio.create_task(waiter.wait(job.tenant_id, job.job_id, WAIT_S))
        await asyncio.sleep(0.5)
        await bench.reclaimer().reclaim(MODEL)
        await asyncio.sleep(0.3)
        assert not wait.done()
        queue = bench.queue()
        [again] = await queue.reserve((MODEL,), await bench.live("w2"), 1, 0)
        await queue.commit(again, bench.result(again), bench.entries(again))
        record = await asyncio.wait_for(wait, PATIENCE_S)
    assert (record.state, record.fence) == (JobState.SUCCEEDED, again.fence)
    assert await bench.queue().commit(lost, bench.result(lost), bench.entries(lost)) is None
    assert await bench.memories().count(bench.memory()) == 1


async def test_a_short_outage_is_waited_for_and_a_long_one_told(bench):
    """Redis is away for some looks: the waiter goes on; for longer than its patience: StoreUnavailable."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    await queue.commit(reserved, bench.result(reserved), [])
    for num_failures, outage_s, ends in (
        (3, PATIENCE_S, JobState.SUCCEEDED),
        (10**6, 0.5, StoreUnavailable),
    ):
        store = _Away(bench.store(), num_failures)
        waiter = JobWaiter(bench.redis, store, bench.registry(), poll_s=0.02, outage_s=outage_s)
        [end] = await asyncio.gather(waiter.wait(job.tenant_id, job.job_id, WAIT_S), return_exceptions=True)
        assert (end.state if isinstance(end, JobRecord) else type(end)) is ends


class _Away:
    """A store that does not answer the first times."""

    def __init__(self, store, num_failures):
        self.store, self.num_failures = store, num_failures

    async def get(self, tenant_id, job_id):
        """Fail as often as told, then answer."""
        self.num_failures -= 1
        if self.num_failures >= 0:
            raise StoreUnavailable("away")
        return await self.store.get(tenant_id, job_id)

    async def settled(self, record):
        """No replicas are asked for."""
        return record


async def test_a_job_that_nobody_serves_is_given_up_after_a_grace(bench):
    """A worker of another model does not count; the job does not run when one comes later."""
    await bench.live("w2", ModelId("other"))
    job = bench.job()
    await bench.store().accept(job)
    began_s = time.monotonic()
    async with _waiter(bench, grace_s=0.3, poll_s=0.05) as waiter:
        with pytest.raises(NoWorker):
            await asyncio.wait_for(waiter.wait(job.tenant_id, job.job_id, WAIT_S), PATIENCE_S)
    assert time.monotonic() - began_s >= 0.3
    assert await bench.queue().reserve((MODEL,), await bench.live("w1"), 1, 0) == []


async def test_a_worker_that_comes_within_the_grace_is_in_time(bench):
    """Once a worker is there the grace is forgotten, however long the job stays queued."""
    job, registry, at_s = bench.job(), _Asked(bench.redis), 0.0
    await bench.store().accept(job)
    async with JobWaiter(
        *(bench.redis, bench.store(), registry),
        no_worker_grace_s=10.0,
        poll_s=0.02,
        monotonic_s=lambda: at_s,
    ) as waiter:
        wait = asyncio.create_task(waiter.wait(job.tenant_id, job.job_id, WAIT_S))
        await eventually(lambda: registry.answers[-1:] == [False])
        worker_id = await bench.live("w1")
        for at_s in (9.0, 11.0, 300.0):  # noqa: B007 - the clock
            num_before = len(registry.answers)
            await eventually(lambda: len(registry.answers) > num_before)  # noqa: B023 - called at once
        await asyncio.sleep(0.1)
        assert not wait.done()
        assert registry.answers[-3:] == [True] * 3
        queue = bench.queue()
        [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
        await queue.commit(reserved, bench.result(reserved), [])
        assert (await asyncio.wait_for(wait, PATIENCE_S)).state is JobState.SUCCEEDED


class _Asked(WorkerRegistry):
    """Keeps what was answered to who asked whether a model is served."""

    def __init__(self, redis):
        super().__init__(redis, ttl_s=WAIT_S)
        self.answers = []

    async def serving(self, model):
        """As the registry does."""
        self.answers.append(await super().serving(model))
        return self.answers[-1]


async def test_waiting_ends_in_time_and_leaves_the_job(bench):
    """WaitTimeout does not end the job."""
    await bench.live("w1")
    job = bench.job()
    await bench.store().accept(job)
    async with _waiter(bench) as waiter:
        with pytest.raises(WaitTimeout, match="queued"):
            await waiter.wait(job.tenant_id, job.job_id, 0.1)
        assert waiter._wakeups._waiting == {}
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.QUEUED


async def test_an_unknown_job_is_not_waited_for(bench):
    """NotFound comes at once."""
    job = bench.job()
    async with _waiter(bench) as waiter:
        with pytest.raises(NotFound):
            await waiter.wait(job.tenant_id, job.job_id, WAIT_S)


async def test_a_lost_notification_costs_one_look(bench):
    """Without any notification the end is seen at the next look."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    waiter = _waiter(bench, poll_s=0.1)  # not entered: it listens to nothing
    wait = asyncio.create_task(waiter.wait(job.tenant_id, job.job_id, WAIT_S))
    await asyncio.sleep(0.05)
    await queue.commit(reserved, bench.result(reserved), [])
    assert (await asyncio.wait_for(wait, PATIENCE_S)).state is JobState.SUCCEEDED
