"""Data of an older release become those of this one, wherever the process dies on the way."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis

from app.domain.ids import ImportId, LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.errors import ConfigurationError
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.import_keys import staging_key
from app.memory.keys import (
    DATA_FORMAT_KEY,
    MIGRATED_KEY,
    MemoryKey,
    copy_key,
    discarded_key,
    index_key,
    index_member,
    log_key,
    meta_key,
)
from app.memory.migration import DATA_FORMAT, check_format, migrate, read_format
from app.redis.connection import connect

pytestmark = pytest.mark.anyio

encode_old = runpy.run_path(str(Path(__file__).with_name("old_entries.py")))["encode_old"]
ACME, OTHER = TenantId("acme"), TenantId("other")
MEMORIES = [
    MemoryKey(ACME, LatentSpace("demo"), MemoryName("default")),
    MemoryKey(ACME, LatentSpace("sdxl-16"), MemoryName("log")),
    MemoryKey(OTHER, LatentSpace("demo"), MemoryName("default")),
]
STAGING = staging_key(ACME, ImportId("imp_" + "0" * 28))
DISCARDED = discarded_key(MEMORIES[0], "00ff")
NUM_ENTRIES = {
    **{log_key(memory): number for memory, number in zip(MEMORIES, (450, 3, 201), strict=True)},
    STAGING: 5,
    DISCARDED: 7,
}


def _entry(version):
    image = image_id(make_job_id(version, b"12345678"), version % 10)
    numbers = np.array([version % 100, float("nan"), 0.5], np.float16)
    return MemoryEntry(image, version, 1000 + version, numbers, numbers[:2])


def _versions(name):
    return [version for version in range(1, NUM_ENTRIES[name] + 1) if version % 4]


async def _write_old(redis):
    """As the release before entries had prompts left it: three memories, one discarded log, an import half done."""
    for name in NUM_ENTRIES:
        async with redis.pipeline(transaction=False) as pipeline:
            for version in _versions(name):
                pipeline.xadd(name, {"e": encode_old(_entry(version))}, id=f"{version}-0")
            await pipeline.execute()
    for memory in MEMORIES:
        await redis.hset(
            meta_key(memory), mapping={"version": 900, "created_at_ms": 5, "forget_version": 900}
        )
        await redis.sadd(index_key(memory.tenant_id), index_member(memory))
    await redis.pexpire(STAGING, 600_000)
    await redis.xadd(copy_key(MEMORIES[0]), {"e": encode_old(_entry(1))}, id="1-0")
    await redis.xadd("sparke:{t:acme}:job:x:events", {"e": encode_old(_entry(1))}, id="1-0")


async def _check_new(redis):
    for name in NUM_ENTRIES:
        expected = [(f"{v}-0".encode(), {b"e": encode_entry(_entry(v))}) for v in _versions(name)]
        assert await redis.xrange(name) == expected, name
    assert 0 < await redis.pttl(STAGING) <= 600_000
    assert await redis.ttl(log_key(MEMORIES[0])) == -1
    meta = {b"version": b"900", b"created_at_ms": b"5", b"forget_version": b"900"}
    assert await redis.hgetall(meta_key(MEMORIES[0])) == meta
    names = {name.decode() async for name in redis.scan_iter()}
    metas, indexes = {meta_key(memory) for memory in MEMORIES}, {index_key(ACME), index_key(OTHER)}
    assert names == {*NUM_ENTRIES, *metas, *indexes, "sparke:{t:acme}:job:x:events", DATA_FORMAT_KEY}


async def test_entries_become_those_of_the_present_codec(redis):
    """Of every log, in place, under their versions; what is no entry of a memory is left alone. A second time nothing is done."""
    await _write_old(redis)
    assert await read_format(redis) == 1
    with pytest.raises(
        ConfigurationError, match=r"data format 1, this release works with 2.*sparke redis migrate"
    ):
        await check_format(redis)
    assert await migrate(redis) == len(NUM_ENTRIES)
    await _check_new(redis)
    await check_format(redis)
    assert await migrate(redis) == 0


class _Killed(BaseException):
    """The process is gone: nothing catches this."""


class _MortalRedis(Redis):
    """Dies before, or after, one of its commands."""

    at, num_commands, is_done = 0, 0, False

    async def execute_command(self, *arguments, **options):
        """A command, in its turn."""
        self.num_commands += 1
        if self.num_commands == self.at and not self.is_done:
            raise _Killed
        answer = await super().execute_command(*arguments, **options)
        if self.num_commands == self.at:
            raise _Killed
        return answer


@pytest.mark.parametrize("is_done", [False, True])
async def test_wherever_it_is_killed_it_goes_on(redis, redis_url, is_done):
    """Before each command, and after it: the next start ends with the same, and the one after has nothing to do."""
    await _write_old(redis)
    at, num_starts = 0, 0
    while True:
        at += 1
        plain = connect(redis_url)
        mortal = _MortalRedis(connection_pool=plain.connection_pool)
        mortal.at, mortal.is_done = at, is_done
        try:
            await migrate(mortal)
            break
        except _Killed:
            num_starts += 1
        finally:
            await plain.aclose()
    assert num_starts > 10
    await _check_new(redis)
    assert await migrate(redis) == 0


async def test_a_process_that_dies_in_the_middle_is_gone_on_with(redis, redis_url):
    """What was done is not done again, and what was half done goes on."""
    await _write_old(redis)
    plain = connect(redis_url)
    mortal = _MortalRedis(connection_pool=plain.connection_pool)
    mortal.at = 25
    with pytest.raises(_Killed):
        await migrate(mortal)
    await plain.aclose()
    num_done = await redis.scard(MIGRATED_KEY)
    assert 0 < num_done < len(NUM_ENTRIES)
    with pytest.raises(ConfigurationError):
        await check_format(redis)
    assert await migrate(redis) == len(NUM_ENTRIES) - num_done
    await _check_new(redis)


async def test_a_damaged_entry_stays_as_it_is(redis):
    """It was unreadable before, and hides no other."""
    name = log_key(MEMORIES[1])
    damaged = encode_old(_entry(2))[:-1] + b"?"
    for version, data in ((1, encode_old(_entry(1))), (2, damaged), (3, b""), (4, encode_old(_entry(4)))):
        await redis.xadd(name, {"e": data}, id=f"{version}-0")
    assert await migrate(redis) == 1
    found = [fields[b"e"] for _, fields in await redis.xrange(name)]
    assert found == [encode_entry(_entry(1)), damaged, b"", encode_entry(_entry(4))]


async def test_what_has_no_old_entries_gets_the_present_number(redis, fill_memory):
    """A Redis that holds nothing, and one whose entries are of this release."""
    await check_format(redis)
    assert await redis.get(DATA_FORMAT_KEY) == str(DATA_FORMAT).encode()
    await redis.delete(DATA_FORMAT_KEY)
    await fill_memory(MEMORIES[0], [1, 2])
    await check_format(redis)
    assert await redis.get(DATA_FORMAT_KEY) == str(DATA_FORMAT).encode()


@pytest.mark.parametrize("found", ["3", "x"])
async def test_what_a_newer_release_wrote_is_refused(redis, found):
    """Nothing is touched, and the message says what to do."""
    await redis.set(DATA_FORMAT_KEY, found)
    for act in (check_format, migrate):
        with pytest.raises(
            ConfigurationError, match="newer release wrote" if found == "3" else "expected a number"
        ):
            await act(redis)
    assert await redis.get(DATA_FORMAT_KEY) == found.encode()


async def test_a_user_who_may_not_look_is_told(redis, redis_url):
    """A process whose user of Redis lacks the right says which, and where it is written what it needs."""
    await redis.execute_command("ACL SETUSER", "poor", "on", ">pass", "~*", "+auth", "+info")
    poor = connect(redis_url.replace("unix://", "unix://poor:pass@"))
    with pytest.raises(ConfigurationError, match=r"may not do what.*'get'.*redis-security\.md"):
        await check_format(poor)
    await poor.aclose()
    await redis.execute_command("ACL DELUSER", "poor")
