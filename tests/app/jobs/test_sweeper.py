"""What a crash leaves between two slots is found."""

import pytest
from redis.asyncio import Redis

from app.domain.ids import ModelId, WorkerId
from app.domain.job import JobState
from app.jobs import keys
from app.jobs.sweeper import JobSweeper, SweepReport

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
MODELS = (MODEL,)


async def test_a_job_on_its_way_is_left_alone(bench):
    """Waiting, released, and running under a live worker: a sweep changes nothing."""
    worker_id = await bench.live("w1")
    for _ in range(3):
        await bench.store().accept(bench.job())
    queue = bench.queue()
    await queue.reserve(MODELS, worker_id, 1, 0)
    await bench.release()
    bench.now_ms += 100_000
    assert await bench.sweeper().sweep(MODELS) == SweepReport(num_open=3, num_repaired=0)
    assert len(await queue.reserve(MODELS, worker_id, 5, 0)) == 2


class _CountedRedis(Redis):
    """Counts how often the server is asked: a pipeline is once."""

    num_asked = 0

    async def execute_command(self, *arguments, **options):
        """The command."""
        self.num_asked += 1
        return await super().execute_command(*arguments, **options)

    def pipeline(self, *arguments, **options):
        """The pipeline."""
        made = super().pipeline(*arguments, **options)
        execute = made.execute

        async def count(*args, **kwargs):
            self.num_asked += 1
            return await execute(*args, **kwargs)

        made.execute = count
        return made


async def test_many_jobs_are_looked_at_in_few_round_trips(bench, redis):
    """A sweep ends well within its turn however many wait: jobs are read by pages, and a tenant's turn once."""
    worker_id = await bench.live("w1")
    for number in range(120):
        await bench.store().accept(bench.job("acme" if number % 2 else "bolt"))
    await bench.queue().reserve(MODELS, worker_id, 20, 0)
    await redis.delete(keys.turns_key(MODEL))
    bench.now_ms += 100_000
    asked = []
    for num_repaired in (2, 0):
        counted = _CountedRedis(connection_pool=redis.connection_pool)
        report = await bench.sweeper(counted).sweep(MODELS)
        assert report == SweepReport(num_open=120, num_repaired=num_repaired)
        asked.append(counted.num_asked)
    assert max(asked) < 20


async def test_an_accepted_job_whose_tenant_got_no_turn_is_found(bench):
    """The API died after the record was written and before its tenant had a turn."""
    job, steps = bench.job(), bench.queue()._steps.arrivals
    await steps.admit(job)
    await steps.accept(job)
    worker_id = await bench.live("w1")
    queue = bench.queue()
    assert await queue.reserve(MODELS, worker_id, 1, 0) == []
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 1
    assert [held.job for held in await queue.reserve(MODELS, worker_id, 1, 0)] == [job]


async def test_an_admitted_job_that_was_never_written_frees_its_place(bench):
    """The API died before the record was written: the place is kept for a while, then given up."""
    await bench.queue()._steps.arrivals.admit(bench.job())
    await bench.sweeper().sweep(MODELS)
    assert await bench.store().count_open(MODEL) == 1
    bench.now_ms += 60_000
    await bench.sweeper().sweep(MODELS)
    assert await bench.store().count_open(MODEL) == 0


async def test_a_released_job_whose_entry_was_never_written_gets_one(bench, redis):
    """A worker died between the release and the stream; not before a moment has passed, it could be under way."""
    job = bench.job()
    await bench.store().accept(job)
    await redis.zrem(keys.waiting_key(job.tenant_id, MODEL), job.job_id)
    await redis.zadd(keys.released_key(job.tenant_id, MODEL), {job.job_id: bench.now_ms})
    await redis.delete(keys.turns_key(MODEL))
    worker_id, queue = await bench.live("w1"), bench.queue()
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 0
    bench.now_ms += 5_000
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 1
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 0
    assert [held.job for held in await queue.reserve(MODELS, worker_id, 1, 0)] == [job]


async def test_a_lost_stream_is_written_again(bench, redis):
    """Even when the whole stream is gone, its group too, every queued job comes back."""
    job = bench.job()
    await bench.store().accept(job)
    worker_id, queue = await bench.live("w1"), bench.queue()
    await bench.release()
    await redis.delete(keys.stream_key(MODEL))
    bench.now_ms += 5_000
    await bench.sweeper().sweep(MODELS)
    assert [held.job for held in await queue.reserve(MODELS, worker_id, 1, 0)] == [job]


async def test_the_job_of_a_dead_worker_runs_elsewhere(bench, redis):
    """Its lease is left alone by the sweep; once it has run out another worker gets it, and nothing is left behind."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    [lost] = await queue.reserve(MODELS, worker_id, 1, 0)
    await bench.registry().remove(worker_id)
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 0
    assert (await bench.reclaimer().reclaim(MODEL)).num_redelivered == 1
    other = bench.queue()
    [held] = await other.reserve(MODELS, await bench.live("w2"), 1, 0)
    assert (held.job, held.fence > lost.fence) == (job, True)
    assert await other.commit(held, bench.result(held), [])
    await bench.registry().remove(WorkerId("w2"))
    await bench.sweeper().sweep(MODELS)
    assert await bench.store().count_open(MODEL) == 0
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0
    assert await redis.xinfo_consumers(keys.stream_key(MODEL), keys.GROUP) == []


async def test_a_running_job_without_a_lease_is_not_stranded(bench, redis):
    """The stream was lost, and the worker died: the sweep brings the job back, but not while its worker lives."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    [lost] = await queue.reserve(MODELS, worker_id, 1, 0)
    await redis.delete(keys.stream_key(MODEL))
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 0
    await bench.registry().remove(worker_id)
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 1
    [held] = await bench.queue().reserve(MODELS, await bench.live("w2"), 1, 0)
    assert (held.job, held.fence > lost.fence) == (job, True)


async def test_a_job_that_a_dead_worker_was_given_but_never_started_runs_elsewhere(bench, redis):
    """The worker died between delivery and start: another one gets the job, once the lease has run out."""
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    await bench.release()
    await redis.xgroup_create(keys.stream_key(MODEL), keys.GROUP, id="0")
    await redis.xreadgroup(keys.GROUP, "dead", {keys.stream_key(MODEL): ">"})
    worker_id = await bench.live("w1")
    assert await queue.reserve(MODELS, worker_id, 1, 0) == []
    assert (await bench.reclaimer().reclaim(MODEL)).num_redelivered == 1
    [held] = await queue.reserve(MODELS, worker_id, 1, 0)
    assert (held.job, held.num_attempts) == (job, 0)


async def test_a_queued_job_past_its_deadline_ends_without_any_worker_taking_it(bench):
    """A tenant at its share cannot keep its other jobs queued for ever."""
    job = bench.job(timeout_ms=10)
    await bench.store().accept(job)
    bench.now_ms = job.deadline_at_ms
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 1
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.EXPIRED


async def test_an_end_that_was_not_closed_is_closed(bench, redis):
    """The worker died between the commit and what follows it: the entry is acknowledged, the place is free."""
    worker_id = await bench.live("w1")
    await bench.store().accept(bench.job())
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, worker_id, 1, 0)
    await queue._steps.commit(reserved, bench.result(reserved), bench.entries(reserved))
    assert await bench.store().count_open(MODEL) == 1
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 0  # its worker may be about to do it
    bench.now_ms += 6_000
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 1
    assert await bench.store().count_open(MODEL) == 0
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0


async def test_the_stream_is_trimmed_below_what_is_pending(bench, redis):
    """Ended jobs leave the stream; a running one keeps its entry, and the group's lag stays known."""
    worker_id = await bench.live("w1")
    queue = bench.queue()
    for _ in range(6):
        await bench.store().accept(bench.job())
    held = await queue.reserve(MODELS, worker_id, 6, 0)
    for reserved in held[:4]:
        await queue.commit(reserved, bench.result(reserved), [])
    await bench.sweeper().sweep(MODELS)
    left = await redis.xrange(keys.stream_key(MODEL))
    assert [entry_id.decode() for entry_id, _ in left] == [reserved.stream_id for reserved in held[4:]]
    [group] = await redis.xinfo_groups(keys.stream_key(MODEL))
    assert group.get("lag", 0) == 0


async def test_one_worker_at_a_time_sweeps(bench, redis):
    """Within the interval a second sweep does nothing; it belongs to whoever came first."""
    await bench.store().accept(bench.job())
    first = JobSweeper(redis, bench.limits, bench.registry(), interval_s=30, clock_ms=bench.clock_ms)
    assert (await first.sweep(MODELS)).num_open == 1
    second = JobSweeper(redis, bench.limits, bench.registry(), interval_s=30, clock_ms=bench.clock_ms)
    assert (await second.sweep(MODELS)).num_open == 0


async def test_a_job_that_its_worker_forgot_ends_long_after_its_deadline(bench):
    """A live worker may run late, but not for ever; afterwards it cannot commit any more."""
    worker_id = await bench.live("w1")
    job, queue = bench.job(timeout_ms=10), bench.queue()
    await bench.store().accept(job)
    [reserved] = await queue.reserve(MODELS, worker_id, 1, 0)
    bench.now_ms = job.deadline_at_ms
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 0
    bench.now_ms += 600_000
    assert (await bench.sweeper().sweep(MODELS)).num_repaired == 1
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.EXPIRED
    assert await queue.commit(reserved, bench.result(reserved), bench.entries(reserved)) is None
