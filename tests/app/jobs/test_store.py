"""Acceptance and its bounds, and what the API may end."""

from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from app.domain.ids import ModelId, TenantId, WorkerId
from app.domain.job import JobState, Lane
from app.domain.result import Failure
from app.errors import NotFound, QueueFull
from app.jobs.arrivals import estimate_retry_s
from app.jobs.keys import stream_key
from app.jobs.types import Idempotency, JobLimits

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
REASON = Failure("no_worker", "nobody")


async def test_an_unknown_job_is_not_found(bench):
    """Also another tenant's job is, so ids tell nothing."""
    job = bench.job("acme")
    await bench.store().accept(job)
    with pytest.raises(NotFound, match=job.job_id):
        await bench.store().get(TenantId("other"), job.job_id)


async def test_accepting_twice_is_accepting_once(bench):
    """A repeated call, as after a lost answer, neither adds a job nor resets one that has run."""
    job = bench.job()
    await bench.store().accept(job)
    await bench.store().accept(job)
    queue = bench.queue()
    [reserved] = await queue.reserve((MODEL,), WorkerId("w"), 5, 0)
    await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    await bench.store().accept(job)
    assert await queue.reserve((MODEL,), WorkerId("w"), 5, 0) == []
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.SUCCEEDED


async def test_a_full_tenant_is_refused_and_others_are_not(bench):
    """The bound is the tenant's own; the refused job leaves no trace."""
    bench.limits = JobLimits(max_waiting_per_tenant=2)
    for _ in range(2):
        await bench.store().accept(bench.job("acme"))
    refused = bench.job("acme")
    with pytest.raises(QueueFull, match="2 jobs waiting") as caught:
        await bench.store().accept(refused)
    assert 1 <= caught.value.retry_after_s <= 120
    with pytest.raises(NotFound):
        await bench.store().get(refused.tenant_id, refused.job_id)
    assert await bench.store().count_open(MODEL) == 2
    await bench.store().accept(bench.job("other"))


async def test_a_stream_that_cannot_be_asked_is_not_an_empty_one(bench):
    """No stream yet is none held; what Redis refuses to tell, a right that is missing among it, is an error."""
    assert await bench.store().count_held(MODEL) == 0
    await bench.redis.set(stream_key(MODEL), b"no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await bench.store().count_held(MODEL)


async def test_a_full_service_refuses_everybody(bench):
    """The bound over all tenants counts unfinished jobs, and an end makes room."""
    bench.limits = JobLimits(max_open=2)
    await bench.store().accept(bench.job("acme"))
    await bench.store().accept(bench.job("other"))
    with pytest.raises(QueueFull, match="2 unfinished jobs"):
        await bench.store().accept(bench.job("third"))
    queue = bench.queue()
    [reserved] = await queue.reserve((MODEL,), WorkerId("w"), 1, 0)
    await queue.fail(reserved, REASON)
    await bench.store().accept(bench.job("third"))


async def test_an_accepted_job_says_how_many_wait(bench):
    """With it, of its tenant and model alone; the same job again adds none, nor does one that another stands for."""
    bench.limits = JobLimits(max_waiting_per_tenant=5)
    key, first, second = Idempotency("mine", "fingerprint"), bench.job(), bench.job()
    await bench.store().accept(bench.job("other"))
    said = [await bench.store().accept(job, key) for job in (first, first, second)]
    said.append(await bench.store().accept(second))
    assert [accepted.job_id for accepted in said] == [first.job_id] * 3 + [second.job_id]
    assert [(accepted.num_waiting, accepted.num_free) for accepted in said] == [(1, 4)] * 3 + [(2, 3)]


async def test_a_full_queue_says_when_all_of_it_will_have_left(bench):
    """Four jobs, the oldest of 10 s ago: a place in 3 s, all of them in 10 s."""
    bench.limits = JobLimits(max_waiting_per_tenant=4)
    for _ in range(4):
        await bench.store().accept(bench.job())
    bench.now_ms += 9_990  # each job has moved the clock on by 1 ms
    with pytest.raises(QueueFull) as caught:
        await bench.store().accept(bench.job())
    assert (caught.value.retry_after_s, caught.value.limit, caught.value.reset_after_s) == (3, 4, 10)


@pytest.mark.parametrize(
    ("age_ms", "num_jobs", "wait_s"), [(0, 5, 1), (10_000, 4, 3), (10**9, 1, 120), (-5, 0, 1)]
)
def test_the_time_to_come_again_follows_the_line(age_ms, num_jobs, wait_s):
    """Jobs that leave every 2.5 s make room in 3 s; it is never 0 and never beyond what clients honour."""
    assert estimate_retry_s(age_ms, num_jobs) == wait_s


async def test_a_queued_job_can_be_given_up_and_never_runs(bench):
    """After that no worker gets it, whether it waited or was released."""
    waiting, released = bench.job(), bench.job()
    await bench.store().accept(released)
    queue = bench.queue()
    await bench.release()
    await bench.store().accept(waiting)
    for job in (waiting, released):
        assert await bench.store().fail_if_queued(job.tenant_id, job.job_id, REASON)
        record = await bench.store().get(job.tenant_id, job.job_id)
        assert (record.state, record.failure) == (JobState.FAILED, REASON)
    assert await queue.reserve((MODEL,), WorkerId("w"), 5, 0) == []
    assert await bench.store().count_open(MODEL) == 0


async def test_what_is_not_as_expected_is_left_alone(bench):
    """A running job is not given up as queued, nor is an unknown one."""
    job = bench.job()
    store = bench.store()
    assert not await store.fail_if_queued(job.tenant_id, job.job_id, REASON)
    await store.accept(job)
    await bench.queue().reserve((MODEL,), WorkerId("w"), 1, 0)
    assert not await store.fail_if_queued(job.tenant_id, job.job_id, REASON)
    assert (await store.get(job.tenant_id, job.job_id)).state is JobState.RUNNING


async def test_an_ended_job_that_is_sent_again_stays_ended(bench):
    """A client repeats an acceptance whose answer was lost, after the job's end: it is open nowhere, and runs no more."""
    job = bench.job()
    await bench.store().accept(job)
    await bench.store().cancel(job.tenant_id, job.job_id)
    await bench.store().accept(job)
    assert await bench.store().count_open(MODEL) == 0
    assert await bench.queue().reserve((MODEL,), await bench.live("w1"), 1, 0) == []
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.CANCELLED


async def test_many_are_read_in_one_go(bench):
    """Records and states in the order that was asked for, None for what is not known; what waits is counted in both lanes."""
    store = bench.store()
    jobs = [bench.job(), replace(bench.job(), lane=Lane.BATCH), bench.job()]
    for job in jobs[:2]:
        await store.accept(job)
    await store.cancel(jobs[0].tenant_id, jobs[0].job_id)
    job_ids = [job.job_id for job in reversed(jobs)]
    records = await store.get_many(jobs[0].tenant_id, job_ids)
    assert [None if record is None else record.job for record in records] == [None, jobs[1], jobs[0]]
    assert await store.states(jobs[0].tenant_id, job_ids) == [None, JobState.QUEUED, JobState.CANCELLED]
    assert await store.count_waiting(jobs[0].tenant_id, MODEL) == 1
    assert await store.get_many(jobs[0].tenant_id, []) == await store.states(jobs[0].tenant_id, []) == []
