"""What a job is charged, and what is given back."""

import asyncio
import dataclasses

import pytest

from app.domain.ids import ModelId, TenantId
from app.domain.job import JobState, Lane
from app.domain.quota import DAY_MS, Quotas, SameForAll, day_of
from app.domain.request import MemorySelection
from app.domain.result import Failure
from app.errors import ImagesSpent, MemoryFull, QueueFull, StorageFull, TooManyMemories
from app.jobs.room import CountedRoom
from app.jobs.store import JobStore
from app.jobs.transitions import CANCELLED
from app.jobs.types import Idempotency, JobLimits
from app.tenants.names import usage_key
from app.tenants.usage import UsageStore

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
ACME = TenantId("acme")
KEY = Idempotency("mine", "fingerprint")


def _store(bench, redis=None, **quotas):
    return JobStore(
        redis or bench.redis, bench.limits, clock_ms=bench.clock_ms, quotas=SameForAll(Quotas(**quotas))
    )


def _usage(bench):
    return UsageStore(bench.redis, ttl_s=62 * 86_400, image_ttl_s=30 * 86_400, clock_ms=bench.clock_ms)


async def _num_images(bench):
    return sum(day.num_images for day in await _usage(bench).read_days(ACME, 62))


async def test_a_days_images_are_counted_to_the_last(bench):
    """What fits is accepted, what does not is refused, says what is left, and is not charged; the next day is a new one."""
    store = _store(bench, images_per_day=5)
    accepted = await store.accept(bench.job(num_images=3))
    assert (accepted.images.limit, accepted.images.num_left) == (5, 2)
    with pytest.raises(ImagesSpent) as caught:
        await store.accept(bench.job(num_images=3))
    assert (caught.value.limit, caught.value.num_left) == (5, 2)
    assert caught.value.retry_after_s == caught.value.reset_after_s == -(-(DAY_MS - bench.now_ms) // 1000)
    assert (await store.accept(bench.job(num_images=2))).images.num_left == 0
    assert await _num_images(bench) == 5
    assert await bench.store().count_open(MODEL) == 2
    bench.now_ms = DAY_MS
    assert (await store.accept(bench.job(num_images=5))).images.num_left == 0
    assert [day.num_images for day in await _usage(bench).read_days(ACME, 62)] == [5, 5]


async def test_no_two_requests_get_the_same_image_of_the_day(bench):
    """Forty at once, ten allowed: ten."""
    store = _store(bench, images_per_day=10)
    jobs = [bench.job() for _ in range(40)]
    found = await asyncio.gather(*(store.accept(job) for job in jobs), return_exceptions=True)
    assert sum(not isinstance(one, Exception) for one in found) == 10
    assert await _num_images(bench) == 10


async def test_what_is_sent_again_is_charged_once(bench):
    """The same job, as a driver that was killed sends it, and another under the same key, as a client does."""
    store, job = _store(bench, images_per_day=2), bench.job(num_images=2)
    line = dataclasses.replace(bench.job(), lane=Lane.BATCH)
    for again in (job, job, bench.job(num_images=2)):
        assert (await store.accept(again, KEY)).job_id == job.job_id
    assert await _num_images(bench) == 2
    store = _store(bench, images_per_day=3)
    for _ in range(3):
        await store.accept(line)
    assert await _num_images(bench) == 3


@pytest.mark.parametrize(
    "way", ["cancelled in the queue", "cancelled at work", "failed", "expired", "poison"]
)
async def test_a_job_that_ends_without_images_gives_its_own_back(bench, way):
    """To the day that was charged, once, whichever way it ends; what counts it is told of no end twice."""
    bench.limits = JobLimits(max_attempts=1)
    store, queue, worker_id = _store(bench), bench.queue(), await bench.live("w1")
    await store.accept(bench.job(num_images=2, timeout_ms=DAY_MS * 9))
    job = bench.job(num_images=4, timeout_ms=DAY_MS * 9 if way != "expired" else 5)
    await queue.reserve((MODEL,), worker_id, 2, 0)
    await store.accept(job)
    assert await _num_images(bench) == 6
    if way == "cancelled in the queue":
        await store.cancel(ACME, job.job_id)
    bench.now_ms += 10 if way != "failed" else DAY_MS
    reserved = await queue.reserve((MODEL,), worker_id, 4, 0)
    if way == "cancelled at work":
        await store.cancel(ACME, job.job_id)
        assert await _num_images(bench) == 6
        await queue.fail(reserved[0], CANCELLED)
    elif way == "failed":
        await queue.fail(reserved[0], Failure("out_of_memory", "too large"))
    elif way == "poison":
        await queue.begin(reserved[0])
        await queue.give_back(reserved[0], is_forgiven=False)
        await queue.reserve((MODEL,), worker_id, 4, 0)
    record = await store.get(ACME, job.job_id)
    assert record.state.is_terminal
    assert record.state is not JobState.SUCCEEDED
    await store.cancel(ACME, job.job_id)
    assert await bench.redis.hget(usage_key(ACME), "0:images") == b"2"
    assert await _num_images(bench) == 2


async def test_made_images_stay_charged_and_their_bytes_are_counted(bench):
    """On the day on which they were made, until the last image of that day is past its time to live."""
    store, queue, worker_id = _store(bench), bench.queue(), await bench.live("w1")
    await store.accept(bench.job(num_images=3))
    [reserved] = await queue.reserve((MODEL,), worker_id, 3, 0)
    bench.now_ms += DAY_MS
    for _ in range(2):
        await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    assert [(day.day, day.num_images) for day in await _usage(bench).read_days(ACME, 62)] == [(1, 0), (0, 3)]
    assert await _usage(bench).image_bytes(ACME) == 30
    bench.now_ms = 32 * DAY_MS - 1
    assert await _usage(bench).image_bytes(ACME) == 30
    bench.now_ms += 1
    assert await _usage(bench).image_bytes(ACME) == 0


async def test_a_job_from_before_there_was_usage_ends_as_ever(bench):
    """Nothing is given back that was never charged."""
    job = bench.job()
    await bench.store().accept(job)
    await bench.redis.hdel(f"sparke:{{t:acme}}:job:{job.job_id}", "charged")
    await bench.redis.delete(usage_key(ACME))
    assert await bench.store().cancel(ACME, job.job_id) is JobState.CANCELLED
    assert not await bench.redis.exists(usage_key(ACME))


async def test_a_tenants_own_bound_on_waiting_jobs_holds(bench):
    """In place of everybody's."""
    store = _store(bench, max_waiting_jobs=1)
    assert (await store.accept(bench.job())).num_free == 0
    with pytest.raises(QueueFull) as caught:
        await store.accept(bench.job())
    assert caught.value.limit == 1
    assert await _num_images(bench) == 1


class _Counts:
    """What a tenant has, as the test says."""

    def __init__(self):
        self.num_entries, self.num_bytes, self.has_no_memory_left = 0, 0, False

    async def entries(self, tenant_id):
        """Entries of the tenant."""
        assert tenant_id == ACME
        return self.num_entries

    async def stored(self, tenant_id):
        """Bytes of the tenant."""
        assert tenant_id == ACME
        return self.num_bytes

    async def check_memory(self, job):
        """Whether the job's memory may be one more."""
        if self.has_no_memory_left:
            raise TooManyMemories(f"none left for {job.tenant_id}")


@pytest.fixture
def counts():
    """A tenant that has nothing."""
    return _Counts()


def _roomy(bench, counts, **quotas):
    room = CountedRoom(
        memory_entries=counts.entries, stored_bytes=counts.stored, check_memory=counts.check_memory
    )
    return JobStore(
        bench.redis,
        bench.limits,
        clock_ms=bench.clock_ms,
        quotas=SameForAll(Quotas(**quotas)),
        room=room,
    )


async def test_where_there_may_be_no_memory_more_only_what_writes_is_refused(bench, counts):
    """The bound holds whatever the tenant's quotas are; a job that writes nothing makes no memory; what was before is accepted."""
    store, first = _roomy(bench, counts), bench.job()
    await store.accept(first, KEY)
    counts.has_no_memory_left = True
    with pytest.raises(TooManyMemories):
        await store.accept(bench.job())
    assert (await store.accept(bench.job(), KEY)).job_id == first.job_id
    assert (await store.accept(first)).job_id == first.job_id
    job = bench.job()
    reading = dataclasses.replace(job.request.diversity, memory=MemorySelection(write=False))
    await store.accept(dataclasses.replace(job, request=dataclasses.replace(job.request, diversity=reading)))


async def test_where_memories_are_full_only_what_writes_is_refused(bench, counts):
    """One more entry than may be is refused and not charged; without writing it is accepted; so is what was before."""
    store, counts.num_entries = _roomy(bench, counts, max_memory_entries=10), 8
    first = bench.job(num_images=2)
    await store.accept(first, KEY)
    with pytest.raises(MemoryFull, match="8 entries of 10"):
        await store.accept(bench.job(num_images=3))
    counts.num_entries = 10
    assert (await store.accept(bench.job(num_images=2), KEY)).job_id == first.job_id
    assert (await store.accept(first)).job_id == first.job_id
    job = bench.job()
    reading = dataclasses.replace(job.request.diversity, memory=MemorySelection(write=False))
    await store.accept(dataclasses.replace(job, request=dataclasses.replace(job.request, diversity=reading)))
    assert await _num_images(bench) == 3


async def test_where_the_store_is_full_nothing_is_accepted(bench, counts):
    """From the byte on that is the last."""
    store, counts.num_bytes = _roomy(bench, counts, max_stored_bytes=100), 99
    await store.accept(bench.job())
    counts.num_bytes = 100
    with pytest.raises(StorageFull, match="100 bytes of 100"):
        await store.accept(bench.job())
    assert await bench.store().count_open(MODEL) == 1


async def test_days_are_those_of_utc():
    """Midnight begins a new one."""
    assert [day_of(at_ms) for at_ms in (0, DAY_MS - 1, DAY_MS)] == [0, 0, 1]
