"""What is shown of memories."""

from itertools import pairwise

import numpy as np
import pytest

from app.domain.ids import LatentSpace, MemoryId, MemoryName, TenantId, image_id, make_job_id
from app.errors import NotFound
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.overview import EntryQuery, MemoryOverview

pytestmark = pytest.mark.anyio


def _key(name="default", *, tenant="acme", space="demo"):
    return MemoryKey(TenantId(tenant), LatentSpace(space), MemoryName(name))


def _entry(number):
    ones = np.ones(8, np.float16)
    return encode_entry(
        MemoryEntry(image_id(make_job_id(number, b"12345678"), 0), number, number, ones, ones)
    )


async def _write(redis, memory, versions, *, created_at_ms=1234):
    for version in versions:
        await redis.xadd(log_key(memory), {"e": _entry(version)}, id=f"{version}-0")
    version = max(versions, default=0)
    await redis.hset(meta_key(memory), mapping={"version": version, "created_at_ms": created_at_ms})
    await redis.sadd(index_key(memory.tenant_id), index_member(memory))


async def test_a_memory_tells_its_numbers(redis):
    """Entries, version, time of creation and of the newest entry, and bytes that grow with it."""
    small, large = _key("small"), _key("large")
    await _write(redis, small, [1, 2, 5])
    await _write(redis, large, range(1, 500))
    stats, more = [await MemoryOverview(redis).get(memory) for memory in (small, large)]
    assert (stats.num_entries, stats.version, stats.created_at_ms, stats.newest_at_ms) == (3, 5, 1234, 5)
    assert len(_entry(1)) * 499 < more.size_bytes
    assert stats.size_bytes < more.size_bytes


async def test_memories_are_listed_by_pages(redis):
    """In order of ids, each once, and none of another tenant; a cursor's own memory may be gone."""
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        await _write(redis, _key(name), [1])
    await _write(redis, _key("f", tenant="bolt"), [1])
    overview, found, after = MemoryOverview(redis), [], None
    while True:
        page = await overview.list_memories(TenantId("acme"), 2, after)
        found += [stats.memory.name for stats in page.memories]
        if not page.has_more:
            break
        after = page.memories[-1].memory.memory_id
    assert found == names
    page = await overview.list_memories(TenantId("acme"), 9, MemoryId("demo.bb"))
    assert [stats.memory.name for stats in page.memories] == ["c", "d", "e"]


async def test_another_tenants_memory_is_none(redis):
    """The same error as for one that never was, for the memory and for its entries."""
    await _write(redis, _key(tenant="bolt"), [1])
    overview = MemoryOverview(redis)
    for call in (overview.get(_key()), overview.list_entries(_key(), EntryQuery(5))):
        with pytest.raises(NotFound, match=r"no memory .demo\.default."):
            await call


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_entries_are_listed_by_pages(redis, order):
    """Each once, in order, over gaps, and over an entry that cannot be read."""
    memory = _key()
    versions = [version for version in range(1, 260) if version % 7]
    await _write(redis, memory, versions)
    await redis.xadd(log_key(memory), {"e": b"broken"}, id="260-0")
    overview, found, after = MemoryOverview(redis), [], None
    while True:
        page = await overview.list_entries(memory, EntryQuery(40, order, after))
        found += [(version, entry.seed) for version, entry in page.entries]
        if not page.has_more:
            break
        after = page.entries[-1][0]
    assert found == [(version, version) for version in sorted(versions, reverse=order == "desc")]
    assert (await overview.list_entries(memory, EntryQuery(5, "desc", 1))).entries == ()
    assert (await overview.list_entries(memory, EntryQuery(5, "desc", 0))).entries == ()


async def test_growth_is_told_by_points_evenly_spaced(redis):
    """At most so many, the first and the newest among them, each with the time of its entry; gaps are passed over."""
    memory, overview = _key(), MemoryOverview(redis)
    await _write(redis, memory, [*range(1, 400), *range(700, 1001)])
    points = await overview.read_growth(memory, 1000, 64)
    versions = [version for version, _ in points]
    assert (versions[0], versions[-1], len(versions) <= 64) == (1, 1000, True)
    assert versions == sorted(set(versions))
    assert all(at_ms == version for version, at_ms in points)
    steps = [later - earlier for earlier, later in pairwise(versions)]
    assert sorted(steps)[-2] <= 2 * 1000 / 63  # but for the gap
    assert [version for version, _ in await overview.read_growth(memory, 3, 64)] == [1, 2, 3]
    assert [version for version, _ in await overview.read_growth(memory, 1000, 1)] == [1, 1000]
    assert await overview.read_growth(_key("empty"), 0, 64) == []


async def test_entries_are_read_by_their_versions(redis):
    """In one round trip; what is not there, and what cannot be read, is left out."""
    memory, overview = _key(), MemoryOverview(redis)
    await _write(redis, memory, [1, 2, 5])
    await redis.xadd(log_key(memory), {"e": b"broken"}, id="7-0")
    found = await overview.read_entries(memory, [5, 3, 7, 1])
    assert {version: entry.seed for version, entry in found.items()} == {5: 5, 1: 1}
    assert await overview.read_entries(memory, []) == {}
