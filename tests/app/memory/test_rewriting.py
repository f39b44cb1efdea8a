"""Logs that are written anew: other bytes under the same versions, whatever happens meanwhile."""

import asyncio
import threading
from dataclasses import replace

import pytest
from patience import eventually
from redis import Redis as SyncRedis

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.jobs.workers import now_ms
from app.memory.codec import decode_entry, encode_entry, without_prompt
from app.memory.exporting import MemoryExporter
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import (
    FORGETTING_KEY,
    MemoryKey,
    copy_key,
    index_member,
    log_key,
    meta_key,
    remains_key,
    rewritten_key,
)
from app.memory.overview import EntryQuery, MemoryOverview
from app.memory.rewriting import Log, LogRewriter
from app.memory.shaping import MemoryShaper
from app.memory.store import MemoryStore
from app.redis.connection import connect

pytestmark = pytest.mark.anyio

TENANT = TenantId("acme")
MEMORY = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("default"))
LOG = Log.of(MEMORY)


def _told(data, prompt="a cat"):
    return encode_entry(replace(decode_entry(data), prompt=prompt))


async def _fill_with_prompts(redis, make_entry, versions):
    for version in versions:
        await redis.xadd(log_key(MEMORY), {"e": _told(make_entry(version))}, id=f"{version}-0")
        await redis.hset(meta_key(MEMORY), "version", version)
    await redis.sadd("sparke:{t:acme}:memories", index_member(MEMORY))


async def _prompts(redis):
    page = await MemoryStore(redis).read_entries_after(MEMORY, 0, 1000)
    return {version: entry.prompt for version, entry in page}


async def test_every_entry_is_changed_under_its_version(redis, fill_memory):
    """Gaps stay, the log lives as long as it did, and nothing is left beside it."""
    versions = [v for v in range(1, 451) if v % 7]
    await fill_memory(MEMORY, versions)
    await redis.pexpire(LOG.name, 1_000_000)
    await LogRewriter(redis).rewrite(LOG, lambda _, data: _told(data))
    assert await _prompts(redis) == dict.fromkeys(versions, "a cat")
    assert 0 < await redis.pttl(LOG.name) <= 1_000_000
    assert await redis.exists(rewritten_key(LOG.name)) == 0


@pytest.mark.parametrize("at", [3, 250, 440])
@pytest.mark.parametrize("act", ["add", "forget", "forget-last", "clear", "other", "none"])
async def test_what_happens_meanwhile_happens_to_the_copy(redis, redis_url, fill_memory, make_entry, act, at):
    """An entry that is added, forgotten or all of them, or a copy that grows by another's hand: the log is right."""
    await fill_memory(MEMORY, range(1, 441))
    other = SyncRedis(unix_socket_path=redis_url.removeprefix("unix://"))
    seen = set()

    def change(version, data):
        if version == at and at not in seen:
            seen.add(at)
            if act == "add":
                other.xadd(LOG.name, {"e": make_entry(441)}, id="441-0")
            elif act == "forget":
                other.xdel(LOG.name, "2-0", "260-0")
            elif act == "forget-last":
                other.xdel(LOG.name, "440-0", "439-0")
            elif act == "clear":
                other.rename(LOG.name, "discarded")
            elif act == "other":
                thread = threading.Thread(target=asyncio.run, args=(_rewrite_elsewhere(redis_url),))
                thread.start()
                thread.join()
        return _told(data)

    await LogRewriter(redis).rewrite(LOG, change)
    expected = set(range(1, 441))
    expected |= {441} if act == "add" else set()
    expected -= {"forget": {2, 260}, "forget-last": {440, 439}, "clear": expected}.get(act, set())
    assert await _prompts(redis) == dict.fromkeys(expected, "a cat")
    assert await redis.exists(rewritten_key(LOG.name)) == 0
    other.close()


async def test_a_log_that_loses_its_oldest_entries_is_written_all_the_same(
    redis, redis_url, fill_memory, make_entry
):
    """In use and at its cap: the copy loses what the log has lost at its beginning, and is not begun anew for that."""
    await fill_memory(MEMORY, range(1, 441))
    other = SyncRedis(unix_socket_path=redis_url.removeprefix("unix://"))
    num_changed, newest = 0, 440

    def change(_, data):
        nonlocal num_changed, newest
        num_changed += 1
        assert num_changed < 1000, "it was begun anew for every entry that went"
        if num_changed % 100 == 0:
            newest += 1
            other.xadd(LOG.name, {"e": make_entry(newest)}, id=f"{newest}-0")
            other.xdel(LOG.name, f"{newest - 440}-0")
        return _told(data)

    await LogRewriter(redis).rewrite(LOG, change)
    assert await _prompts(redis) == dict.fromkeys(range(newest - 439, newest + 1), "a cat")
    assert num_changed == newest
    other.close()


@pytest.fixture
async def sharing(redis):
    """A server where entries share nodes, as Redis does by itself."""
    await redis.config_set("stream-node-max-entries", 100)
    yield
    await redis.config_set("stream-node-max-entries", 1)


@pytest.mark.usefixtures("sharing")
async def test_no_bytes_of_what_went_are_left_between_others(redis, redis_url, make_entry):
    """Where entries are small enough to share nodes without their prompts, and were not with them, the copy is begun anew."""
    for version in range(1, 251):
        long = _told(make_entry(version), prompt="a cat " * 1000)
        await redis.xadd(LOG.name, {"e": long}, id=f"{version}-0")
    other = SyncRedis(unix_socket_path=redis_url.removeprefix("unix://"))
    seen = []

    def change(version, data):
        if version == 230 and 230 not in seen:
            other.xdel(LOG.name, "1-0")
        seen.append(version)
        return without_prompt(data)

    await LogRewriter(redis).rewrite(LOG, change)
    facts = await redis.xinfo_stream(LOG.name)
    assert (seen.count(2), facts["length"]) == (2, 249)
    assert facts["radix-tree-keys"] < 249
    other.close()


async def _rewrite_elsewhere(redis_url):
    client = connect(redis_url)
    await LogRewriter(client).rewrite(LOG, lambda _, data: _told(data))
    await client.aclose()


async def test_a_log_is_freed_off_the_way_of_others(redis, fill_memory):
    """A million entries take Redis a quarter of a second, in which nobody else is answered."""
    await fill_memory(MEMORY, range(1, 441))
    before = await _num_freed(redis)
    await LogRewriter(redis).rewrite(LOG, lambda _, data: _told(data))
    assert await _num_freed(redis) == before + 1


async def _num_freed(redis):
    """How much the server has freed in the background, once nothing of it is pending."""

    async def is_done():
        return not (await redis.info("memory"))["lazyfree_pending_objects"]

    await eventually(is_done)
    return (await redis.info("memory"))["lazyfreed_objects"]


async def test_a_copy_is_gone_on_with(redis, fill_memory):
    """What a process had copied before it died is not copied again."""
    await fill_memory(MEMORY, range(1, 601))

    def die(version, data):
        if version == 450:
            raise KeyboardInterrupt
        return _told(data)

    with pytest.raises(KeyboardInterrupt):
        await LogRewriter(redis).rewrite(LOG, die)
    seen = []

    def change(version, data):
        seen.append(version)
        return _told(data)

    await LogRewriter(redis).rewrite(LOG, change)
    assert seen == list(range(401, 601))
    assert await _prompts(redis) == dict.fromkeys(range(1, 601), "a cat")


async def test_a_compaction_begins_anew(redis, fill_memory):
    """What it had copied before is of the old bytes."""
    await fill_memory(MEMORY, range(1, 5))
    await redis.xadd(copy_key(MEMORY), {"e": b"old"}, id="1-0")
    await LogRewriter(redis).rewrite(LOG, lambda _, data: _told(data))
    assert await redis.exists(copy_key(MEMORY)) == 0


async def test_prompts_are_shown_to_nobody_once_they_are_not_kept(redis, make_entry):
    """From the moment of the setting on, before they are out: not in lists, and not in archives."""
    await _fill_with_prompts(redis, make_entry, range(1, 6))
    shaper, overview = MemoryShaper(redis, clock_ms=now_ms), MemoryOverview(redis)
    await shaper.shape(MEMORY, {"keep_prompts": 1})
    assert (await overview.get(MEMORY)).shape.keeps_prompts
    page = await overview.list_entries(MEMORY, EntryQuery(9))
    assert {entry.prompt for _, entry in page.entries} == {"a cat"}
    await shaper.shape(MEMORY, {"keep_prompts": None})
    assert await redis.zscore(FORGETTING_KEY, TENANT) is not None
    await redis.xadd(log_key(MEMORY), {"e": _told(make_entry(6))}, id="6-0")
    page = await overview.list_entries(MEMORY, EntryQuery(9, "asc"))
    assert [entry.prompt for _, entry in page.entries] == [""] * 5 + ["a cat"]
    exporter = MemoryExporter(redis)
    await redis.hset(meta_key(MEMORY), "version", 6)
    export = await exporter.begin(MEMORY)
    assert b"".join([chunk async for chunk in exporter.write(export)]).count(b"a cat") == 1


async def test_prompts_are_taken_out(redis, make_entry):
    """Those up to the act, though they may be kept again by then; the entries are what they would have been without."""
    await _fill_with_prompts(redis, make_entry, range(1, 301))
    await redis.xadd(log_key(MEMORY), {"e": _told(make_entry(301))[:-1] + b"?"}, id="301-0")
    await redis.hset(meta_key(MEMORY), "version", 301)
    shaper = MemoryShaper(redis, clock_ms=now_ms)
    await shaper.shape(MEMORY, {"keep_prompts": None})
    await shaper.shape(MEMORY, {"keep_prompts": 1})
    await redis.xadd(log_key(MEMORY), {"e": _told(make_entry(302))}, id="302-0")
    await LogRewriter(redis).take_prompts_out(MEMORY)
    found = await MemoryStore(redis).read_after(MEMORY, 0)
    assert found[:300] == [(version, make_entry(version)) for version in range(1, 301)]
    assert b"a cat" not in found[300][1]
    assert found[301] == (302, _told(make_entry(302)))
    assert await redis.exists(remains_key(TENANT)) == 0


async def test_where_there_are_none_nothing_is_written(redis, fill_memory):
    """The log stays the one that it was, and nothing is left to do."""
    await fill_memory(MEMORY, range(1, 5))
    await MemoryShaper(redis, clock_ms=now_ms).shape(MEMORY, {"keep_prompts": None})
    before = await redis.dump(LOG.name)
    await LogRewriter(redis).take_prompts_out(MEMORY)
    assert (await redis.dump(LOG.name)) == before
    assert await redis.exists(remains_key(TENANT), rewritten_key(LOG.name)) == 0


async def test_a_memory_that_is_deleted_has_nothing_left_to_take_out(redis, make_entry):
    """Its log has another name by then, which only the clean-up reads."""
    await _fill_with_prompts(redis, make_entry, range(1, 4))
    await MemoryShaper(redis, clock_ms=now_ms).shape(MEMORY, {"keep_prompts": None})
    await MemoryForgetter(redis, clock_ms=now_ms).delete(MEMORY)
    await LogRewriter(redis).take_prompts_out(MEMORY)
    assert not [m for m in await redis.zrange(remains_key(TENANT), 0, -1) if m.startswith(b"prompts")]
