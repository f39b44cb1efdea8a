"""The audit log: records before and after a deed, bounds, and what no record holds."""

import pytest
from clocks import MillisecondsClock
from patience import PATIENCE_S

from app.audit.keys import journal_key
from app.audit.log import AuditLimits, AuditLog, AuditQuery
from app.domain.audit import AuditRecord, Deed, Journal, word_of
from app.errors import InvalidValue, NotFound, StoreUnavailable
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio

DEED = Deed("key.revoke", "0123abcd", "ops", None, "89abcdef", "req_1")
DAY_MS = 86_400_000


async def _server_ms(redis):
    seconds, micros = await redis.time()
    return seconds * 1000 + micros // 1000


@pytest.fixture
async def clock(redis):
    """What the server's clock says, for the ids of a stream are its own."""
    return MillisecondsClock(await _server_ms(redis))


def _log(redis, clock, max_records=100, ttl_s=86_400):
    return AuditLog(redis, AuditLimits(max_records, ttl_s), clock_ms=clock)


async def _read(log, journal=Journal.ADMIN, limit=100, **query):
    return (await log.read(AuditQuery(journal, limit, **query))).records


async def test_a_deed_is_written_before_it_is_done_and_after(redis, clock):
    """Two records of one act, which tell who, what, on whom and how it ended; the facts come with the end."""
    log = _log(redis, clock)
    async with log.during(DEED, journal=Journal.ADMIN) as act:
        [(_, begun)] = await _read(log)
        act.note(num_entries=3, new_key="01234567")
    (_, done), (_, first) = await _read(log)
    assert (first, begun.outcome, done.outcome) == (begun, "begun", "done")
    assert begun.act_id == done.act_id
    assert (done.deed, done.facts) == (DEED, {"num_entries": 3, "new_key": "01234567"})


@pytest.mark.parametrize(("error", "outcome"), [(NotFound("none"), "refused"), (KeyError("fault"), "failed")])
async def test_an_end_without_success_is_told(redis, clock, error, outcome):
    """An error of the service is a refusal with its code, anything else a failure; it goes on to the caller."""
    log = _log(redis, clock)

    async def fail():
        async with log.during(DEED, journal=Journal.TENANTS):
            raise error

    with pytest.raises(type(error)):
        await fail()
    [(_, ended), _] = await _read(log, Journal.TENANTS)
    assert (ended.outcome, ended.code) == (outcome, getattr(error, "code", None))


async def test_what_cannot_be_written_down_is_not_done(tmp_path, clock):
    """Where Redis is away the deed is not begun; where it goes amid the deed, that is done all the same."""
    with EmbeddedRedis.start(tmp_path) as server:
        client = connect(server.url, timeout_s=PATIENCE_S)
        log = _log(client, clock)
        act = await log.begin(DEED, journal=Journal.ADMIN)
    await act.end("done")
    with pytest.raises(StoreUnavailable):
        await log.begin(DEED, journal=Journal.ADMIN)
    await client.aclose()


async def test_journals_are_bounded_and_none_pushes_out_another(redis, clock):
    """The newest records stay, to the last; a flood of refusals leaves what administrators did."""
    log = _log(redis, clock, max_records=10)
    await log.begin(DEED, journal=Journal.ADMIN)
    for number in range(25):
        await log.refuse(DEED, code="invalid_api_key", number=number)
    assert [record.facts["number"] for _, record in await _read(log, Journal.REFUSED)] == [*range(24, 14, -1)]
    assert len(await _read(log)) == 1
    assert await redis.xlen(journal_key(Journal.REFUSED)) == 10


async def test_what_is_too_old_is_not_shown_and_goes(redis, clock):
    """By the next write at the latest; a journal that nobody writes to expires as a whole."""
    log = _log(redis, clock, ttl_s=86_400)
    await log.begin(DEED, journal=Journal.ADMIN)
    assert 0 < await redis.pttl(journal_key(Journal.ADMIN)) <= DAY_MS
    clock.now_ms += DAY_MS + 5000
    assert await _read(log) == ()
    assert await _read(log, order="asc") == ()
    await log.begin(DEED, journal=Journal.ADMIN)
    assert await redis.xlen(journal_key(Journal.ADMIN)) == 0  # the server's own clock did not move


async def test_pages_are_read_by_cursor_in_either_order(redis, clock):
    """Each record once; a cursor stays good though its record has gone."""
    log = _log(redis, clock)
    for number in range(7):
        await log.refuse(DEED, code="x", number=number)
    for order, expected in (("asc", [*range(7)]), ("desc", [*range(6, -1, -1)])):
        found, after = [], None
        while True:
            page = await log.read(AuditQuery(Journal.REFUSED, 3, order, after))
            found += [record.facts["number"] for _, record in page.records]
            if not page.has_more:
                break
            after = page.records[-1][0]
        assert found == expected
        await redis.xdel(journal_key(Journal.REFUSED), after)
        assert len((await log.read(AuditQuery(Journal.REFUSED, 3, order, after))).records) == 1
        await redis.delete(journal_key(Journal.REFUSED))
        for number in range(7):
            await log.refuse(DEED, code="x", number=number)


@pytest.mark.parametrize("after", ["0-0", "00-000", "1-0", "9" * 18 + "-" + "9" * 18])
async def test_a_cursor_may_be_any_id(redis, clock, after):
    """The first and the last that there can be among them."""
    log = _log(redis, clock)
    await log.begin(DEED, journal=Journal.ADMIN)
    num_records = {order: len(await _read(log, order=order, after=after)) for order in ("asc", "desc")}
    is_late = after.startswith("9")
    assert num_records == {"asc": 0 if is_late else 1, "desc": 1 if is_late else 0}


async def test_a_write_that_is_repeated_is_one_record(redis, clock):
    """A lost connection makes the client send it again."""
    script = _log(redis, clock)._write
    arguments = ["token", b"{}", 100, "0-0", 1000]
    first = await script([journal_key(Journal.ADMIN)], arguments)
    assert await script([journal_key(Journal.ADMIN)], arguments) == first
    assert await redis.xlen(journal_key(Journal.ADMIN)) == 1


async def test_a_record_that_cannot_be_read_hides_no_other(redis, clock):
    """It is left out and logged."""
    log = _log(redis, clock)
    await redis.xadd(journal_key(Journal.ADMIN), {"token": "x", "record": "{"})
    await log.begin(DEED, journal=Journal.ADMIN)
    assert len(await _read(log)) == 1


@pytest.mark.parametrize("text", ["a portrait of a doctor", "a\nb", "x" * 141, "", "§", "../etc"])
def test_no_record_takes_a_text(text):
    """A fact is a number or a word: no prompt gets in by mistake, and a path's part that is no id is not repeated."""
    with pytest.raises(InvalidValue, match="a number or a word"):
        AuditRecord("0" * 16, DEED, "done", facts={"fact": text})
    assert word_of(text) == "malformed"


def test_a_secret_in_the_place_of_an_id_is_not_repeated():
    """A key that was put into a path, a webhook's secret; ids and names stay as they are."""
    assert word_of("sk-sparke-01234567-" + "x" * 43) == word_of("whsec_abcdefgh") == "malformed"
    for name in ("toy.default", "wh_0123", "01234567", "acme_2"):
        assert word_of(name) == name
