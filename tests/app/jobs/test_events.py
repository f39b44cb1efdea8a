"""Whoever follows a job gets every event once and in order, also after coming back."""

import asyncio
import dataclasses

import pytest
from patience import PATIENCE_S
from redis.exceptions import ConnectionError  # noqa: A004 - Redis' own

from app.domain.ids import ModelId
from app.domain.job import Lane
from app.domain.result import Failure
from app.errors import InvalidId, NotFound, StoreUnavailable
from app.jobs import keys
from app.jobs.events import JobEvents, parse_event_id
from app.jobs.types import Progress, Standing

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")


async def _all(events, job, **how) -> list:
    found = events.follow(job.tenant_id, job.job_id, **how)
    return [event async for event in found]


async def _told(bench, job) -> list[str]:
    async with JobEvents(bench.redis) as events:
        return [event.type for event in await asyncio.wait_for(_all(events, job), PATIENCE_S)]


async def test_a_follower_is_woken_by_each_event(bench):
    """Acceptance, start, progress and end arrive as they happen, long before the follower would look itself."""
    worker_id, job, queue = await bench.live("w1"), bench.job(), bench.queue()
    await bench.store().accept(job)
    async with JobEvents(bench.redis, poll_s=600) as events:
        following = events.follow(job.tenant_id, job.job_id)
        assert (await anext(following)).type == "queued"
        [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
        assert dataclasses.astuple(await asyncio.wait_for(anext(following), PATIENCE_S))[1:] == (
            "running",
            {"attempt": "1"},
        )
        assert await queue.standing(reserved, Progress(1, 2)) is Standing.OURS
        assert (await asyncio.wait_for(anext(following), PATIENCE_S)).fields == {
            "step": "1",
            "num_steps": "2",
        }
        await queue.commit(reserved, bench.result(reserved), [])
        last = await asyncio.wait_for(anext(following), PATIENCE_S)
        assert (last.type, last.is_last) == ("succeeded", True)
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(following), PATIENCE_S)


async def test_whoever_comes_back_gets_the_rest_once(bench):
    """From any event on, the later ones and no earlier one; from the last one on, none."""
    worker_id, job, queue = await bench.live("w1"), bench.job(), bench.queue()
    await bench.store().accept(job)
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    for step in range(1, 6):
        await queue.standing(reserved, Progress(step, PATIENCE_S))
    await queue.fail(reserved, Failure("oom", "out of memory"))
    async with JobEvents(bench.redis) as events:
        whole = await _all(events, job)
        assert [event.type for event in whole] == ["queued", "running", *["progress"] * 5, "failed"]
        for index, event in enumerate(whole):
            assert await _all(events, job, after=event.event_id) == whole[index + 1 :]


async def test_a_redelivery_is_told(bench):
    """The worker died: the job is queued again, and runs again as its second attempt."""
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    [lost] = await queue.reserve((MODEL,), await bench.live("w1"), 1, 0)
    await queue.begin(lost)
    await bench.reclaimer().reclaim(MODEL)
    assert await queue.standing(lost, Progress(1, 2)) is Standing.LOST
    [again] = await bench.queue().reserve((MODEL,), await bench.live("w2"), 1, 0)
    await bench.queue().commit(again, bench.result(again), [])
    assert await _told(bench, job) == ["queued", "running", "queued", "running", "succeeded"]


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_cancel_is_told(bench, is_running):
    """A queued job has ended with it; of a running one it is told at once, and told once, that it shall end."""
    job, queue = bench.job(), bench.queue()
    await bench.store().accept(job)
    if is_running:
        [reserved] = await queue.reserve((MODEL,), await bench.live("w1"), 1, 0)
    for _ in range(2):
        await bench.store().cancel(job.tenant_id, job.job_id)
    if is_running:
        assert await queue.standing(reserved, Progress(1, 2)) is Standing.CANCELLED
        await queue.commit(reserved, bench.result(reserved), [])
    between = ["running", "cancel_requested"] if is_running else []
    assert await _told(bench, job) == ["queued", *between, "cancelled"]


async def test_an_expired_job_tells_so(bench):
    """Its deadline passed before a worker was free."""
    job = bench.job(timeout_ms=10)
    await bench.store().accept(job)
    bench.now_ms += 100
    await bench.queue().reserve((MODEL,), await bench.live("w1"), 1, 0)
    assert await _told(bench, job) == ["queued", "expired"]


async def test_lines_of_batches_tell_nothing(bench):
    """They have no stream, at no time of their lives."""
    job, queue = dataclasses.replace(bench.job(), lane=Lane.BATCH), bench.queue()
    await bench.store().accept(job)
    [reserved] = await queue.reserve((MODEL,), await bench.live("w1"), 1, 0)
    await queue.standing(reserved, Progress(1, 2))
    await queue.commit(reserved, bench.result(reserved), [])
    assert await bench.redis.exists(keys.events_key(job.tenant_id, job.job_id)) == 0
    async with JobEvents(bench.redis) as events:
        with pytest.raises(NotFound):
            await events.last(job.tenant_id, job.job_id)
        assert await _all(events, job) == []


async def test_events_live_as_long_as_their_job(bench):
    """They have no time to live before the end, and the record's after it."""
    job = bench.job()
    name = keys.events_key(job.tenant_id, job.job_id)
    await bench.store().accept(job)
    assert await bench.redis.pttl(name) == -1
    await bench.store().cancel(job.tenant_id, job.job_id)
    async with bench.redis.pipeline(transaction=True) as pipe:  # at one moment
        events_ms, job_ms = await pipe.pttl(name).pttl(keys.job_key(job.tenant_id, job.job_id)).execute()
    assert events_ms == pytest.approx(job_ms, abs=1000)
    assert events_ms > 0


async def test_a_follower_hears_that_nothing_happens(bench):
    """Every while without an event it gets None, so that a connection can be kept alive."""
    job = bench.job()
    await bench.store().accept(job)
    async with JobEvents(bench.redis, poll_s=0.02) as events:
        following = events.follow(job.tenant_id, job.job_id, idle_s=0.1)
        assert (await anext(following)).type == "queued"
        assert await asyncio.wait_for(anext(following), PATIENCE_S) is None


class _Between:
    """A Redis where something happens between a follower's two looks at a stream."""

    def __init__(self, redis, happens):
        self._redis, self._happens = redis, happens

    def __getattr__(self, name):
        return getattr(self._redis, name)

    async def xrange(self, *given, **named):
        """Once nothing new was found, let it happen."""
        found = await self._redis.xrange(*given, **named)
        if not found and self._happens is not None:
            happens, self._happens = self._happens, None
            await happens()
        return found


async def test_an_end_between_two_looks_is_not_missed(bench):
    """It is written after a follower found nothing new, and before it asks whether anything can come."""
    job = bench.job()
    await bench.store().accept(job)
    redis = _Between(bench.redis, lambda: bench.store().cancel(job.tenant_id, job.job_id))
    async with JobEvents(redis) as events:
        told = await asyncio.wait_for(_all(events, job), PATIENCE_S)
    assert [event.type for event in told] == ["queued", "cancelled"]


class _Away:
    """A Redis that does not answer the first readings of a stream."""

    def __init__(self, redis, num_failures):
        self._redis, self._num_failures = redis, num_failures

    def __getattr__(self, name):
        return getattr(self._redis, name)

    async def xrange(self, *given, **named):
        """Fail as often as told, then answer."""
        self._num_failures -= 1
        if self._num_failures >= 0:
            raise ConnectionError("away")
        return await self._redis.xrange(*given, **named)


async def test_followers_are_let_go_when_the_process_stops(bench):
    """At once, and only those who asked for it; the others get the end of their job."""
    job = bench.job()
    await bench.store().accept(job)
    async with JobEvents(bench.redis, poll_s=600) as events:
        let_go = asyncio.create_task(_all(events, job, until_stop=True))
        staying = asyncio.create_task(_all(events, job))
        await asyncio.sleep(0.2)
        events.stop()
        assert [event.type for event in await asyncio.wait_for(let_go, PATIENCE_S)] == ["queued"]
        await bench.store().cancel(job.tenant_id, job.job_id)
        assert [event.type for event in await asyncio.wait_for(staying, PATIENCE_S)] == [
            "queued",
            "cancelled",
        ]


async def test_a_short_outage_is_waited_for_and_a_long_one_told(bench):
    """Redis is away for some looks: the follower goes on; for longer than its patience: StoreUnavailable."""
    job = bench.job()
    await bench.store().accept(job)
    await bench.store().cancel(job.tenant_id, job.job_id)
    async with JobEvents(_Away(bench.redis, 3), poll_s=0.02, outage_s=PATIENCE_S) as events:
        assert [event.type for event in await _all(events, job)] == ["queued", "cancelled"]
    async with JobEvents(_Away(bench.redis, 10**6), poll_s=0.02, outage_s=0.2) as events:
        with pytest.raises(StoreUnavailable):
            await _all(events, job)


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "1-1-1", "a-b", "1-99999999999999999999", "18446744073709551616-0"]
)
def test_what_is_no_event_id_is_refused(text):
    """Redis would answer with an error."""
    with pytest.raises(InvalidId):
        parse_event_id(text)
