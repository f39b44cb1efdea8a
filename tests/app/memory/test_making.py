"""Memories that are made, and given other names."""

import pytest

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.errors import MemoryExists, NotFound, TooManyMemories, VersionGone
from app.jobs.workers import now_ms
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import (
    MemoryKey,
    copy_key,
    forgotten_key,
    log_key,
    meta_key,
    remains_key,
    rewritten_key,
)
from app.memory.making import MemoryMaker
from app.memory.overview import MemoryOverview
from app.memory.shaping import MemoryShaper
from app.memory.store import MemoryStore, ReadPoint

pytestmark = pytest.mark.anyio

TENANT = TenantId("acme")
OLD = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("old"))
NEW = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("new"))


@pytest.fixture
def maker(redis):
    """What makes memories, of which a tenant may have three."""
    return MemoryMaker(redis, max_memories=3, clock_ms=lambda: 7_000)


async def _names(redis):
    return [memory.name for memory in await MemoryStore(redis).list_memories(TENANT)]


async def test_a_memory_that_holds_nothing_is_there(redis, maker):
    """Listed, shown with its settings, and it stays when it is emptied."""
    await maker.create(OLD, {"max_entries": 5, "max_age_s": None, "keep_prompts": 1, "frozen": None})
    found = await MemoryOverview(redis).get(OLD)
    assert (found.version, found.num_entries, found.created_at_ms, found.newest_at_ms) == (0, 0, 7000, None)
    assert (found.shape.max_entries, found.shape.max_age_s) == (5, None)
    assert (found.shape.keeps_prompts, found.shape.is_frozen) == (True, False)
    assert await MemoryStore(redis).resolve_version(OLD, None) == ReadPoint(0, 0, 0, keeps_prompts=True)
    await MemoryForgetter(redis, clock_ms=now_ms).forget_all(OLD)
    assert await _names(redis) == ["old"]
    with pytest.raises(MemoryExists):
        await maker.create(OLD, {})


async def test_there_are_at_most_so_many(redis, maker):
    """One more is refused; one that is there is no more; deleting makes room."""
    for name in ("a", "b", "c"):
        await maker.create(MemoryKey(TENANT, LatentSpace("demo"), MemoryName(name)), {})
    with pytest.raises(TooManyMemories, match="as many memories as you may, 3"):
        await maker.create(OLD, {})
    with pytest.raises(TooManyMemories):
        await maker.check_room(OLD)
    there = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("a"))
    await maker.check_room(there)
    await MemoryForgetter(redis, clock_ms=now_ms).delete(there)
    await maker.create(OLD, {})


async def test_one_that_is_made_again_goes_on_with_its_versions(redis, maker, fill_memory):
    """Under the name of a deleted one, within the time that its versions are remembered; its settings are new."""
    await fill_memory(OLD, [1, 2])
    await MemoryShaper(redis, clock_ms=now_ms).shape(OLD, {"frozen": 1, "keep_prompts": 1})
    await MemoryForgetter(redis, clock_ms=now_ms).delete(OLD)
    await maker.create(OLD, {})
    found = await MemoryOverview(redis).get(OLD)
    assert (found.version, found.created_at_ms) == (3, 7000)
    assert (found.shape.is_frozen, found.shape.keeps_prompts) == (False, False)
    assert await redis.ttl(meta_key(OLD)) == -1


async def test_all_of_a_memory_gets_the_new_name(redis, maker, fill_memory):
    """Entries, versions, notes of what was forgotten, settings, what is left to do; of the old one nothing is found."""
    await fill_memory(OLD, range(1, 6))
    await MemoryShaper(redis, clock_ms=now_ms).shape(OLD, {"max_entries": 9})
    await MemoryForgetter(redis, clock_ms=now_ms).forget_versions(OLD, [2])
    await redis.zadd(remains_key(TENANT), {"compact:demo:old": 0, "prompts:demo:old": 0, "log:demo:old:t": 0})
    for begun in (copy_key(OLD), rewritten_key(log_key(OLD))):
        await redis.xadd(begun, {"e": b"x"}, id="1-0")
    log, forgotten = await redis.xrange(log_key(OLD)), await redis.zrange(forgotten_key(OLD), 0, -1)
    assert await maker.rename(OLD, MemoryName("new")) == NEW
    assert await redis.xrange(log_key(NEW)) == log
    assert await redis.zrange(forgotten_key(NEW), 0, -1) == forgotten
    assert await _names(redis) == ["new"]
    found = await MemoryOverview(redis).get(NEW)
    assert (found.version, found.created_at_ms, found.shape.max_entries) == (6, 1234, 9)
    with pytest.raises(NotFound):
        await MemoryOverview(redis).get(OLD)
    left = {b"compact:demo:new", b"prompts:demo:new", b"log:demo:old:t"}
    assert left <= set(await redis.zrange(remains_key(TENANT), 0, -1))
    assert b"compact:demo:old" not in await redis.zrange(remains_key(TENANT), 0, -1)
    assert (
        await redis.exists(log_key(OLD), forgotten_key(OLD), copy_key(OLD), rewritten_key(log_key(OLD))) == 0
    )
    assert 0 < await redis.ttl(meta_key(OLD)) <= 30 * 86_400
    assert await redis.ttl(meta_key(NEW)) == -1


async def test_under_the_old_name_nothing_is_read(redis, maker, fill_memory):
    """A replay of a version that the name had says where it is; what is new reads nothing, and says version 0."""
    await fill_memory(OLD, range(1, 6))
    await maker.rename(OLD, MemoryName("new"))
    store = MemoryStore(redis)
    point = await store.resolve_version(OLD, None)
    assert (point.version, point.current) == (0, 6)
    assert (await store.resolve_version(OLD, 0)).version == 0
    for version in (3, 6):
        with pytest.raises(VersionGone, match="has the name 'new' now"):
            await store.resolve_version(OLD, version)
    assert (await store.resolve_version(NEW, 3)).version == 3


async def test_a_name_that_is_taken_is_refused(redis, maker, fill_memory):
    """By another memory, by itself, by versions of a deleted one, and where there is nothing to rename."""
    await fill_memory(OLD, [1])
    await fill_memory(NEW, [1])
    for name in ("old", "new"):
        with pytest.raises(MemoryExists):
            await maker.rename(OLD, MemoryName(name))
    await MemoryForgetter(redis, clock_ms=now_ms).delete(NEW)
    with pytest.raises(MemoryExists):
        await maker.rename(OLD, MemoryName("new"))
    with pytest.raises(NotFound):
        await maker.rename(NEW, MemoryName("other"))
    assert await _names(redis) == ["old"]
    assert await MemoryStore(redis).count(OLD) == 1


async def test_a_name_can_be_taken_back(redis, maker, fill_memory):
    """As long as nothing was made under it; versions never go back, or they would be given twice."""
    await fill_memory(OLD, range(1, 4))
    await maker.rename(OLD, MemoryName("new"))
    assert await maker.rename(NEW, MemoryName("old")) == OLD
    assert await MemoryStore(redis).version(OLD) == 4
    assert await MemoryStore(redis).count(OLD) == 3
    assert (await MemoryStore(redis).resolve_version(OLD, 3)).version == 3
    await maker.rename(OLD, MemoryName("new"))
    await fill_memory(OLD, [9])
    with pytest.raises(MemoryExists):
        await maker.rename(NEW, MemoryName("old"))


async def test_forgetting_that_a_rename_overtakes_says_so(redis, maker, fill_memory):
    """What was asked for may not be done under the new name; nobody is told that it was."""
    await fill_memory(OLD, range(1, 4))
    forgetter = MemoryForgetter(redis, clock_ms=now_ms)

    class _Overtaken(type(redis)):
        """Renames once the memory has been found."""

        async def zadd(self, *arguments, **options):
            answer = await super().zadd(*arguments, **options)
            await maker.rename(OLD, MemoryName("new"))
            return answer

    overtaken = MemoryForgetter(_Overtaken(connection_pool=redis.connection_pool), clock_ms=now_ms)
    with pytest.raises(NotFound):
        await overtaken.forget_versions(OLD, [2])
    assert await MemoryStore(redis).count(NEW) == 3
    assert (await forgetter.forget_versions(NEW, [2])).num_entries == 1
