"""One key, one job: whoever sends a request again, and however often."""

import asyncio
import dataclasses

import pytest

from app.domain.ids import ModelId
from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import IdempotencyMismatch, NotFound, QueueFull, StorageFull
from app.jobs import keys
from app.jobs.arrivals import NO_WORKER
from app.jobs.store import JobStore
from app.jobs.transitions import EXPIRED
from app.jobs.types import Idempotency, JobLimits

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
KEY = Idempotency("mine", "fingerprint")


async def test_sixteen_at_once_are_one_job(bench):
    """Sixteen jobs with one key: all stand for the first that was written, and no other is left anywhere."""
    jobs = [bench.job() for _ in range(16)]
    accepted = await asyncio.gather(*(bench.store().accept(job, KEY) for job in jobs))
    stand_for = [each.job_id for each in accepted]
    assert len(set(stand_for)) == 1
    assert await bench.store().count_open(MODEL) == 1
    assert await bench.redis.zcard(keys.waiting_key(jobs[0].tenant_id, MODEL)) == 1
    for job in jobs:
        if job.job_id != stand_for[0]:
            with pytest.raises(NotFound):
                await bench.store().get(job.tenant_id, job.job_id)


async def test_the_key_stands_for_its_job_after_the_end(bench):
    """The job was done in between: the key names it still, and nothing is made again."""
    job, again = bench.job(), bench.job()
    worker_id, queue = await bench.live("w1"), bench.queue()
    await bench.store().accept(job, KEY)
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    await queue.commit(reserved, bench.result(reserved), [])
    assert (await bench.store().accept(again, KEY)).job_id == job.job_id
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.SUCCEEDED
    assert await queue.reserve((MODEL,), worker_id, 1, 0) == []


async def test_another_request_under_the_key_is_refused(bench):
    """Nothing of it is kept, and the first one is untouched."""
    job, other = bench.job(), bench.job()
    await bench.store().accept(job, KEY)
    with pytest.raises(IdempotencyMismatch):
        await bench.store().accept(other, dataclasses.replace(KEY, fingerprint="another"))
    assert await bench.store().count_open(MODEL) == 1


async def test_keys_of_tenants_and_other_keys_are_apart(bench):
    """The same key of another tenant, and another key of the same, are jobs of their own."""
    jobs = [bench.job(), bench.job("other"), bench.job()]
    given = [KEY, KEY, dataclasses.replace(KEY, key="mine too")]
    stand_for = [(await bench.store().accept(job, key)).job_id for job, key in zip(jobs, given, strict=True)]
    assert stand_for == [job.job_id for job in jobs]


async def test_a_refused_job_leaves_its_key_free(bench):
    """The queue was full; sent again with the key once there is room, it is accepted."""
    bench.limits = JobLimits(max_waiting_per_tenant=1)
    first, refused = bench.job(), bench.job()
    await bench.store().accept(first)
    with pytest.raises(QueueFull):
        await bench.store().accept(refused, KEY)
    await bench.store().cancel(first.tenant_id, first.job_id)
    again = bench.job()
    assert (await bench.store().accept(again, KEY)).job_id == again.job_id


async def test_a_key_is_forgotten_in_time(bench):
    """The record has a time to live from its acceptance on."""
    bench.limits = JobLimits(idempotency_ttl_s=60)
    job = bench.job()
    await bench.store().accept(job, KEY)
    ttl_ms = await bench.redis.pttl(keys.idempotency_key(job.tenant_id, KEY.key))
    assert 50_000 < ttl_ms <= 60_000


async def test_a_key_is_answered_though_the_service_is_full(bench):
    """Its own job has the last place: sent again it is that job, and without its key, or under another, refused."""
    bench.limits = JobLimits(max_open=1)
    job, again = bench.job(), bench.job()
    await bench.store().accept(job, KEY)
    assert (await bench.store().accept(again, KEY)).job_id == job.job_id
    for key in (None, Idempotency("another", "fingerprint")):
        with pytest.raises(QueueFull):
            await bench.store().accept(again, key)
    with pytest.raises(IdempotencyMismatch):
        await bench.store().accept(again, dataclasses.replace(KEY, fingerprint="another"))


async def _end(bench, job, how):
    if how == "no_worker":
        await bench.store().fail_if_queued(job.tenant_id, job.job_id, NO_WORKER)
        return
    if how == "cancelled":
        await bench.store().cancel(job.tenant_id, job.job_id)
        return
    worker_id, queue = await bench.live("w1"), bench.queue()
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    await queue.fail(reserved, EXPIRED if how == "expired" else Failure(how, "it went wrong"))


@pytest.mark.parametrize(
    ("how", "is_free"),
    [("no_worker", True), ("expired", True), ("cancelled", False), ("generation_failed", False)],
)
async def test_a_job_that_nobody_had_time_for_leaves_its_key_free(bench, how, is_free):
    """Sent again, also by many at once, it is one new job; what was cancelled, or failed by itself, is not made again."""
    first, again = bench.job(), [bench.job() for _ in range(4)]
    await bench.store().accept(first, KEY)
    await _end(bench, first, how)
    accepted = await asyncio.gather(*(bench.store().accept(job, KEY) for job in again))
    stand_for = {each.job_id for each in accepted}
    assert len(stand_for) == 1
    assert (first.job_id not in stand_for) is is_free
    assert await bench.store().count_open(MODEL) == is_free


class _NoRoom:
    """Nothing fits any more."""

    async def check(self, job, _quotas):
        """Raises StorageFull."""
        raise StorageFull(f"no room for {job.job_id}")


@pytest.mark.parametrize(
    ("how", "is_free"), [("no_worker", True), ("expired", True), ("cancelled", False), (None, False)]
)
@pytest.mark.parametrize("full", [QueueFull, StorageFull])
async def test_where_all_is_full_a_key_gives_back_no_job_that_it_would_leave(bench, full, how, is_free):
    """The refusal itself: an answer that names a job that expired would promise what will not be made. Any other job is named."""
    first, again = bench.job(), bench.job()
    await bench.store().accept(first, KEY)
    if how is not None:
        await _end(bench, first, how)
    await bench.store().accept(bench.job("other"))
    limits, room = (JobLimits(max_open=1), None) if full is QueueFull else (bench.limits, _NoRoom())
    store = JobStore(bench.redis, limits, clock_ms=bench.clock_ms, room=room)
    if is_free:
        with pytest.raises(full):
            await store.accept(again, KEY)
        assert (await bench.store().accept(again, KEY)).job_id == again.job_id
    else:
        assert (await store.accept(again, KEY)).job_id == first.job_id
