"""Forks: all at once or not at all, and nothing in them that was forgotten before."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.errors import InvalidRequest, MemoryExists, MemoryFull, NotFound, TooManyMemories, VersionGone
from app.jobs.workers import now_ms
from app.memory.forgetting import MemoryForgetter
from app.memory.forking import MemoryForker
from app.memory.keys import MemoryKey, forgotten_key, index_key, log_key, meta_key, remains_key
from app.memory.making import MemoryMaker
from app.memory.overview import MemoryOverview
from app.memory.shaping import MemoryShaper
from app.memory.store import MemoryStore
from app.redis.connection import connect

pytestmark = pytest.mark.anyio

TENANT = TenantId("acme")
SOURCE = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("default"))
TARGET = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("fork"))


def _forker(redis, max_memories=10):
    return MemoryForker(redis, max_memories=max_memories, clock_ms=lambda: 5_000_000)


async def _versions(redis, memory):
    return [version for version, _ in await MemoryStore(redis).read_after(memory, 0, 10_000)]


async def _can_read(redis, memory, version):
    try:
        await MemoryStore(redis).resolve_version(memory, version)
    except (VersionGone, InvalidRequest):
        return False
    return True


async def test_a_fork_finds_no_more_room_than_there_is(redis, fill_memory):
    """However many are made at once: it is asked when all entries are there, and what was made on the way goes."""
    await fill_memory(SOURCE, range(1, 5))
    forker = _forker(redis)
    with pytest.raises(MemoryFull, match="more than 7"):
        await forker.fork(SOURCE, TARGET, most_entries=7)
    assert not [name async for name in redis.scan_iter("*fork*")]
    names = [MemoryName(f"fork-{number}") for number in range(5)]
    forks = (forker.fork(SOURCE, replace(SOURCE, name=name), 3, most_entries=10) for name in names)
    ends = await asyncio.gather(*forks, return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [MemoryFull] * 3
    assert await MemoryOverview(redis).count_entries(TENANT) == 4 + 2 * 3


async def test_a_fork_has_all_entries_and_settings(redis, fill_memory):
    """The same bytes under the same versions; it is not frozen, and nothing of its making is left."""
    await fill_memory(SOURCE, range(1, 451))
    shaper = MemoryShaper(redis, clock_ms=now_ms)
    await shaper.shape(SOURCE, {"frozen": 1, "max_entries": 1000, "max_age_s": 3 * 10**9, "keep_prompts": 1})
    await _forker(redis).fork(SOURCE, TARGET)
    assert await redis.xrange(log_key(TARGET)) == await redis.xrange(log_key(SOURCE))
    found = await MemoryOverview(redis).get(TARGET)
    assert (found.version, found.num_entries, found.created_at_ms) == (450, 450, 5_000_000)
    shape = found.shape
    assert (shape.is_frozen, shape.max_entries, shape.max_age_s, shape.keeps_prompts) == (
        False,
        1000,
        3 * 10**9,
        True,
    )
    assert [await redis.ttl(key) for key in (log_key(TARGET), meta_key(TARGET))] == [-1, -1]
    assert not [name async for name in redis.scan_iter("*memory-fork*")]


@pytest.mark.parametrize("version", [0, 1, 200, 299, 300])
async def test_a_fork_is_as_of_a_version(redis, fill_memory, version):
    """Entries up to it, and it goes on from there."""
    await fill_memory(SOURCE, [v for v in range(1, 301) if v % 10])
    await redis.hset(meta_key(SOURCE), "version", 300)
    await _forker(redis).fork(SOURCE, TARGET, version)
    assert await _versions(redis, TARGET) == [v for v in range(1, version + 1) if v % 10]
    assert (await MemoryOverview(redis).get(TARGET)).version == version


async def test_what_was_forgotten_is_noted_in_the_fork_too(redis, fill_memory):
    """A version up to the one that it is of is read, or refused, as in the other; those in between were never its own."""
    await fill_memory(SOURCE, range(1, 21))
    forgetter = MemoryForgetter(redis, clock_ms=now_ms)
    await forgetter.forget_versions(SOURCE, [3])
    await forgetter.forget_versions(SOURCE, [12])
    assert await MemoryStore(redis).version(SOURCE) == 22
    await _forker(redis).fork(SOURCE, TARGET, 10)
    assert await _versions(redis, TARGET) == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    for version in range(11):
        assert await _can_read(redis, TARGET, version) is await _can_read(redis, SOURCE, version), version
    assert [await _can_read(redis, TARGET, version) for version in (11, 15, 21, 22, 23)] == [
        False,
        False,
        False,
        True,
        False,
    ]
    assert await MemoryStore(redis).version(TARGET) == 22


class _Busy(Redis):
    """Does something else once, before its n-th script."""

    act, at, num_scripts = None, 0, 0

    async def execute_command(self, *arguments, **options):
        """A command, in its turn."""
        if arguments[0] == "EVALSHA":
            self.num_scripts += 1
            if self.num_scripts == self.at:
                await self.act()
        return await super().execute_command(*arguments, **options)


@pytest.fixture
async def busy(redis_url):
    """A client that is interrupted."""
    plain = connect(redis_url)
    yield _Busy(connection_pool=plain.connection_pool)
    await plain.aclose()


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("gone", [{1, 250, 251, 600}, {250, 251}])
async def test_what_is_forgotten_on_the_way_is_not_in_the_fork(redis, busy, fill_memory, at, gone):
    """Whether it had been copied or not, and wherever it was."""
    await fill_memory(SOURCE, range(1, 601))
    forgetter = MemoryForgetter(redis, clock_ms=now_ms)

    async def act():
        await forgetter.forget_versions(SOURCE, gone)

    busy.act, busy.at = act, at
    await _forker(busy).fork(SOURCE, TARGET)
    assert busy.num_scripts >= at
    assert await _versions(redis, TARGET) == [v for v in range(1, 601) if v not in gone]
    assert await redis.hget(meta_key(TARGET), "forget_version") == b"601"
    assert not await _can_read(redis, TARGET, 600)


@pytest.mark.parametrize("at", range(1, 6))
async def test_all_that_is_forgotten_on_the_way_leaves_an_empty_fork(redis, busy, fill_memory, at):
    """An act that ranges cannot tell: the copy is begun anew."""
    await fill_memory(SOURCE, range(1, 601))

    async def act():
        await MemoryForgetter(redis, clock_ms=now_ms).forget_all(SOURCE)

    busy.act, busy.at = act, at
    await _forker(busy).fork(SOURCE, TARGET)
    assert await _versions(redis, TARGET) == []
    assert (await MemoryOverview(redis).get(TARGET)).version == 601


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("how", ["deleted", "renamed"])
async def test_a_memory_that_goes_on_the_way_leaves_no_fork(redis, busy, fill_memory, at, how):
    """Nothing of it either."""
    await fill_memory(SOURCE, range(1, 601))

    async def act():
        if how == "deleted":
            await MemoryForgetter(redis, clock_ms=now_ms).delete(SOURCE)
        else:
            maker = MemoryMaker(redis, max_memories=10, clock_ms=now_ms)
            await maker.rename(SOURCE, MemoryName("elsewhere"))

    busy.act, busy.at = act, at
    with pytest.raises(NotFound):
        await _forker(busy).fork(SOURCE, TARGET)
    assert await redis.exists(log_key(TARGET), meta_key(TARGET), forgotten_key(TARGET)) == 0
    assert not [name async for name in redis.scan_iter("*memory-fork*")]


async def test_a_copy_that_expired_is_made_anew(redis, busy, fill_memory):
    """It is never published with less than it should have."""
    await fill_memory(SOURCE, range(1, 301))

    async def act():
        for name in [name async for name in redis.scan_iter("*memory-fork*")]:
            await redis.delete(name)

    busy.act, busy.at = act, 3
    await _forker(busy).fork(SOURCE, TARGET)
    assert await _versions(redis, TARGET) == list(range(1, 301))


class _Killed(BaseException):
    """The process is gone."""


async def test_what_a_dead_process_leaves_goes_by_itself(redis, busy, fill_memory):
    """Nobody sees it, and it has a time to live."""
    await fill_memory(SOURCE, range(1, 601))

    async def act():
        await redis.rename(*[name async for name in redis.scan_iter("*memory-fork*")], "sparke:{t:acme}:left")
        raise _Killed

    busy.act, busy.at = act, 3
    with pytest.raises(_Killed):
        await _forker(busy).fork(SOURCE, TARGET)
    assert await MemoryStore(redis).list_memories(TENANT) == [SOURCE]
    assert 0 < await redis.ttl("sparke:{t:acme}:left") <= 3600


async def test_prompts_that_are_to_go_go_from_the_fork_too(redis, busy, fill_memory):
    """Where that was asked while they were copied, the fork has it to do as well."""
    await fill_memory(SOURCE, range(1, 301))

    async def act():
        await MemoryShaper(redis, clock_ms=now_ms).shape(SOURCE, {"keep_prompts": None})
        await redis.delete(remains_key(TENANT))  # done there already

    busy.act, busy.at = act, 2
    await _forker(busy).fork(SOURCE, TARGET)
    assert await redis.zrange(remains_key(TENANT), 0, -1) == [b"prompts:demo:fork"]
    assert await redis.hget(meta_key(TARGET), "bare_version") == b"300"


async def test_prompts_that_were_still_to_go_go_from_the_fork_too(redis, busy, fill_memory):
    """Where they are out of the memory before the fork is there, but were not when its entries were copied."""
    await fill_memory(SOURCE, range(1, 301))
    await MemoryShaper(redis, clock_ms=now_ms).shape(SOURCE, {"keep_prompts": None})

    async def act():
        await redis.delete(remains_key(TENANT))  # done there by now

    busy.act, busy.at = act, 2
    await _forker(busy).fork(SOURCE, TARGET)
    assert await redis.zrange(remains_key(TENANT), 0, -1) == [b"prompts:demo:fork"]


async def test_what_cannot_be_forked_is_refused(redis, fill_memory):
    """No such memory, a version to come, a name that is taken or was lately, one memory too many: nothing is left."""
    await fill_memory(SOURCE, range(1, 4))
    for source, version, expected in ((TARGET, None, NotFound), (SOURCE, 4, InvalidRequest)):
        with pytest.raises(expected):
            await _forker(redis).fork(source, SOURCE if source == TARGET else TARGET, version)
    with pytest.raises(TooManyMemories):
        await _forker(redis, 1).fork(SOURCE, TARGET)
    with pytest.raises(MemoryExists):
        await _forker(redis).fork(SOURCE, SOURCE)
    await fill_memory(TARGET, [1])
    await MemoryForgetter(redis, clock_ms=now_ms).delete(TARGET)
    with pytest.raises(MemoryExists):
        await _forker(redis).fork(SOURCE, TARGET)
    assert await redis.smembers(index_key(TENANT)) == {b"demo:default"}
    assert not [name async for name in redis.scan_iter("*memory-fork*")]


async def test_an_image_is_forgotten_everywhere(redis, fill_memory):
    """In one memory alone unless asked; everywhere in all of the tenant's, forks among them."""
    await fill_memory(SOURCE, range(1, 6))
    await _forker(redis).fork(SOURCE, TARGET)
    page = await MemoryStore(redis).read_entries_after(SOURCE, 0)
    images = {version: entry.image_id for version, entry in page}
    forgetter = MemoryForgetter(redis, clock_ms=now_ms)
    assert (await forgetter.forget_images(SOURCE, [images[2]])).num_entries == 1
    assert await _versions(redis, TARGET) == [1, 2, 3, 4, 5]
    forgotten = await forgetter.forget_images_everywhere(SOURCE, [images[2], images[4]])
    assert (forgotten.num_entries, forgotten.version) == (3, 7)
    assert await _versions(redis, SOURCE) == [1, 3, 5]
    assert await _versions(redis, TARGET) == [1, 3, 5]
