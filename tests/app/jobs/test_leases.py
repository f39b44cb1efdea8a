"""A job is held on a lease; who does not extend it loses it, and a job that workers die of ends with a dead letter."""

from dataclasses import replace

import pytest
from leases import leave_idle
from redis.exceptions import ConnectionError as RedisConnectionError

from app.domain.ids import ModelId, WorkerId
from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import StoreUnavailable
from app.jobs import keys
from app.jobs.leases import Reclaimed
from app.jobs.place import JobPlace
from app.jobs.transitions import Ended
from app.jobs.types import DeadLetter, JobLimits, Standing

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
MODELS = (MODEL,)
WORKER = WorkerId("w1")
OTHER = WorkerId("w2")
LEASE_S = 1000.0  # no test lasts for so long


async def _reserve_one(bench, **members):
    """A queue that holds one job."""
    await bench.store().accept(bench.job(**members))
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    return queue, reserved


async def test_a_lease_that_is_extended_is_not_taken(bench):
    """Three leases long the worker extends it, and keeps the job; then it is silent for one, and loses it."""
    queue, reserved = await _reserve_one(bench)
    reclaimer = bench.reclaimer(lease_s=LEASE_S)
    for _ in range(3):
        await leave_idle(bench.redis, MODEL, idle_s=LEASE_S)
        assert await queue.extend_leases(WORKER) == 0
        assert await reclaimer.reclaim(MODEL) == Reclaimed()
    assert await queue.standing(reserved) is Standing.OURS
    await leave_idle(bench.redis, MODEL, idle_s=LEASE_S)
    assert await reclaimer.reclaim(MODEL) == Reclaimed(num_redelivered=1)
    assert await queue.extend_leases(WORKER) == 1
    assert await queue.standing(reserved) is Standing.LOST


async def test_a_late_worker_takes_nothing_back(bench, redis):
    """The job is another worker's now: the first one's heartbeat does not touch that lease."""
    queue, reserved = await _reserve_one(bench)
    await bench.reclaimer().reclaim(MODEL)
    other = bench.queue()
    [again] = await other.reserve(MODELS, OTHER, 1, 0)
    assert (again.fence > reserved.fence, again.num_attempts) == (True, 0)
    queue._held.add((MODEL, again.stream_id))  # as if it had heard of it
    assert await queue.extend_leases(WORKER) > 0
    [pending] = await _pending(redis)
    assert pending["consumer"].decode() == OTHER
    assert await queue.commit(reserved, bench.result(reserved), bench.entries(reserved)) is None
    assert await other.commit(again, bench.result(again), bench.entries(again))
    assert await bench.memories().count(bench.memory()) == 1


async def test_a_job_that_was_begun_runs_alone_afterwards(bench):
    """It may be what its worker died of; one that only waited there is as before."""
    await bench.store().accept(bench.job())
    queue, begun = await _reserve_one(bench)
    await queue.begin(begun)
    [waited] = await queue.reserve(MODELS, WORKER, 1, 0)
    await bench.reclaimer().reclaim(MODEL)
    again = await bench.queue().reserve(MODELS, OTHER, 5, 0)
    assert {one.job.job_id: one.runs_alone for one in again} == {
        begun.job.job_id: True,
        waited.job.job_id: False,
    }


async def test_a_job_that_workers_die_of_is_poison(bench):
    """It is begun three times and no more; it fails with a code of its own, and a letter tells the operator."""
    await bench.store().accept(bench.job())
    before = 0
    for number in range(1, 4):
        queue, worker_id = bench.queue(), WorkerId(f"victim-{number}")
        [reserved] = await queue.reserve(MODELS, worker_id, 1, 0)
        assert (reserved.fence > before, reserved.num_attempts) == (True, number - 1)
        before = reserved.fence
        for _ in range(2):  # an answer was lost
            assert await queue.begin(reserved) is Standing.OURS
        assert await bench.reclaimer().reclaim(MODEL) == Reclaimed(num_redelivered=1)
    assert await bench.queue().reserve(MODELS, OTHER, 1, 0) == []
    job = reserved.job
    record = await bench.store().get(job.tenant_id, job.job_id)
    assert (record.state, record.failure.code, record.num_attempts) == (JobState.FAILED, "poison", 3)
    letter = DeadLetter(job.tenant_id, job.job_id, "poison", 3, WorkerId("victim-3"), bench.now_ms)
    assert await bench.store().list_dead_letters(MODEL) == [letter]
    assert await bench.store().count_dead_letters(MODEL) == 1
    assert await bench.store().count_open(MODEL) == 0


@pytest.mark.parametrize("is_forgiven", [True, False])
async def test_only_an_orderly_stop_is_forgiven(bench, is_forgiven):
    """A worker that stops in order is not the job's fault; one that stops at a fault of the job's may be."""
    bench.limits = JobLimits(max_attempts=2)
    queue, reserved = await _reserve_one(bench)
    for _ in range(2):
        await queue.begin(reserved)
        assert await queue.give_back(reserved, is_forgiven=is_forgiven)
        found = await queue.reserve(MODELS, WORKER, 1, 0)
        reserved = found[0] if found else reserved
    assert bool(found) is is_forgiven


async def test_a_dead_letter_is_written_once_though_its_writer_dies(bench, redis):
    """The worker died between the end of the job and the letter: by the sweep or the next lease it is written."""
    bench.limits = JobLimits(max_attempts=1)
    for finish in ("sweep", "lease", "start again"):
        queue, reserved = await _reserve_one(bench)
        await queue.begin(reserved)
        await bench.reclaimer().reclaim(MODEL)
        dying = bench.queue()
        dying._steps.close = _die
        with pytest.raises(RuntimeError, match="died"):
            await dying.reserve(MODELS, OTHER, 1, 0)
        record = await bench.store().get(reserved.job.tenant_id, reserved.job.job_id)
        assert record.failure.code == "poison"
        before = await bench.store().count_dead_letters(MODEL)
        [stream_id] = [one["message_id"] for one in await _pending(redis)]
        if finish == "sweep":
            await bench.sweeper().sweep(MODELS)
        elif finish == "lease":
            assert await bench.reclaimer().reclaim(MODEL) == Reclaimed(num_ended=1)
        else:
            dying._steps = queue._steps
            assert await dying.reserve(MODELS, OTHER, 1, 0) == []
        await bench.reclaimer().reclaim(MODEL)
        ended = Ended(frozenset(), stream_id, is_dead=True)
        await queue._steps.close(JobPlace.of(reserved.job), ended)  # as after a lost answer
        assert await bench.store().count_dead_letters(MODEL) == before + 1
        assert await bench.store().count_open(MODEL) == 0
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0


async def _pending(redis):
    return await redis.xpending_range(keys.stream_key(MODEL), keys.GROUP, "-", "+", 99)


async def _die(*_arguments):
    raise RuntimeError("died")


async def test_dead_letters_are_bounded(bench, redis):
    """The stream keeps about as many as the limit says: Redis trims by whole nodes, and at most 100 at a time."""
    bench.limits = JobLimits(max_attempts=1, max_dead_letters=100)
    async with redis.pipeline() as pipe:
        for _ in range(250):
            pipe.xadd(keys.dead_key(MODEL), {"old": "letter"})
        await pipe.execute()
    queue, reserved = await _reserve_one(bench)
    await queue.begin(reserved)
    await bench.reclaimer().reclaim(MODEL)
    assert await bench.queue().reserve(MODELS, OTHER, 1, 0) == []
    assert 100 <= await bench.store().count_dead_letters(MODEL) <= 200
    [letter] = await bench.store().list_dead_letters(MODEL, 1)
    assert letter.job_id == reserved.job.job_id


async def test_a_cancelled_job_whose_worker_died_ends_so(bench):
    """It is not run again for nobody."""
    _, reserved = await _reserve_one(bench)
    job = reserved.job
    assert await bench.store().cancel(job.tenant_id, job.job_id) is JobState.RUNNING
    assert await bench.reclaimer().reclaim(MODEL) == Reclaimed(num_ended=1)
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.CANCELLED
    assert await bench.store().count_open(MODEL) == 0


async def test_a_cancelled_job_that_is_given_back_ends_so(bench):
    """Nor when its worker stops in order."""
    queue, reserved = await _reserve_one(bench)
    await bench.store().cancel(reserved.job.tenant_id, reserved.job.job_id)
    assert await queue.give_back(reserved) is False
    record = await bench.store().get(reserved.job.tenant_id, reserved.job.job_id)
    assert record.state is JobState.CANCELLED
    assert await bench.queue().reserve(MODELS, OTHER, 1, 0) == []


async def test_a_job_that_fails_after_its_cancel_was_acknowledged_is_cancelled(bench):
    """Who was told that it will end as cancelled is told the truth."""
    queue, reserved = await _reserve_one(bench)
    await bench.store().cancel(reserved.job.tenant_id, reserved.job.job_id)
    assert await queue.fail(reserved, Failure("oom", "out of memory")) is JobState.CANCELLED


@pytest.mark.parametrize("is_released", [False, True])
async def test_a_queued_job_is_cancelled_at_once(bench, redis, is_released):
    """It leaves its tenant's sets, never runs, and makes room; a second cancel says the same."""
    bench.limits = replace(bench.limits, max_released_per_tenant=1)
    job, behind = bench.job(), bench.job()
    await bench.store().accept(job)
    await bench.store().accept(behind)
    queue = bench.queue()
    if is_released:
        await bench.release()
    for _ in range(2):
        assert await bench.store().cancel(job.tenant_id, job.job_id) is JobState.CANCELLED
    record = await bench.store().get(job.tenant_id, job.job_id)
    assert (record.state, record.failure.code) == (JobState.CANCELLED, "cancelled")
    assert 0 < await redis.ttl(keys.job_key(job.tenant_id, job.job_id)) <= bench.limits.job_ttl_s
    assert [one.job for one in await queue.reserve(MODELS, WORKER, 5, 0)] == [behind]
    assert await bench.store().count_open(MODEL) == 1


async def test_an_ended_job_stays_as_it_ended(bench):
    """A cancel that comes too late says how the job ended, and the memory keeps what it has."""
    queue, reserved = await _reserve_one(bench)
    await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    before = await bench.store().get(reserved.job.tenant_id, reserved.job.job_id)
    assert await bench.store().cancel(reserved.job.tenant_id, reserved.job.job_id) is JobState.SUCCEEDED
    assert await bench.store().get(reserved.job.tenant_id, reserved.job.job_id) == before
    assert await bench.memories().count(bench.memory()) == 1


async def test_after_an_outage_nothing_is_taken_for_a_lease(bench, redis):
    """No worker could extend anything meanwhile: they get the time to do so."""

    class Shaky(type(redis)):
        """Away while it is told to be."""

        is_away = True

        async def execute_command(self, *arguments, **options):
            if self.is_away:
                raise RedisConnectionError("away")
            return await super().execute_command(*arguments, **options)

    _, reserved = await _reserve_one(bench)
    client = Shaky(connection_pool=redis.connection_pool)
    await leave_idle(bench.redis, MODEL, idle_s=LEASE_S)
    at_s = 5.0
    reclaimer = bench.reclaimer(client, lease_s=LEASE_S, monotonic_s=lambda: at_s)
    with pytest.raises(StoreUnavailable):
        await reclaimer.reclaim(MODEL)
    client.is_away = False
    at_s += LEASE_S - 1
    assert await reclaimer.reclaim(MODEL) == Reclaimed()
    at_s += 1
    assert await reclaimer.reclaim(MODEL) == Reclaimed(num_redelivered=1)
    record = await bench.store().get(reserved.job.tenant_id, reserved.job.job_id)
    assert (record.state, record.fence) == (JobState.QUEUED, reserved.fence)


async def test_an_unreadable_entry_whose_lease_expired_is_passed_over(bench, redis):
    """An entry without fields of ours is acknowledged, and those beside it are redelivered."""
    await _reserve_one(bench)
    await redis.xadd(keys.stream_key(MODEL), {"x": "y"})
    await redis.xreadgroup(keys.GROUP, "dead", {keys.stream_key(MODEL): ">"})
    assert await bench.reclaimer().reclaim(MODEL) == Reclaimed(num_redelivered=1)
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0


async def test_a_job_that_ends_while_leases_are_extended_is_not_lost(bench):
    """It was held when the leases were read, and is closed when they are extended: nobody took it."""
    worker_id, queue = await bench.live("w1"), bench.queue()
    await bench.store().accept(bench.job())
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    extend = queue._steps.extend

    async def late(*asked):
        await queue.commit(reserved, bench.result(reserved), [])
        return await extend(*asked)

    queue._steps.extend = late
    assert await queue.extend_leases(worker_id) == 0
