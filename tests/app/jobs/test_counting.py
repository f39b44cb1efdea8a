"""Every end is counted once, though answers are lost, by whichever process brought it about and by no other."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from app.domain.ids import ModelId, WorkerId
from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import StoreUnavailable
from app.jobs.leases import JobReclaimer
from app.jobs.place import JobPlace
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.transitions import Requeued, Transitions
from app.telemetry.metrics import Metrics
from tests.aids.lossy_way import lossy_client

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
OOM = Failure("oom", "out of memory")


@pytest.fixture
async def lossy(redis):
    """A client whose answers may be lost."""
    async with lossy_client(redis) as both:
        yield both


def _counted(metrics):
    """What was counted of ends: how many of each state, and of cancels before a start."""
    value = metrics.registry.get_sample_value
    found = {
        state.value: value("sparke_jobs_finished_total", {"model": MODEL, "state": state.value}) or 0
        for state in JobState
    }
    found["unbegun"] = value("sparke_jobs_cancelled_total") or 0
    return {name: number for name, number in found.items() if number}


async def _start(bench, queue, **how):
    job = bench.job(**how)
    await bench.store().accept(job)
    [held] = await queue.reserve((MODEL,), await bench.live("w1"), 1, 0)
    return held


NUM_LOST = [1, 4]  # the client's own repetition gets an answer; or it gives up, and its caller repeats it


async def _repeat(operation):
    """What a worker does: the same again, until there is an answer."""
    for _ in range(3):
        try:
            return await operation()
        except StoreUnavailable:
            continue
    raise AssertionError("no answer after three calls")


@pytest.mark.parametrize("num_lost", NUM_LOST)
@pytest.mark.parametrize(
    "way_to_end", ["commit", "fail", "cancelled commit", "cancelled give_back", "cancel"]
)
async def test_an_end_whose_answer_was_lost_is_counted_once(bench, lossy, way_to_end, num_lost):
    """The repeated call counts what the first one did, however long there was no answer; and once more it counts nothing."""
    client, way = lossy
    metrics = Metrics()
    queue = JobQueue(client, bench.limits, clock_ms=bench.clock_ms, metrics=metrics)
    store = JobStore(client, bench.limits, clock_ms=bench.clock_ms, metrics=metrics)
    if way_to_end == "cancel":
        job = bench.job()
        await bench.store().accept(job)
        call = partial(store.cancel, job.tenant_id, job.job_id)
        expected = {"unbegun": 1}
    else:
        held = await _start(bench, queue)
        if way_to_end.startswith("cancelled"):
            await bench.store().cancel(held.job.tenant_id, held.job.job_id)
        call = {
            "commit": lambda: queue.commit(held, bench.result(held), bench.entries(held)),
            "fail": lambda: queue.fail(held, OOM),
            "give_back": lambda: queue.give_back(held),
        }[way_to_end.removeprefix("cancelled ")]
        states = {"commit": "succeeded", "fail": "failed"}
        expected = {states.get(way_to_end, "cancelled"): 1}
    way.word, way.num_to_lose = b"EVALSHA", num_lost
    await _repeat(call)
    assert len(way.lost) == num_lost
    assert _counted(metrics) == expected
    await _repeat(call)
    assert _counted(metrics) == expected


@pytest.mark.parametrize("num_lost", NUM_LOST)
@pytest.mark.parametrize("end", ["expired", "failed"])
async def test_an_end_at_the_start_is_counted_once(bench, lossy, end, num_lost):
    """A job that is too late, or poison, when a worker is given it."""
    client, way = lossy
    metrics = Metrics()
    bench.limits = replace(bench.limits, max_attempts=1)
    if end == "failed":
        before = bench.queue()
        await before.begin(await _start(bench, before))
        await bench.reclaimer().reclaim(MODEL)
    else:
        await bench.store().accept(bench.job(timeout_ms=5))
        await bench.release()
        bench.now_ms += 10
    queue = JobQueue(client, bench.limits, clock_ms=bench.clock_ms, metrics=metrics)
    await queue.reserve((ModelId("other"),), await bench.live("w2"), 1, 0)  # its scripts are known by now
    way.word, way.num_to_lose = b'"poison"', num_lost
    await _repeat(lambda: queue.reserve((MODEL,), "w2", 1, 0))
    assert way.num_to_lose == 0
    assert _counted(metrics) == {end: 1}
    assert await bench.redis.zcard(f"sparke:{{m:{MODEL}}}:open") == 0


async def test_who_finds_an_end_of_anothers_counts_nothing(bench, redis):
    """A worker was silent, and its job ended as cancelled when it was taken from it: the worker's own commit comes late."""
    metrics, theirs = Metrics(), Metrics()
    queue = JobQueue(redis, bench.limits, clock_ms=bench.clock_ms, metrics=metrics)
    held = await _start(bench, queue)
    await bench.store().cancel(held.job.tenant_id, held.job.job_id)
    reclaimer = JobReclaimer(redis, bench.limits, lease_s=0, clock_ms=bench.clock_ms, metrics=theirs)
    await reclaimer.reclaim(MODEL)
    assert await queue.commit(held, bench.result(held), bench.entries(held))
    assert await queue.fail(held, OOM) is JobState.CANCELLED
    assert (_counted(metrics), _counted(theirs)) == ({}, {"cancelled": 1})


async def test_a_letter_that_is_due_still_is_no_end(bench, redis):
    """Whoever finds a job that had ended as poison may write its letter; only who ended it counts that."""
    bench.limits, metrics, theirs = replace(bench.limits, max_attempts=1), Metrics(), Metrics()
    before = bench.queue()
    held = await _start(bench, before)
    await before.begin(held)
    await bench.reclaimer().reclaim(MODEL)
    place = JobPlace.of(held.job)
    [_, (entry, _)] = await redis.xrange(f"sparke:{{m:{MODEL}}}:stream")
    steps = Transitions(redis, bench.limits, bench.clock_ms, metrics=metrics)
    for _ in range(2):
        outcome, _ = await steps.start(place, WorkerId("w2"), entry.decode())
        assert outcome == b"dead"
    others = Transitions(redis, bench.limits, bench.clock_ms, metrics=theirs)
    assert await others.requeue(place, stream_id=entry.decode()) is Requeued.DEAD
    assert (_counted(metrics), _counted(theirs)) == ({"failed": 1}, {})


async def test_clients_that_cancel_at_once_are_counted_as_one(bench, redis):
    """They share the call's name, and one of them counts."""
    metrics = Metrics()
    store = JobStore(redis, bench.limits, clock_ms=bench.clock_ms, metrics=metrics)
    job = bench.job()
    await bench.store().accept(job)
    await asyncio.gather(*(store.cancel(job.tenant_id, job.job_id) for _ in range(8)))
    assert _counted(metrics) == {"unbegun": 1}


async def test_a_cancel_of_what_has_failed_is_no_cancel(bench, lossy):
    """The failure was this process's own, and its answer lost for good: a call of the same name finds it, and counts no cancel."""
    client, way = lossy
    metrics = Metrics()
    store = JobStore(client, bench.limits, clock_ms=bench.clock_ms, metrics=metrics)
    job = bench.job()
    await bench.store().accept(job)
    way.word, way.num_to_lose = b"EVALSHA", NUM_LOST[-1]
    with pytest.raises(StoreUnavailable):
        await store.fail_if_queued(job.tenant_id, job.job_id, OOM)
    assert await store.cancel(job.tenant_id, job.job_id) is JobState.FAILED
    assert _counted(metrics) == {}
