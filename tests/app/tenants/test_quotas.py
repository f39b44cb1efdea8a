"""Quotas: the service's, and those of one tenant."""

import pytest
from clocks import SecondsClock

from app.domain.ids import TenantId
from app.domain.quota import QuotaOverrides, Quotas
from app.errors import InvalidValue
from app.tenants.names import quotas_key
from app.tenants.quotas import FRESH_S, QuotaBook

pytestmark = pytest.mark.anyio

ACME = TenantId("acme")
DEFAULTS = Quotas(requests_per_minute=60, max_waiting_jobs=7)


async def test_what_is_set_for_one_tenant_holds_for_it_alone(redis):
    """In place of the default, member by member; set anew, all that was set before is gone."""
    book = QuotaBook(redis, DEFAULTS)
    await book.set(ACME, QuotaOverrides(images_per_day=5, max_waiting_jobs=1))
    assert await book.of(ACME) == Quotas(60, 5, 1, None, None)
    assert await book.of(TenantId("other")) == DEFAULTS
    await book.set(ACME, QuotaOverrides(max_stored_bytes=0))
    assert await book.of(ACME) == Quotas(60, None, 7, None, 0)
    await book.set(ACME, QuotaOverrides())
    assert await book.of(ACME) == DEFAULTS
    assert not await redis.exists(quotas_key(ACME))


async def test_another_process_goes_by_it_within_seconds(redis):
    """Until then by what it read, without asking; where it was set it holds at once."""
    clock = SecondsClock()
    here, there = QuotaBook(redis, DEFAULTS), QuotaBook(redis, DEFAULTS, monotonic_s=clock)
    assert await there.of(ACME) == DEFAULTS
    await here.set(ACME, QuotaOverrides(images_per_day=1))
    await redis.config_resetstat()
    for _ in range(100):
        assert (await there.of(ACME)).images_per_day is None
    assert "cmdstat_get" not in await redis.info("commandstats")
    clock.now_s += FRESH_S
    assert (await there.of(ACME)).images_per_day == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_minute": 0},
        {"requests_per_minute": 10**7},
        {"images_per_day": -1},
        {"max_waiting_jobs": 0},
    ],
)
async def test_numbers_that_are_no_quota_are_refused(redis, wrong):
    """By name; nothing is set."""
    [name] = wrong
    with pytest.raises(InvalidValue, match=name):
        await QuotaBook(redis, DEFAULTS).set(ACME, QuotaOverrides(**wrong))
    assert not await redis.exists(quotas_key(ACME))
