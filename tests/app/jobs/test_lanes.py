"""What somebody waits for goes before the lines of batches, and neither stops the other for ever."""

import dataclasses

import pytest

from app.domain.ids import ModelId
from app.domain.job import Job, Lane
from app.errors import QueueFull
from app.jobs import keys
from app.jobs.sweeper import SweepReport
from app.jobs.types import JobLimits

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")


def _line(bench, tenant: str = "acme") -> Job:
    return dataclasses.replace(bench.job(tenant), lane=Lane.BATCH)


async def _finish_one(bench, queue, worker_id) -> Job:
    [reserved] = await queue.reserve((MODEL,), worker_id, 1, 0)
    await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    return reserved.job


@pytest.mark.parametrize("tenants", [("acme", "acme"), ("acme", "other")])
async def test_interactive_jobs_overtake_lines(bench, tenants):
    """Ten lines wait; an interactive job that comes last, of the same tenant or of another, is made next."""
    worker_id, queue = await bench.live("w1"), bench.queue()
    for _ in range(10):
        await bench.store().accept(_line(bench, tenants[0]))
    first = await _finish_one(bench, queue, worker_id)
    job = bench.job(tenants[1])
    await bench.store().accept(job)
    assert (first.lane, await _finish_one(bench, queue, worker_id)) == (Lane.BATCH, job)


async def test_lines_are_made_in_their_order_once_nothing_else_waits(bench):
    """Lines keep the order of their creation, and a lane's end frees a place in that lane."""
    bench.limits = JobLimits(max_released_per_tenant=1)
    worker_id, queue = await bench.live("w1"), bench.queue()
    lines = [_line(bench) for _ in range(5)]
    for line in lines:
        await bench.store().accept(line)
    assert [await _finish_one(bench, queue, worker_id) for _ in lines] == lines
    assert await bench.store().count_open(MODEL) == 0


async def test_lines_move_under_a_steady_load(bench):
    """Interactive jobs never run out; a line is among the first dozen all the same."""
    worker_id, queue = await bench.live("w1"), bench.queue()
    await bench.store().accept(_line(bench))
    made = []
    for _ in range(12):
        await bench.store().accept(bench.job("other"))
        made.append((await _finish_one(bench, queue, worker_id)).lane)
    assert made.count(Lane.BATCH) == 1


async def test_a_full_lane_leaves_room_in_the_other(bench):
    """A tenant's released lines take no place from its interactive jobs."""
    bench.limits = JobLimits(max_released_per_tenant=2)
    worker_id, queue = await bench.live("w1"), bench.queue()
    for _ in range(3):
        await bench.store().accept(_line(bench))
    assert len(await queue.reserve((MODEL,), worker_id, 8, 0)) == 2
    job = bench.job()
    await bench.store().accept(job)
    assert [held.job for held in await queue.reserve((MODEL,), worker_id, 8, 0)] == [job]


async def test_a_line_that_lost_its_turn_is_found(bench):
    """The sweep gives a lane's turn back, and does so once."""
    await bench.store().accept(_line(bench))
    await bench.redis.delete(keys.turns_key(MODEL, Lane.BATCH))
    worker_id, queue = await bench.live("w1"), bench.queue()
    assert await queue.reserve((MODEL,), worker_id, 1, 0) == []
    assert await bench.sweeper().sweep((MODEL,)) == SweepReport(num_open=1, num_repaired=1)
    assert await bench.sweeper().sweep((MODEL,)) == SweepReport(num_open=1, num_repaired=0)
    assert (await _finish_one(bench, queue, worker_id)).lane is Lane.BATCH


async def test_a_released_line_without_an_entry_is_found(bench):
    """The worker died between releasing a line and writing its entry: its time of release is read right."""
    line = _line(bench)
    await bench.store().accept(line)
    place = keys.place_of(bench.now_ms, Lane.BATCH)
    await bench.redis.zrem(keys.waiting_key(line.tenant_id, MODEL), line.job_id)
    await bench.redis.zadd(keys.released_key(line.tenant_id, MODEL), {line.job_id: place})
    assert (await bench.sweeper().sweep((MODEL,))).num_repaired == 0
    bench.now_ms += 6_000
    assert (await bench.sweeper().sweep((MODEL,))).num_repaired == 1
    assert await _finish_one(bench, bench.queue(), await bench.live("w1")) == line


async def test_a_full_queue_of_lines_says_when_to_try_again(bench):
    """The estimate is made of the oldest line's age, not of its place in the set."""
    bench.limits = JobLimits(max_waiting_per_tenant=1)
    await bench.store().accept(_line(bench))
    bench.now_ms += 30_000
    with pytest.raises(QueueFull) as full:
        await bench.store().accept(_line(bench))
    assert full.value.retry_after_s == 31
