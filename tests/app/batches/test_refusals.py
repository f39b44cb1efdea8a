"""Lines that a quota refuses: what that means for them, for those behind them, and what is told of it."""

import pytest
from patience import eventually

from app.batches.keys import refused_key
from app.domain.batch import BatchState
from app.domain.ids import TenantId
from app.domain.quota import DAY_MS

pytestmark = pytest.mark.anyio


async def _is_held_up(desk, batch, code, line=None):
    held_up = (await desk.read(batch)).held_up
    return held_up is not None and held_up.code == code and line in (None, held_up.line)


async def test_a_line_that_can_never_fit_costs_itself(desk):
    """Eight images of five a day, or as many entries: a fault at once, told by the batch; the others are done."""
    for name, code in (("images_per_day", "insufficient_quota"), ("max_memory_entries", "memory_full")):
        desk.quotas = {name: 5}
        batch = await desk.create("many", "bad", "one", "many too", "two")
        async with desk.driving(desk.driver()), desk.working():
            record = await desk.wait(batch)
        assert (record.state, record.counts.completed, record.counts.failed) == (BatchState.COMPLETED, 2, 3)
        errors = await desk.errors(batch)
        assert [(line["line"], line["code"]) for line in errors] == [(1, code), (2, "bad"), (4, code)]
        assert [(fault.line, fault.code) for fault in record.faults] == [(2, "bad"), (1, code), (4, code)]
        assert "8" in errors[0]["message"]
        assert "5" in errors[0]["message"]
        assert record.held_up is None


async def test_lines_are_stepped_over_where_others_have_room(desk):
    """A full memory holds up those that write to it: the others are done, and those once something was forgotten."""
    desk.quotas, desk.num_entries = {"max_memory_entries": 10}, 10
    words = [f"{kind}{number}" for number in range(6) for kind in ("keep", "aside")]
    batch = await desk.create(*words)
    async with desk.driving(desk.driver()), desk.working():

        async def are_aside_done():
            return len(desk.done) == 6

        await eventually(are_aside_done)
        await eventually(lambda: _is_held_up(desk, batch, "memory_full"))
        assert {word[:5] for word in desk.done} == {"aside"}
        record = await desk.read(batch)
        assert (record.state, record.held_up.line) == (BatchState.IN_PROGRESS, 1)
        desk.num_entries = 0
        record = await desk.wait(batch)
    assert (record.state, record.counts.completed, record.held_up) == (BatchState.COMPLETED, 12, None)
    assert sorted(desk.done) == sorted(words)
    assert await desk.redis.exists(refused_key(TenantId("acme"), batch.batch_id)) == 0


async def test_a_bounded_number_is_stepped_over(desk):
    """Then the next one holds up all behind it: nothing grows with the file."""
    desk.limits = desk.limits.__class__(max_lines_waiting=4, poll_s=0.01, retry_s=0.02, max_held_back=2)
    desk.quotas, desk.num_entries = {"max_memory_entries": 10}, 10
    batch = await desk.create("keep1", "keep2", "keep3", "aside")
    async with desk.driving(desk.driver()), desk.working():
        await eventually(lambda: _is_held_up(desk, batch, "memory_full", 3))
        assert await desk.redis.hlen(refused_key(batch.tenant_id, batch.batch_id)) == 2
        assert desk.done == []
        desk.num_entries = 0
        assert (await desk.wait(batch)).counts.completed == 4


async def test_another_driver_goes_on_with_what_was_stepped_over(desk):
    """It finds the lines in the file again, behind empty ones too."""
    desk.quotas, desk.num_entries = {"max_memory_entries": 10}, 10
    batch = await desk.create("aside", "", "keep", "", "", "aside too", "keep too", "aside three")

    async def are_aside_done():
        return len(desk.done) == 3

    async with desk.working():
        async with desk.driving(desk.driver()):
            await eventually(are_aside_done)
            await eventually(lambda: _is_held_up(desk, batch, "memory_full"))
        desk.num_entries = 0
        async with desk.driving(desk.driver()):
            record = await desk.wait(batch)
    assert record.counts.completed == 5
    assert desk.done[3:] in (["keep", "keep too"], ["keep too", "keep"])


async def test_what_holds_lines_up_is_told_and_is_in_the_error_file(desk):
    """The day's images are spent: the batch says so, and so do the lines that have expired of it; a new day clears it."""
    desk.now_ms = DAY_MS // 2
    batch = await desk.create(*(f"w{number}" for number in range(7)))
    desk.quotas = {"images_per_day": 2}
    async with desk.driving(desk.driver()), desk.working():
        await eventually(lambda: _is_held_up(desk, batch, "insufficient_quota", 3))
        desk.now_ms = DAY_MS
        await eventually(lambda: _is_held_up(desk, batch, "insufficient_quota", 5))
        desk.now_ms = batch.expires_at_ms
        record = await desk.wait(batch)
    assert (record.state, record.counts.completed) == (BatchState.EXPIRED, 4)
    errors = await desk.errors(batch)
    assert {line["code"] for line in errors} == {"batch_expired"}
    assert all("insufficient_quota: you may ask for 2 images a day" in line["message"] for line in errors)


async def test_a_line_that_was_stepped_over_says_why_it_was_not_done(desk):
    """By its own refusal, where the day is over; where the batch was cancelled, by that."""
    desk.quotas, desk.num_entries = {"max_memory_entries": 10}, 10
    codes = []
    for end in ("expire", "cancel"):
        batch = await desk.create("keep", "aside")
        async with desk.driving(desk.driver()), desk.working():
            await eventually(lambda batch=batch: _is_held_up(desk, batch, "memory_full"))
            if end == "expire":
                desk.now_ms = batch.expires_at_ms
            else:
                await desk.batches().cancel(batch.tenant_id, batch.batch_id)
            await desk.wait(batch)
        codes += [line["code"] for line in await desk.errors(batch) if line["id"] == "keep"]
    assert codes == ["memory_full", "batch_cancelled"]


async def test_a_quota_of_nothing_waits(desk):
    """No image a day is a tenant that is suspended: its batches lose no line, and go on when it is one no more."""
    batch = await desk.create("one", "many")
    desk.quotas = {"images_per_day": 0}
    async with desk.driving(desk.driver()), desk.working():
        await eventually(lambda: _is_held_up(desk, batch, "insufficient_quota"))
    desk.quotas = {"images_per_day": 9}
    async with desk.driving(desk.driver()), desk.working():
        assert (await desk.wait(batch)).counts.completed == 2
