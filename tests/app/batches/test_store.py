"""Records of batches: created, listed, cancelled, and gone in the end."""

import asyncio

import pytest

from app.batches import codec, keys
from app.domain.batch import Batch, BatchState, Cursor, LineCounts, LineFault
from app.domain.ids import TenantId, make_batch_id, parse_batch_id
from app.errors import BatchOver, CorruptRecord, IdempotencyMismatch, InvalidId, NotFound, TooManyBatches
from app.jobs.keys import idempotency_key
from app.jobs.types import Idempotency
from app.redis.members import parse_member

pytestmark = pytest.mark.anyio


async def _end(desk, batch, *, state=BatchState.FAILED, ttl_s=100):
    held = desk.held(batch)
    assert await held.acquire(5.0)
    async with held.kept(5.0):
        await held.end(BatchState.VALIDATING, state, ttl_s)
    await desk.batches().forget(batch.tenant_id, batch.batch_id)


async def test_a_new_batch(desk):
    """It is there with all it was given, is open, and the same one again changes nothing."""
    batch = await desk.batch("one")
    record = await desk.batches().create(batch)
    assert record.batch == batch
    assert (record.state, record.counts, record.faults) == (BatchState.VALIDATING, None, ())
    assert record.cursor == Cursor(1, 0)
    await desk.batches().cancel(batch.tenant_id, batch.batch_id)
    again = await desk.batches().create(batch)
    assert again.state is BatchState.CANCELLING
    assert [found.batch_id for found in await desk.batches().list_open(9)] == [batch.batch_id]
    assert await desk.batches().count_open() == 1


async def test_one_key_is_one_batch(desk):
    """Eight at once under one key are the first that was written; another request under it leaves nothing."""
    batches = [await desk.batch("one") for _ in range(8)]
    key = Idempotency("mine", "asked")
    made = await asyncio.gather(*(desk.batches().create(batch, key) for batch in batches))
    assert len({record.batch.batch_id for record in made}) == 1
    with pytest.raises(IdempotencyMismatch):
        await desk.batches().create(await desk.batch("one"), Idempotency("mine", "asked otherwise"))
    with pytest.raises(IdempotencyMismatch):
        await desk.batches().standing_for(TenantId("acme"), Idempotency("mine", "asked otherwise"))
    assert await desk.batches().standing_for(TenantId("acme"), key) == made[0]
    assert await desk.batches().standing_for(TenantId("other"), key) is None
    assert await desk.batches().count_open() == 1
    assert len((await desk.batches().list_batches(TenantId("acme"), 10)).batches) == 1


async def test_a_key_stands_for_a_job_or_for_a_batch(desk):
    """Not for both: whichever came second is refused."""
    key = idempotency_key(TenantId("acme"), "mine")
    await desk.redis.hset(key, mapping={"job_id": "job_0", "fingerprint": "a job"})
    with pytest.raises(IdempotencyMismatch):
        await desk.batches().create(await desk.batch("one"), Idempotency("mine", "a batch"))
    for fingerprint in ("a batch", "a job"):
        with pytest.raises(IdempotencyMismatch):
            await desk.batches().standing_for(TenantId("acme"), Idempotency("mine", fingerprint))


async def test_another_tenants_batch_is_not_found(desk):
    """Neither to read nor to cancel, nor in a list."""
    batch = await desk.create("one")
    other = TenantId("bolt")
    with pytest.raises(NotFound):
        await desk.batches().get(other, batch.batch_id)
    with pytest.raises(NotFound):
        await desk.batches().cancel(other, batch.batch_id)
    assert (await desk.batches().list_batches(other, 10)).batches == ()


async def test_lists_have_the_newest_first_and_cursors(desk):
    """A cursor names a place: its own batch may be gone."""
    made = [await desk.create("one") for _ in range(5)]
    names = [batch.batch_id for batch in reversed(made)]
    store = desk.batches()

    async def look(limit, after=None):
        page = await store.list_batches(TenantId("acme"), limit, after)
        return [record.batch.batch_id for record in page.batches], page.has_more

    assert await look(10) == (names, False)
    assert await look(2) == (names[:2], True)
    assert await look(3, names[1]) == (names[2:], False)
    await desk.redis.delete(keys.batch_key(TenantId("acme"), names[1]))
    assert await look(3, names[1]) == (names[2:], False)
    assert await look(2) == ([names[0], names[2]], True)
    await desk.redis.hset(keys.batch_key(TenantId("acme"), names[3]), "state", "odd")
    assert await look(9) == ([names[0], names[2], names[4]], False)


async def test_a_tenant_has_a_bounded_number_of_open_batches(desk):
    """One more is refused and leaves nothing; when one has ended, there is room again. Others have their own bound."""
    made = [await desk.create("one") for _ in range(20)]
    with pytest.raises(TooManyBatches, match="20"):
        await desk.create("one")
    await desk.create("one", tenant="bolt")
    assert await desk.batches().count_open() == 21
    await _end(desk, made[3])
    await desk.create("one")


async def test_an_ended_batch_goes_after_its_time(desk):
    """Its record expires by itself, and the next creation takes its name out of the list."""
    batch = await desk.create("one")
    await _end(desk, batch, ttl_s=100)
    assert 0 < await desk.redis.pttl(keys.batch_key(batch.tenant_id, batch.batch_id)) <= 100_000
    index = keys.index_key(batch.tenant_id)
    desk.now_ms += 99_000
    await desk.create("two")
    assert await desk.redis.zcard(index) == 2
    desk.now_ms += 2_000
    await desk.create("three")
    assert await desk.redis.zcard(index) == 2
    assert await desk.redis.zcard(keys.expiries_key(batch.tenant_id)) == 0


@pytest.mark.parametrize("state", [BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED])
async def test_what_has_ended_cannot_be_cancelled(desk, state):
    """It stays as it is."""
    batch = await desk.create("one")
    await _end(desk, batch, state=state)
    with pytest.raises(BatchOver, match=state.value):
        await desk.batches().cancel(batch.tenant_id, batch.batch_id)
    assert (await desk.read(batch)).state is state


async def test_a_record_is_what_was_written(desk):
    """Every field of the hash has its place in the record."""
    batch = await desk.create("one")
    faults = (LineFault("bad", "m", "p", 3), LineFault("worse", "m"))
    held = desk.held(batch)
    assert await held.acquire(5.0)
    fields = {"total": 9, "failed": 2, "faults": codec.encode_faults(faults), "next_line": 1}
    await held.move(BatchState.VALIDATING, BatchState.IN_PROGRESS, fields)
    assert await held.advance(Cursor(1, 0), Cursor(5, 70), [2, 4], num_failed=1)
    assert await held.lines_in_flight() == {2, 4}
    await held.tell(faults[0], faults)
    ended = {2: BatchState.COMPLETED, 4: BatchState.FAILED}
    assert await held.count(ended) == (1, 1)
    assert await held.count(ended) == (0, 0)
    record = await held.read()
    assert record.counts == LineCounts(9, 1, 4)
    assert (record.faults, record.held_up, record.cursor) == (faults, faults[0], Cursor(5, 70))
    assert set(record.reached_at_ms) == {BatchState.VALIDATING, BatchState.IN_PROGRESS}


async def test_bad_lines_are_kept_by_number(desk):
    """Any set of numbers comes back."""
    batch = await desk.create("one")
    held = desk.held(batch)
    assert await held.acquire(5.0)
    for lines in ([], [1], [7, 8, 9], [100_001, 3]):
        await held.write_bad_lines(lines)
        assert await held.read_bad_lines() == frozenset(lines)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"batch": b"{}"},
        {"batch": b"x"},
        {"state": b"odd"},
        {"total": b"x"},
        {"faults": b"[1]"},
        {"at:odd": b"1"},
    ],
)
def test_a_broken_record_is_corrupt(broken):
    """Whatever is wrong with it."""
    batch = Batch(TenantId("acme"), make_batch_id(1, bytes(12)), "file-1", 1, "http://x", 1, 2, 3)
    found = {b"batch": codec.encode_batch(batch), b"state": b"validating"}
    assert codec.decode_record(found, where="here").batch == batch
    changed = found | {name.encode(): value for name, value in broken.items()} if broken else {}
    with pytest.raises(CorruptRecord, match="here"):
        codec.decode_record(changed, where="here")


@pytest.mark.parametrize("member", [b"", b"acme", b"acme/", b"a b/batch_00", b"acme/job_00", b"\xff/x"])
def test_a_member_that_is_not_ours(member):
    """It is refused."""
    with pytest.raises(InvalidId):
        parse_member(member, parse_batch_id)
