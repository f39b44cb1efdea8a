"""Entries of all memories are counted by one process, for all."""

import pytest

from app.domain.ids import DEFAULT_TENANT, LatentSpace, MemoryName, TenantId
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


async def test_a_count_that_died_is_begun_again(redis, registry):
    """Its lease ends by itself, and what was counted before stays until then."""
    await redis.set(COUNTED_KEY, b'{"sdxl":7}')

    class Dying:
        async def list_ids(self, _limit, _after):
            raise KeyError("killed")

    with pytest.raises(KeyError):
        await EntryCounter(redis, Dying()).count()
    assert await EntryCounter(redis, registry).read() == {"sdxl": 7}
    assert 0 < await redis.pttl(COUNT_LEASE_KEY) <= 600_000
