"""Entries of all memories are counted by one process, for all."""

import pytest
from patience import eventually

from app.domain.ids import DEFAULT_TENANT, LatentSpace, MemoryName, TenantId
from app.errors import StoreUnavailable
from app.jobs.workers import now_ms
from app.memory.counting import EntryCounter
from app.memory.keys import COUNT_LEASE_KEY, COUNTED_KEY, MemoryKey, log_key
from app.tenants.registry import TenantRegistry

pytestmark = pytest.mark.anyio


@pytest.fixture
def registry(redis):
    """The tenants."""
    return TenantRegistry(redis, clock_ms=now_ms)


def _memory(tenant, space, name="default"):
    return MemoryKey(TenantId(tenant), LatentSpace(space), MemoryName(name))


async def test_entries_are_counted_by_latent_space(redis, registry, fill_memory):
    """Over all tenants and memories, that of no key and of 600 tenants among them; what was forgotten does not count."""
    await fill_memory(_memory(DEFAULT_TENANT, "sdxl"), range(1, 6))
    await fill_memory(_memory("acme", "sdxl"), range(1, 4))
    await fill_memory(_memory("acme", "sdxl", "other"), range(1, 3))
    await fill_memory(_memory("acme", "demo"), range(1, 8))
    many = [TenantId(f"tenant-{number}") for number in range(600)]
    await registry.add([TenantId("acme"), *many])
    await fill_memory(_memory(many[-1], "demo"), range(1, 3))
    await redis.xdel(log_key(_memory("acme", "demo")), "3-0")
    counter = EntryCounter(redis, registry)
    assert await counter.read() is None
    assert await counter.count()
    assert await counter.read() == {"sdxl": 10, "demo": 8}


async def test_one_process_counts_for_all(redis, registry, fill_memory):
    """Whoever comes while a count is fresh reads it, and does not count."""
    await fill_memory(_memory(DEFAULT_TENANT, "sdxl"), [1])
    one, other = EntryCounter(redis, registry), EntryCounter(redis, registry)
    assert await one.count()
    await fill_memory(_memory(DEFAULT_TENANT, "sdxl"), [2])
    assert not await other.count()
    assert await other.read() == {"sdxl": 1}
    assert 50_000 < await redis.pttl(COUNT_LEASE_KEY) <= 60_000
    await redis.delete(COUNT_LEASE_KEY)
    assert await other.count()
    assert await one.read() == {"sdxl": 2}


class Tenants:
    """Pages of tenants; before each one `then` is awaited."""

    def __init__(self, pages, then):
        self._pages, self._then = iter(pages), then

    async def list_ids(self, _limit, _after):
        """The next page."""
        await self._then()
        return next(self._pages, [])


@pytest.mark.parametrize("error", [KeyError, StoreUnavailable])
async def test_a_count_that_failed_is_begun_again_within_seconds(redis, registry, error):
    """By whoever comes: its lease ends by itself, and what was counted before stays until then."""
    await redis.set(COUNTED_KEY, b'{"sdxl":7}')

    async def fail():
        raise error("away")

    with pytest.raises(error):
        await EntryCounter(redis, Tenants([], fail)).count()
    counter = EntryCounter(redis, registry)
    assert await counter.read() == {"sdxl": 7}
    assert 0 < await redis.pttl(COUNT_LEASE_KEY) <= 15_000
    assert not await counter.count()
    await redis.pexpire(COUNT_LEASE_KEY, 1)
    assert await eventually(counter.count)
    assert await counter.read() == {}


async def test_a_long_count_keeps_its_lease(redis, fill_memory):
    """Each page extends it: with many tenants, and with many memories of one."""
    for tenant in ("acme", "bolt"):
        await fill_memory(_memory(tenant, "sdxl"), [1])
    seen = []

    async def wear():
        seen.append(await redis.pttl(COUNT_LEASE_KEY))
        await redis.pexpire(COUNT_LEASE_KEY, 5_000)

    pages = [[TenantId("acme")], [TenantId("bolt")]]
    assert await EntryCounter(redis, Tenants(pages, wear)).count()
    assert len(seen) == 3
    assert min(seen) > 5_000
