"""The bucket of requests, held against one that is kept by hand."""

import asyncio
from fractions import Fraction

import pytest
from clocks import MillisecondsClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.ids import TenantId
from app.errors import RateLimited
from app.redis.connection import connect
from app.tenants.names import rate_key
from app.tenants.rate import RateLimiter

pytestmark = pytest.mark.anyio

ACME = TenantId("acme")


@pytest.fixture
def clock():
    """A clock that stands."""
    return MillisecondsClock()


async def _take(limiter, per_minute, tenant_id=ACME):
    try:
        return await limiter.take(tenant_id, per_minute)
    except RateLimited as error:
        return error


async def test_a_minute_has_so_many_requests_and_no_more(redis, clock):
    """All of them may come at once; the next one is told when to come, and then it is let in."""
    limiter = RateLimiter(redis, clock_ms=clock)
    left = [(await limiter.take(ACME, 6)).num_left for _ in range(6)]
    assert left == [5, 4, 3, 2, 1, 0]
    for _ in range(3):  # what is refused takes nothing, so the wait is the same
        refused = await _take(limiter, 6)
        assert (refused.retry_after_s, refused.limit, refused.num_left) == (10, 6, 0)
        assert refused.reset_after_s == 60
    clock.now_ms += 9_999
    assert isinstance(await _take(limiter, 6), RateLimited)
    clock.now_ms += 1
    assert (await limiter.take(ACME, 6)).num_left == 0
    clock.now_ms += 60_000
    assert (await limiter.take(ACME, 6)).num_left == 5


async def test_replicas_share_one_bucket(redis, redis_url, clock):
    """Sixty at once over three replicas, twenty a minute: twenty."""
    others = [connect(redis_url) for _ in range(2)]
    limiters = [RateLimiter(each, clock_ms=clock) for each in (redis, *others)]
    found = await asyncio.gather(*(_take(limiters[n % 3], 20) for n in range(60)))
    assert sum(not isinstance(one, RateLimited) for one in found) == 20
    for other in others:
        await other.aclose()


async def test_tenants_have_buckets_of_their_own(redis, clock):
    """One that is empty takes nothing from another; a full one is not kept."""
    limiter = RateLimiter(redis, clock_ms=clock)
    await limiter.take(ACME, 1)
    assert isinstance(await _take(limiter, 1), RateLimited)
    assert (await limiter.take(TenantId("other"), 1)).num_left == 0
    assert 0 < await redis.pttl(rate_key(ACME)) <= 60_000


async def test_a_smaller_quota_holds_at_once(redis, clock):
    """After 100 of 1000 a minute, 10 a minute: nobody waits for longer than an empty bucket takes."""
    limiter = RateLimiter(redis, clock_ms=clock)
    for _ in range(100):
        await limiter.take(ACME, 1000)
    assert (await limiter.take(ACME, 10)).num_left == 8
    await redis.set(rate_key(ACME), clock.now_ms + 10**9)
    assert (await _take(limiter, 10)).retry_after_s <= 6


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    per_minute=st.integers(1, 120),
    pauses_ms=st.lists(st.integers(0, 90_000) | st.integers(0, 600), min_size=1, max_size=40),
)
async def test_it_is_a_bucket_of_tokens(redis, per_minute, pauses_ms):
    """Whenever requests come, those are let in that a bucket kept in fractions would let in."""
    clock = MillisecondsClock()
    limiter = RateLimiter(redis, clock_ms=clock)
    await redis.flushall()
    level = Fraction(per_minute)
    for pause_ms in pauses_ms:
        clock.now_ms += pause_ms
        level = min(Fraction(per_minute), level + Fraction(pause_ms * per_minute, 60_000))
        if abs(level - 1) < Fraction(per_minute, 10**6):
            level = Fraction(
                round(level)
            )  # a hundredth of a millisecond from full: doubles may see it either way
        found = await _take(limiter, per_minute)
        assert isinstance(found, RateLimited) == (level < 1)
        if level >= 1:
            level -= 1
            assert abs(found.num_left - level) <= 1
