"""The queue under true concurrency, lost connections and dying workers: every job ends exactly once.

`test_lifecycle.py` tries one move at a time; here workers, sweeps, reclaims and cancels run beside each other.
"""

import asyncio
import random

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.domain.ids import ModelId, TenantId
from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import NotFound, StoreUnavailable
from app.jobs import keys
from app.jobs.types import JobLimits
from app.memory.codec import decode_entry

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
MODELS = (MODEL,)
TENANTS = ("acme", "bolt", "coil")


class FlakyRedis(Redis):
    """Loses its connection before or after a command, as the seed says: afterwards the server has done it."""

    dice: random.Random
    loss = 0.0

    async def execute_command(self, *arguments, **options):
        """The command, or a lost connection."""
        if self.dice.random() < self.loss:
            raise RedisConnectionError("lost before the command")
        answer = await super().execute_command(*arguments, **options)
        if self.dice.random() < self.loss:
            raise RedisConnectionError("lost after the command")
        return answer


def _flaky(redis: Redis, seed: int) -> FlakyRedis:
    client = FlakyRedis(connection_pool=redis.connection_pool)
    client.dice = random.Random(seed)
    client.loss = 0.03
    return client


async def _accept_all(bench, redis, jobs):
    store = bench.store(redis)
    for job in jobs:
        while True:
            try:
                await store.accept(job)
                break
            except StoreUnavailable:
                await asyncio.sleep(0)


async def _finish(bench, queue, reserved, dice):
    """Ends a job in one of the ways that workers have; True where the worker dies of it."""
    way = dice.random()
    if way < 0.1:
        return True
    try:
        await queue.begin(reserved)
    except StoreUnavailable:
        return True
    await asyncio.sleep(0.002 * dice.random())
    while True:
        try:
            if way < 0.2:
                await queue.give_back(reserved)
            elif way < 0.3:
                await queue.fail(reserved, Failure("oom", "out of memory"))
            else:
                for _ in range(1 if way < 0.8 else 2):
                    await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
        except StoreUnavailable:
            if dice.random() < 0.2:
                return True
        else:
            return False


async def _work(bench, name, dice, done):
    """A worker that reserves at random, and comes back under another name each time it dies."""
    for life in range(10_000):
        worker_id = await bench.live(f"{name}-{life}")
        queue = bench.queue(_flaky(bench.redis, dice.randrange(2**32)))
        dead = False
        while not dead and not done.is_set():
            try:
                call = queue.reserve(MODELS, worker_id, dice.randint(1, 4), dice.randint(0, 20))
                held = await asyncio.wait_for(call, dice.choice([0.005, 5]))
            except (StoreUnavailable, TimeoutError):
                continue
            for reserved in held:
                dead = dead or await _finish(bench, queue, reserved, dice)
        await bench.registry().remove(worker_id)
        if done.is_set():
            return


async def _sweep(bench, dice, done):
    sweeper = bench.sweeper(_flaky(bench.redis, dice.randrange(2**32)))
    while not done.is_set():
        await asyncio.sleep(0.01)
        bench.now_ms += 3_000  # so that what crashed becomes old enough to be found
        try:
            await sweeper.sweep(MODELS)
        except StoreUnavailable:
            continue


async def _reclaim(bench, dice, done):
    reclaimer = bench.reclaimer(_flaky(bench.redis, dice.randrange(2**32)), lease_s=0.6)
    while not done.is_set():
        await asyncio.sleep(0.01)
        try:
            await reclaimer.reclaim(MODEL)
        except StoreUnavailable:
            continue


async def _cancel_some(bench, jobs, dice, cancelled):
    """Cancels a tenth of the jobs at random moments; which ones were acknowledged before they had ended."""
    for job in dice.sample(jobs, len(jobs) // 10):
        await asyncio.sleep(0.05 * dice.random())
        try:
            state = await bench.store(_flaky(bench.redis, dice.randrange(2**32))).cancel(
                job.tenant_id, job.job_id
            )
        except (StoreUnavailable, NotFound):
            continue
        if state in (JobState.RUNNING, JobState.CANCELLED):
            cancelled.add(job.job_id)


async def _check_ends(bench, jobs, cancelled):
    """Each job is in a terminal state; the memories hold the succeeded jobs' images, each once, in order."""
    records = [await bench.store().get(job.tenant_id, job.job_id) for job in jobs]
    assert {record.state for record in records} <= {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    assert {r.job.job_id for r in records if r.state is JobState.CANCELLED} >= cancelled
    assert sum(record.state is JobState.SUCCEEDED for record in records) > len(jobs) // 3
    for tenant in TENANTS:
        memory = bench.memory(tenant)
        log = await bench.memories().read_after(memory, 0, 10_000)
        assert [version for version, _ in log] == list(range(1, len(log) + 1))
        assert await bench.memories().version(memory) == len(log)
        kept = [decode_entry(data).image_id for _, data in log]
        made = [
            image.image_id
            for record in records
            if record.job.tenant_id == tenant and record.result is not None
            for image in record.result.images
        ]
        assert sorted(kept) == sorted(made)
        assert len(set(kept)) == len(kept)
    return records


@pytest.mark.parametrize("seed", range(6))
async def test_every_accepted_job_ends_exactly_once(bench, redis, seed):
    """Four workers, two acceptors, sweeps, leases, cancels, broken calls, lost answers: no job is lost or doubled."""
    dice = random.Random(seed)
    bench.limits = JobLimits(max_released_per_tenant=4)
    jobs = [bench.job(dice.choice(TENANTS), num_images=dice.randint(1, 3)) for _ in range(60)]
    done, cancelled = asyncio.Event(), set()
    async with asyncio.TaskGroup() as group:
        workers = [
            group.create_task(_work(bench, f"w{number}", random.Random(seed * 10 + number), done))
            for number in range(4)
        ]
        group.create_task(_sweep(bench, dice, done))
        group.create_task(_reclaim(bench, dice, done))
        group.create_task(_cancel_some(bench, jobs, dice, cancelled))
        await asyncio.gather(
            _accept_all(bench, _flaky(redis, seed), jobs[::2]),
            _accept_all(bench, _flaky(redis, seed + 1), jobs[1::2]),
        )
        async with asyncio.timeout(200):
            while await bench.store().count_open(MODEL):  # noqa: ASYNC110 - the event would be in Redis
                await asyncio.sleep(0.02)
        done.set()
        await asyncio.gather(*workers)
    records = await _check_ends(bench, jobs, cancelled)
    for tenant in TENANTS:
        sets = (keys.waiting_key(TenantId(tenant), MODEL), keys.released_key(TenantId(tenant), MODEL))
        assert await redis.exists(*sets) == 0
    await bench.reclaimer().reclaim(MODEL)
    assert (await redis.xpending(keys.stream_key(MODEL), keys.GROUP))["pending"] == 0
    assert len(records) == len(jobs)
