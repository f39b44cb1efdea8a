"""One job's way through the queue, and the order of many."""

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from patience import PATIENCE_S

from app.domain.ids import ModelId, TenantId, WorkerId
from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import CorruptRecord
from app.jobs import keys
from app.jobs.leases import Reclaimed
from app.jobs.types import Committed, JobLimits, Standing
from app.memory.codec import decode_entry, encode_entry
from app.memory.keys import meta_key

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
MODELS = (MODEL,)
WORKER = WorkerId("w1")


async def test_a_job_is_accepted_started_and_committed(bench):
    """The record tells each state, the result and times; the memory holds one entry for each image, in order."""
    job = bench.job(num_images=3)
    await bench.store().accept(job)
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.QUEUED

    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 4, 0)
    assert (reserved.job, reserved.fence, reserved.worker_id) == (job, bench.now_ms, WORKER)
    running = await bench.store().get(job.tenant_id, job.job_id)
    assert (running.state, running.fence, running.worker_id) == (JobState.RUNNING, bench.now_ms, WORKER)
    assert running.started_at_ms == bench.now_ms

    result, entries = bench.result(reserved), bench.entries(reserved)
    assert await queue.commit(reserved, result, entries) == Committed(3)
    done = await bench.store().get(job.tenant_id, job.job_id)
    assert (done.state, done.result, done.failure) == (JobState.SUCCEEDED, result, None)
    log = await bench.memories().read_after(bench.memory(), 0)
    assert log == list(zip((1, 2, 3), entries, strict=True))
    assert [decode_entry(data).image_id for _, data in log] == [image.image_id for image in result.images]


async def test_an_ended_job_leaves_nothing_but_its_record(bench, redis):
    """Sets are empty, the stream entry is acknowledged, and the record has a time to live."""
    job = bench.job()
    await bench.store().accept(job)
    assert await redis.ttl(keys.job_key(job.tenant_id, job.job_id)) == -1
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    await queue.commit(reserved, bench.result(reserved), [])
    assert await bench.store().count_open(MODEL) == 0
    assert (
        await redis.exists(keys.waiting_key(job.tenant_id, MODEL), keys.released_key(job.tenant_id, MODEL))
        == 0
    )
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0
    assert 0 < await redis.ttl(keys.job_key(job.tenant_id, job.job_id)) <= bench.limits.job_ttl_s


async def test_a_second_commit_changes_nothing_and_answers_as_the_first(bench):
    """A repeated commit, as after a lost answer, appends no entry."""
    await bench.store().accept(bench.job(num_images=2))
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    first = await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    assert (
        await queue.commit(reserved, bench.result(reserved), bench.entries(reserved)) == first == Committed(2)
    )
    assert await bench.memories().count(bench.memory()) == 2


async def test_a_commit_without_entries_leaves_the_memory_alone(bench):
    """Where nothing is to be remembered, the memory does not come to exist."""
    await bench.store().accept(bench.job())
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    assert await queue.commit(reserved, bench.result(reserved), []) == Committed(None)
    assert await bench.memories().version(bench.memory()) == 0
    assert await bench.memories().list_memories(TenantId("acme")) == []


@pytest.mark.parametrize("how", ["older fence", "expired", "redelivered", "given back"])
async def test_a_lost_fence_writes_nothing(bench, how):
    """A worker whose job was taken or ended cannot commit, fail or give it back."""
    job = bench.job()
    await bench.store().accept(job)
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    stale = replace(reserved, fence=0) if how == "older fence" else reserved
    if how in ("expired", "redelivered"):
        assert await bench.reclaimer().reclaim(MODEL) == Reclaimed(num_redelivered=1)
    if how == "given back":
        assert await queue.give_back(reserved)
    if how in ("redelivered", "given back"):
        [again] = await bench.queue().reserve(MODELS, WorkerId("w2"), 1, 0)
        assert again.fence == reserved.fence + 1
    before = await bench.store().get(job.tenant_id, job.job_id)
    assert await queue.commit(stale, bench.result(stale), bench.entries(stale)) is None
    assert await queue.begin(stale) is await queue.standing(stale) is Standing.LOST
    assert await queue.fail(stale, Failure("oom", "out of memory")) is None
    assert await queue.give_back(stale) is False
    assert await bench.store().get(job.tenant_id, job.job_id) == before
    assert await bench.memories().count(bench.memory()) == 0


async def test_a_fence_is_nobody_elses_after_a_fail_over(bench, redis):
    """A worker started a job, and the server that knew it is gone: another one's start has another number, and it alone counts."""
    job = bench.job()
    await bench.store().accept(job)
    kept = {key: await redis.dump(key) async for key in redis.scan_iter()}
    queue, other = bench.queue(), bench.queue()
    [lost] = await queue.reserve(MODELS, WORKER, 1, 0)
    await redis.flushdb()
    for key, value in kept.items():
        await redis.restore(key, 0, value)
    bench.now_ms += 20_000
    [reserved] = await other.reserve(MODELS, WorkerId("w2"), 1, 0)
    assert await queue.begin(lost) is Standing.LOST
    assert await queue.commit(lost, bench.result(lost), bench.entries(lost)) is None
    assert bench.result(lost).images[0].storage_key != bench.result(reserved).images[0].storage_key
    assert await other.commit(reserved, bench.result(reserved), bench.entries(reserved)) == Committed(1)


async def test_a_failure_is_kept_and_counts_once(bench):
    """The record has the worker's reason; the same failure again is accepted, another is not."""
    job = bench.job()
    await bench.store().accept(job)
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    failure = Failure("oom", "out of memory")
    assert await queue.fail(reserved, failure)
    assert await queue.fail(reserved, failure)
    assert not await queue.fail(reserved, Failure("other", "another"))
    record = await bench.store().get(job.tenant_id, job.job_id)
    assert (record.state, record.failure, record.result) == (JobState.FAILED, failure, None)
    assert await bench.store().count_open(MODEL) == 0


async def test_a_job_past_its_deadline_expires_unstarted(bench):
    """It is never handed out, its record says expired, and the next job is."""
    late, good = bench.job(timeout_ms=10), bench.job()
    await bench.store().accept(late)
    await bench.store().accept(good)
    bench.now_ms = late.deadline_at_ms
    reserved = await bench.queue().reserve(MODELS, WORKER, 4, 0)
    assert [held.job for held in reserved] == [good]
    record = await bench.store().get(late.tenant_id, late.job_id)
    assert (record.state, record.fence) == (JobState.EXPIRED, 0)
    assert record.failure is not None
    assert record.failure.code == "expired"


async def test_a_worker_takes_no_more_images_than_it_has_room_for(bench):
    """Room is counted in images; the job that goes beyond is the last, and the rest is there for another worker."""
    for _ in range(4):
        await bench.store().accept(bench.job(num_images=6))
    queue, other = bench.queue(), bench.queue()
    assert len(await queue.reserve(MODELS, WORKER, 10, 0)) == 2
    assert len(await other.reserve(MODELS, WorkerId("w2"), 1, 0)) == 1
    assert len(await queue.reserve(MODELS, WORKER, 16, 0)) == 1


async def test_tenants_take_turns(bench):
    """Six late jobs of two small tenants are among the first twelve, behind a hundred of one that came before."""
    jobs = [bench.job("big") for _ in range(100)]
    jobs += [bench.job(tenant) for _ in range(3) for tenant in ("small", "tiny")]
    for job in jobs:
        await bench.store().accept(job)
    queue, order = bench.queue(), []
    for _ in range(12):
        [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
        order.append(reserved.job.tenant_id)
        await queue.commit(reserved, bench.result(reserved), [])
    assert order.count("small") == order.count("tiny") == 3


async def test_one_tenant_fills_every_worker(bench):
    """Nobody else waits: a tenant's jobs go to all workers there are, each with a whole batch of them."""
    for job in [bench.job("lone") for _ in range(70)]:
        await bench.store().accept(job)
    held = [len(await bench.queue().reserve(MODELS, WorkerId(f"w{n}"), 16, 0)) for n in range(5)]
    assert held == [16, 16, 16, 16, 6]


async def test_a_late_tenant_is_in_the_next_batches_of_busy_workers(bench):
    """One tenant holds all workers, with more waiting; another one's ten jobs are all begun as the first two are free."""
    workers = [(bench.queue(), WorkerId(f"w{number}")) for number in range(4)]
    for job in [bench.job("big") for _ in range(200)]:
        await bench.store().accept(job)
    batches = [await queue.reserve(MODELS, worker_id, 16, 0) for queue, worker_id in workers]
    for job in [bench.job("late") for _ in range(10)]:
        await bench.store().accept(job)
    begun = []
    for (queue, worker_id), batch in zip(workers, batches, strict=True):
        for reserved in batch:
            await queue.commit(reserved, bench.result(reserved), [])
        held = await queue.reserve(MODELS, worker_id, 16, 0)
        begun.append(Counter(reserved.job.tenant_id for reserved in held)["late"])
    assert begun == [8, 2, 0, 0]


@pytest.mark.parametrize("seed", range(8))
async def test_nobody_is_served_twice_while_another_waits(bench, seed):
    """Tenants, floods, workers and ends in any order: between two jobs of a tenant each that waited all along has one."""
    dice, waiting = random.Random(seed), Counter()
    passed_over: dict[str, Counter[str]] = defaultdict(Counter)
    workers = [(bench.queue(), WorkerId(f"w{number}"), []) for number in range(3)]
    for _ in range(60):
        if dice.random() < 0.4:
            tenant = dice.choice("abcd")
            for _ in range(dice.choice([1, 2, 30])):
                await bench.store().accept(bench.job(tenant))
                waiting[tenant] += 1
            continue
        queue, worker_id, holds = dice.choice(workers)
        while holds and dice.random() < 0.8:
            done = holds.pop()
            await queue.commit(done, bench.result(done), [])
        for reserved in await queue.reserve(MODELS, worker_id, dice.randint(1, 16), 0):
            holds.append(reserved)
            tenant = reserved.job.tenant_id
            waiting[tenant] -= 1
            passed_over.pop(tenant, None)
            for other in waiting:
                if other != tenant and waiting[other]:
                    passed_over[other][tenant] += 1
            assert max((n for counts in passed_over.values() for n in counts.values()), default=0) <= 1


async def test_a_tenant_has_no_more_than_its_share_released(bench):
    """With W = 3 one tenant gets three jobs at a time, others are served beside it, and an end makes room."""
    bench.limits = JobLimits(max_released_per_tenant=3)
    for job in [bench.job("big") for _ in range(6)] + [bench.job("small")]:
        await bench.store().accept(job)
    queue = bench.queue()
    held = await queue.reserve(MODELS, WORKER, 50, 0)
    assert sorted(reserved.job.tenant_id for reserved in held) == ["big", "big", "big", "small"]
    assert await queue.reserve(MODELS, WORKER, 50, 0) == []
    big = next(reserved for reserved in held if reserved.job.tenant_id == "big")
    await queue.commit(big, bench.result(big), [])
    assert len(await queue.reserve(MODELS, WORKER, 50, 0)) == 1


async def test_jobs_of_one_tenant_keep_their_order(bench):
    """First come, first served within a tenant."""
    jobs = [bench.job() for _ in range(5)]
    for job in jobs:
        await bench.store().accept(job)
    assert [held.job for held in await bench.queue().reserve(MODELS, WORKER, 5, 0)] == jobs


async def test_a_worker_gets_jobs_of_its_models_alone(bench):
    """A job for another model stays where it is."""
    mine, other = bench.job(), bench.job(model=ModelId("other"))
    await bench.store().accept(mine)
    await bench.store().accept(other)
    queue = bench.queue()
    assert [held.job for held in await queue.reserve(MODELS, WORKER, 5, 0)] == [mine]
    assert [held.job for held in await queue.reserve([MODEL, ModelId("other")], WORKER, 5, 0)] == [other]


async def test_a_waiting_worker_is_woken_by_a_job(bench):
    """`reserve` returns long before its time is up, and before its next look."""
    async with bench.queue(poll_s=600) as queue:
        waiting = asyncio.create_task(queue.reserve(MODELS, WORKER, 1, 600_000))
        await asyncio.sleep(0.1)
        job = bench.job()
        await bench.store().accept(job)
        [reserved] = await asyncio.wait_for(waiting, PATIENCE_S)
        assert reserved.job == job


async def test_without_jobs_reserve_returns_after_its_time(bench):
    """An idle worker gets an empty list, not an error, also where the stream does not exist yet."""
    assert await bench.queue().reserve(MODELS, WORKER, 1, 30) == []


async def test_a_cancelled_reserve_loses_nothing(bench, redis):
    """What was delivered to a call that did not return is returned by the next, under the same fence or the first."""
    job = bench.job()
    await bench.store().accept(job)
    started = asyncio.Event()

    class Slow(type(redis)):
        """Answers the start of a job, and never returns from it."""

        async def evalsha(self, sha, numkeys, *arguments):
            answer = await super().evalsha(sha, numkeys, *arguments)
            if isinstance(answer, list) and answer[0] == b"started" and not started.is_set():
                started.set()
                await asyncio.sleep(60)
            return answer

    queue = bench.queue(Slow(connection_pool=redis.connection_pool))
    call = asyncio.create_task(queue.reserve(MODELS, WORKER, 1, 0))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    [reserved] = await queue.reserve(MODELS, WORKER, 1, 0)
    assert (reserved.job, reserved.fence) == (job, bench.now_ms)
    assert await queue.commit(reserved, bench.result(reserved), bench.entries(reserved)) == Committed(1)


async def test_an_unreadable_record_fails_its_job_alone(bench, redis):
    """A corrupt request does not reach the worker and does not stop the job behind it."""
    bad, good = bench.job(), bench.job()
    await bench.store().accept(bad)
    await bench.store().accept(good)
    await redis.hset(keys.job_key(bad.tenant_id, bad.job_id), "job", b'{"tenant_id": 3}')
    assert [held.job for held in await bench.queue().reserve(MODELS, WORKER, 5, 0)] == [good]
    assert await redis.hget(keys.job_key(bad.tenant_id, bad.job_id), "state") == b"failed"
    [letter] = await bench.store().list_dead_letters(MODEL)
    assert (letter.job_id, letter.reason, letter.num_attempts) == (bad.job_id, "corrupt_record", 0)
    with pytest.raises(CorruptRecord, match=bad.job_id):
        await bench.store().get(bad.tenant_id, bad.job_id)


async def test_strange_stream_entries_are_passed_over(bench, redis):
    """An entry without fields of ours, and one of an unknown job, are acknowledged and skipped."""
    await bench.queue().reserve(MODELS, WORKER, 1, 0)
    await redis.xadd(keys.stream_key(MODEL), {"x": "y"})
    await redis.xadd(keys.stream_key(MODEL), {"t": "acme", "j": bench.job().job_id})
    assert await bench.queue().reserve(MODELS, WORKER, 5, 0) == []
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0


@pytest.mark.parametrize(("is_kept", "prompts"), [(True, ["a cat", "a cat"]), (False, ["", ""])])
async def test_whether_prompts_are_remembered_is_asked_at_the_commit(bench, redis, is_kept, prompts):
    """What the worker knew of the setting when it began is not asked: none is kept once it is turned off."""
    await bench.store().accept(bench.job(num_images=2))
    queue = bench.queue()
    [reserved] = await queue.reserve(MODELS, WORKER, 2, 0)
    bare = bench.entries(reserved)
    told = [encode_entry(replace(decode_entry(entry), prompt="a cat")) for entry in bare]
    if is_kept:
        await redis.hset(meta_key(bench.memory()), "keep_prompts", 1)
    assert await queue.commit(reserved, bench.result(reserved), told) == Committed(2)
    log = await bench.memories().read_after(bench.memory(), 0)
    assert log == list(zip((1, 2), told if is_kept else bare, strict=True))
    assert [decode_entry(data).prompt for _, data in log] == prompts
