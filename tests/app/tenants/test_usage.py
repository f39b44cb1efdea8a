"""Requests by day, counted in the process and written down now and then."""

import pytest

from app.domain.ids import TenantId
from app.domain.quota import DAY_MS, DayUsage
from app.errors import StoreUnavailable
from app.tenants.names import usage_key
from app.tenants.usage import UsageMeter, UsageStore

pytestmark = pytest.mark.anyio

ACME = TenantId("acme")


class Bench:
    """A store on a clock that moves when it is told to."""

    def __init__(self, redis):
        self.now_ms = 100 * DAY_MS
        self.usage = UsageStore(redis, ttl_s=10 * 86_400, image_ttl_s=86_400, clock_ms=lambda: self.now_ms)


@pytest.fixture
def bench(redis):
    """Usage that is kept for ten days, on the hundredth."""
    return Bench(redis)


async def test_requests_are_written_down_together(bench, redis):
    """A hundred requests are one script for each tenant; a second flush writes nothing."""
    meter = UsageMeter(bench.usage)
    for _ in range(100):
        meter.count(ACME)
    meter.count(TenantId("other"))
    assert await bench.usage.read_days(ACME, 5) == []
    await redis.config_resetstat()
    for _ in range(2):
        await meter.flush()
    assert (await redis.info("commandstats"))["cmdstat_hincrby"]["calls"] == 2
    assert await bench.usage.read_days(ACME, 5) == [DayUsage(100, num_requests=100)]


async def test_what_could_not_be_written_is_counted_on(bench):
    """Redis is away for a flush: the next one has all of it."""

    class Away:
        async def add_requests(self, *_):
            raise StoreUnavailable("away")

    meter = UsageMeter(Away())
    meter.count(ACME)
    with pytest.raises(StoreUnavailable):
        await meter.flush()
    meter._usage = bench.usage
    meter.count(ACME)
    await meter.flush()
    assert await bench.usage.read_days(ACME, 1) == [DayUsage(100, num_requests=2)]


async def test_days_past_their_time_go(bench, redis):
    """As a new day begins those that are too old are dropped; a tenant that stays away is forgotten as a whole."""
    for _ in range(30):
        await bench.usage.add_requests(ACME, 3)
        bench.now_ms += DAY_MS
    bench.now_ms -= DAY_MS
    assert await redis.hlen(usage_key(ACME)) == 11
    assert [day.day for day in await bench.usage.read_days(ACME, 3)] == [129, 128, 127]
    assert len(await bench.usage.read_days(ACME, 99)) == 11
    assert 0 < await redis.pttl(usage_key(ACME)) <= 10 * DAY_MS
