"""A batch under a lease: who holds it writes, and nobody else; what is written twice is written once."""

from contextlib import suppress

import pytest
from patience import eventually

from app.batches.held import LeaseLost
from app.batches.keys import batch_key, flight_key, lease_key, refused_key
from app.domain.batch import BatchState, Cursor, LineFault, RefusedLine
from app.errors import NotFound

pytestmark = pytest.mark.anyio

REFUSED = RefusedLine(LineFault("memory_full", "as it was", "body", 2), Cursor(2, 4))


async def _begin(desk):
    """A batch in progress, with line 1 in flight and line 2 refused, and who holds it."""
    batch = await desk.create("one", "two", "three")
    held = desk.held(batch)
    assert await held.acquire(600)
    await held.move(BatchState.VALIDATING, BatchState.IN_PROGRESS, {"total": 3, "failed": 0, "next_line": 1})
    assert await held.advance(Cursor(1, 0), Cursor(3, 8), [1], {2: REFUSED})
    return batch, held


async def test_one_process_at_a_time(desk):
    """A second one is refused, until the first has let go; asking again is no new lease."""
    batch = await desk.create("one")
    first, second = desk.held(batch), desk.held(batch)
    assert await first.acquire(600)
    assert await first.acquire(600)
    assert not await second.acquire(600)
    async with first.kept(600):
        assert not await second.acquire(600)
    assert await second.acquire(600)
    async with first.kept(600):
        pass
    assert not await first.acquire(600), "who has lost a lease does not end that of another"


async def test_a_lease_is_extended_while_it_is_kept(desk):
    """As often as it has nearly run out."""
    batch = await desk.create("one")
    first, second = desk.held(batch), desk.held(batch)
    lease = lease_key(batch.tenant_id, batch.batch_id)
    assert await first.acquire(600)

    async def is_extended():
        return await desk.redis.pttl(lease) > 500_000

    async with first.kept(600, every_s=0.05):
        for _ in range(3):
            await desk.redis.pexpire(lease, 100_000)
            await eventually(is_extended)
            assert not await second.acquire(600)


WRITES = {
    "move": lambda held: held.move(BatchState.IN_PROGRESS, BatchState.FINALIZING, {"outcome": "completed"}),
    "end": lambda held: held.end(BatchState.IN_PROGRESS, BatchState.FAILED, 10),
    "advance": lambda held: held.advance(Cursor(3, 8), Cursor(4, 13), [3], num_failed=1),
    "count": lambda held: held.count({1: BatchState.COMPLETED}),
    "bad lines": lambda held: held.write_bad_lines([2]),
    "advance with refusals": lambda held: held.advance(Cursor(3, 8), Cursor(5, 13), [3], {4: REFUSED}),
    "take up": lambda held: held.take_up([2]),
    "tell": lambda held: held.tell(REFUSED.fault, (REFUSED.fault,)),
}


async def _all(held):
    return (
        await held.read(),
        await held.lines_in_flight(),
        await held.read_bad_lines(),
        await held.read_refused(),
    )


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_without_the_lease_nothing_is_written(desk, write):
    """Whether it has run out, or another process has it."""
    batch, held = await _begin(desk)
    before = await _all(held)
    await desk.redis.delete(lease_key(batch.tenant_id, batch.batch_id))
    with pytest.raises(LeaseLost):
        await write(held)
    other = desk.held(batch)
    assert await other.acquire(600)
    with pytest.raises(LeaseLost):
        await write(held)
    assert await _all(held) == before
    await write(other)
    assert await _all(held) != before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_record_that_is_gone_does_not_come_back_in_part(desk, write):
    """Its tenant was deleted while a process drove the batch: half a record could be read by nobody, and stayed."""
    batch, held = await _begin(desk)
    place = (batch.tenant_id, batch.batch_id)
    await desk.redis.delete(batch_key(*place), flight_key(*place), refused_key(*place))
    with suppress(LeaseLost):
        await write(held)
    assert await desk.redis.exists(batch_key(*place), flight_key(*place), refused_key(*place)) == 0


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_what_is_written_again_changes_nothing(desk, write):
    """A lost connection repeats a command that was done."""
    _, held = await _begin(desk)
    await write(held)
    before = await _all(held)
    desk.now_ms += 1000
    await write(held)
    assert await _all(held) == before


async def test_a_line_that_was_taken_up_and_has_ended_is_not_in_flight_again(desk):
    """The lost answer comes late: the line was counted meanwhile."""
    _, held = await _begin(desk)
    assert await held.take_up([2])
    assert await held.count({1: BatchState.COMPLETED, 2: BatchState.COMPLETED}) == (2, 0)
    assert await held.take_up([2])
    assert (await held.lines_in_flight(), await held.read_refused()) == (set(), {})


async def test_a_cancelled_batch_takes_no_lines(desk):
    """The lines that were just submitted are to be taken back."""
    batch, held = await _begin(desk)
    await desk.batches().cancel(batch.tenant_id, batch.batch_id)
    assert not await held.advance(Cursor(3, 8), Cursor(4, 13), [3])
    assert not await held.take_up([2])
    assert set(await held.read_refused()) == {2}
    await held.move(BatchState.IN_PROGRESS, BatchState.FINALIZING)
    record = await held.read()
    assert (record.state, record.outcome) == (BatchState.CANCELLING, BatchState.CANCELLED)
    assert (record.cursor, await held.lines_in_flight()) == (Cursor(3, 8), {1})


async def test_a_cursor_that_is_elsewhere_is_a_lost_lease(desk):
    """Somebody else has gone on from there."""
    _, held = await _begin(desk)
    with pytest.raises(LeaseLost):
        await held.advance(Cursor(2, 4), Cursor(9, 99), [2])


async def test_a_batch_that_is_not_there(desk):
    """It is not found, and takes nothing."""
    batch = await desk.batch("one")
    held = desk.held(batch)
    assert await held.acquire(600)
    with pytest.raises(NotFound):
        await held.read()
    with pytest.raises(LeaseLost):
        await held.move(BatchState.VALIDATING, BatchState.IN_PROGRESS)
    assert not await held.is_in(BatchState.VALIDATING)
