"""Imports: what nobody reads until all of it is there."""

from dataclasses import replace

import pytest
from patience import eventually

from app.domain.ids import ImportId, LatentSpace, MemoryName, TenantId
from app.errors import ImportConflict, MemoryExists, MemoryFrozen, MemoryFull, NotFound, TooManyTransfers
from app.memory.archive import ArchiveReader, EndRead, EntriesRead, HeadRead
from app.memory.exporting import MemoryExporter
from app.memory.import_keys import import_key, imports_key, staging_key
from app.memory.importing import ImportLimits, ImportRecord, MemoryImporter
from app.memory.keys import MemoryKey, index_key, log_key, meta_key
from app.memory.store import MemoryStore
from app.redis.replicas import Replicas

pytestmark = pytest.mark.anyio

TENANT = TenantId("acme")
SOURCE = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("source"))
TARGET = MemoryKey(TENANT, LatentSpace("demo"), MemoryName("target"))
NOW_MS = 1_000_000
TTL_S = 100


def _id(number):
    return ImportId(f"imp_{number:028x}")


@pytest.fixture
def importer(redis):
    """An importer that takes two imports of a tenant at a time."""
    return MemoryImporter(redis, ImportLimits(TTL_S, 2), clock_ms=lambda: NOW_MS)


@pytest.fixture
async def archive(redis, fill_memory):
    """An archive of some blocks with gaps, of which nothing is in Redis any more."""
    await fill_memory(SOURCE, [1, 2, 5, *range(7, 300)], dim=2000)
    exporter = MemoryExporter(redis)
    data = b"".join([chunk async for chunk in exporter.write(await exporter.begin(SOURCE))])
    await redis.flushall()
    return data


class Sender:
    """Hands an archive to an importer, read by read."""

    def __init__(self, importer, archive, number=1):
        self.importer = importer
        self.reads = ArchiveReader().feed(archive)
        self.import_id = _id(number)
        self.record = None

    async def send(self, num_reads=None, *, name=TARGET.name):
        """Some reads more; all that are left by default. The record then."""
        taken, self.reads = self.reads[:num_reads], self.reads[num_reads or len(self.reads) :]
        for read in taken:
            if isinstance(read, HeadRead):
                self.record = ImportRecord(self.import_id, name, read.header, read.progress)
                await self.importer.begin(TENANT, self.record)
            elif isinstance(read, EntriesRead):
                self.record = await self.importer.write(TENANT, self.record, read.entries, read.progress)
            elif isinstance(read, EndRead):
                self.record = await self.importer.publish(TENANT, self.record, read.end, read.progress)
        return self.record


async def _entries(redis, memory):
    return await MemoryStore(redis).read_after(memory, 0, 10_000)


async def test_an_archive_becomes_a_memory_all_at_once(importer, archive, redis, make_entry):
    """Until its end is there nobody sees anything of it; then versions, entries and times are as they were."""
    sender = Sender(importer, archive)
    assert len(sender.reads) > 4
    await sender.send(-1)
    store = MemoryStore(redis)
    assert await store.list_memories(TENANT) == []
    assert (await store.version(TARGET), await store.count(TARGET)) == (0, 0)
    assert await redis.pttl(staging_key(TENANT, _id(1))) > 0
    record = await sender.send()
    assert (record.is_done, record.version) == (True, 299)
    assert await store.list_memories(TENANT) == [TARGET]
    assert (await store.version(TARGET), await store.created_at_ms(TARGET)) == (299, 1234)
    versions = [1, 2, 5, *range(7, 300)]
    assert await _entries(redis, TARGET) == [(version, make_entry(version, 2000)) for version in versions]
    assert [await redis.ttl(key) for key in (log_key(TARGET), meta_key(TARGET), index_key(TENANT))] == [
        -1
    ] * 3
    assert await redis.exists(staging_key(TENANT, _id(1)), imports_key(TENANT)) == 0
    assert await importer.get(TENANT, _id(1)) == record
    await redis.xadd(log_key(TARGET), {"e": b"next"}, id="300-0")


async def test_another_process_goes_on(importer, archive, redis):
    """With the record alone, wherever the first one stopped."""
    first = Sender(importer, archive)
    await first.send(3)
    other = MemoryImporter(redis, ImportLimits(TTL_S, 2), clock_ms=lambda: NOW_MS)
    record = await other.get(TENANT, _id(1))
    assert record == first.record
    second = Sender(other, archive)
    second.record = record
    second.reads = ArchiveReader(record.header, record.progress).feed(archive[record.progress.offset_bytes :])
    assert (await second.send()).is_done
    assert len(await _entries(redis, TARGET)) == 296


async def test_each_step_may_be_repeated(importer, archive, redis):
    """An answer that is lost is asked for again; nothing is there twice."""
    sender = Sender(importer, archive)
    for _ in range(len(sender.reads)):
        before, left = sender.record, sender.reads[0]
        await sender.send(1)
        after = sender.record
        sender.record, sender.reads = before, [left, *sender.reads]
        assert await sender.send(1) == after
    assert len(await _entries(redis, TARGET)) == 296


async def test_a_memory_that_has_versions_is_not_written_to(importer, archive, redis, fill_memory):
    """Not at the beginning, and not at the end where it came meanwhile; it stays as it is."""
    late = Sender(importer, archive)
    await late.send(-1)
    await fill_memory(TARGET, [1, 2])
    with pytest.raises(MemoryExists, match=r"demo\.target has versions already"):
        await late.send()
    with pytest.raises(MemoryExists):
        await Sender(importer, archive, 2).send()
    assert [version for version, _ in await _entries(redis, TARGET)] == [1, 2]
    await redis.delete(log_key(TARGET))
    with pytest.raises(MemoryExists):  # all of it was forgotten, but its versions meant something
        await Sender(importer, archive, 3).send()


async def test_a_memory_that_was_made_and_holds_nothing_is_filled(importer, archive, redis):
    """Its settings stay."""
    await redis.hset(meta_key(TARGET), mapping={"version": 0, "cap": 7})
    assert (await Sender(importer, archive).send()).is_done
    assert await redis.hmget(meta_key(TARGET), "version", "cap") == [b"299", b"7"]


async def test_two_who_send_one_import(importer, archive, redis):
    """One of them is refused, and the other's memory is whole."""
    one, two = Sender(importer, archive), Sender(importer, archive)
    await one.send(2)
    two.record, two.reads = one.record, list(one.reads)
    two.reads = two.reads[:1]
    await two.send()
    await one.send(2)
    with pytest.raises(ImportConflict, match="has gone on since"):
        await importer.write(
            TENANT, two.record, ((9_000, b"other"),), replace(two.record.progress, offset_bytes=1)
        )
    with pytest.raises(ImportConflict, match="has gone on since"):
        await Sender(importer, archive).send(1, name=MemoryName("elsewhere"))
    await one.send()
    assert len(await _entries(redis, TARGET)) == 296


async def test_what_is_frozen_while_it_comes_takes_nothing(importer, archive, redis):
    """All that has come waits, so that it is a memory once that is thawed."""
    sender = Sender(importer, archive)
    await sender.send(-1)
    await redis.hset(meta_key(TARGET), "frozen", 1)
    with pytest.raises(MemoryFrozen, match="is frozen"):
        await Sender(importer, archive, 2).send(1)
    before, left = sender.record, sender.reads[0]
    with pytest.raises(MemoryFrozen, match="is frozen"):
        await sender.send()
    assert await _entries(redis, TARGET) == []
    await redis.hdel(meta_key(TARGET), "frozen")
    sender.record, sender.reads = before, [left]
    assert (await sender.send()).is_done


async def test_imports_at_once_find_no_more_room_than_there_is(importer, archive, redis, fill_memory):
    """Both began while there was room for either: the second one is told, and nothing of it is there."""
    senders = [Sender(importer, archive, number) for number in (1, 2)]
    await fill_memory(SOURCE, [1, 2, 3])
    for number, sender in enumerate(senders):
        await sender.send(-1, name=MemoryName(f"m{number}"))

    async def publish(sender, most):
        read = sender.reads[0]
        return await importer.publish(TENANT, sender.record, read.end, read.progress, most_entries=most)

    with pytest.raises(MemoryFull, match="more than 298"):
        await publish(senders[0], 298)
    done = await publish(senders[0], 299)
    assert await publish(senders[0], 299) == done
    with pytest.raises(MemoryFull, match="more than 594"):
        await publish(senders[1], 594)
    assert {memory.name for memory in await MemoryStore(redis).list_memories(TENANT)} == {SOURCE.name, "m0"}
    assert (await publish(senders[1], 595)).is_done


async def test_memories_that_come_meanwhile_count_toward_the_room(importer, archive, redis, fill_memory):
    """Those whose logs were to be counted were asked for before: the script sees that there are others, and is asked again."""
    sender = Sender(importer, archive)
    await sender.send(-1)
    come = [(SOURCE, [1, 2, 3]), (replace(SOURCE, name=MemoryName("other")), [1])]

    class Late(Replicas):
        async def run(self, script, keys, args):
            if come:
                await fill_memory(*come.pop())
            return await super().run(script, keys, args)

    late = MemoryImporter(redis, ImportLimits(TTL_S, 2), clock_ms=lambda: NOW_MS, replicas=Late(redis))
    read = sender.reads[0]
    with pytest.raises(MemoryFull):
        await late.publish(TENANT, sender.record, read.end, read.progress, most_entries=299)
    assert come == []
    assert (await late.publish(TENANT, sender.record, read.end, read.progress, most_entries=300)).is_done


async def test_what_breaks_off_goes_by_itself(redis, archive):
    """Every key of it, after the time to live; it is no longer known, and cannot be gone on with."""
    importer = MemoryImporter(redis, ImportLimits(60, 2), clock_ms=lambda: NOW_MS)
    sender = Sender(importer, archive)
    await sender.send(3)
    made = await redis.keys("*")
    assert len(made) == 3
    for key in made:
        assert 0 < await redis.pttl(key) <= 60_000
        await redis.pexpire(key, 1)

    async def is_gone():
        return await redis.dbsize() == 0

    await eventually(is_gone)
    with pytest.raises(NotFound, match="imp_0000"):
        await importer.get(TENANT, _id(1))
    with pytest.raises(ImportConflict, match="has expired"):
        await sender.send(1)


async def test_part_of_it_that_expired_is_no_memory(importer, archive, redis):
    """However its entries were lost, what is not whole is not published."""
    sender = Sender(importer, archive)
    await sender.send(-1)
    await redis.delete(staging_key(TENANT, _id(1)))
    with pytest.raises(ImportConflict, match="has expired"):
        await sender.send()
    assert await MemoryStore(redis).list_memories(TENANT) == []


async def test_what_is_given_up_leaves_nothing(importer, archive, redis):
    """Unless it is a memory already: that stays, and so does what is known of its import."""
    sender = Sender(importer, archive)
    await sender.send(3)
    await importer.discard(TENANT, _id(1))
    assert await redis.dbsize() == 0
    done = await Sender(importer, archive, 2).send()
    await importer.discard(TENANT, _id(2))
    assert await importer.get(TENANT, _id(2)) == done
    assert len(await _entries(redis, TARGET)) == 296


async def test_a_bounded_number_is_unfinished(redis, archive):
    """One that expires, or is finished, makes room."""
    now_ms = NOW_MS
    importer = MemoryImporter(redis, ImportLimits(TTL_S, 2), clock_ms=lambda: now_ms)
    senders = [Sender(importer, archive, number) for number in range(5)]
    for number in (0, 1):
        await senders[number].send(1, name=MemoryName(f"m{number}"))
    with pytest.raises(TooManyTransfers, match="2 imports"):
        await senders[2].send(1, name=MemoryName("m2"))
    senders[2] = Sender(importer, archive, 2)
    await senders[0].send()
    await senders[2].send(1, name=MemoryName("m2"))
    now_ms += 1000 * TTL_S + 1
    await senders[3].send(1, name=MemoryName("m3"))
    assert await redis.hget(import_key(TENANT, _id(3)), "offset") is not None


async def test_versions_that_are_no_longer_whole_are_noted(redis, importer, fill_memory):
    """From the first gap up to the last act of forgetting, which the memory's version is not behind."""
    await fill_memory(SOURCE, [1, 2, 3, 5, 6])
    await redis.hset(meta_key(SOURCE), mapping={"forget_version": 9})
    exporter = MemoryExporter(redis)
    archive = b"".join([chunk async for chunk in exporter.write(await exporter.begin(SOURCE))])
    record = await Sender(importer, archive).send()
    assert record.version == 9
    names = ["version", "forget_version", "floor_version", "floor_first"]
    assert await redis.hmget(meta_key(TARGET), names) == [b"9", b"9", b"9", b"4"]


async def test_an_empty_memory_is_one_too(redis, importer, fill_memory):
    """It has its version, so that it goes on from there."""
    await fill_memory(SOURCE, [1])
    await redis.xdel(log_key(SOURCE), "1-0")
    exporter = MemoryExporter(redis)
    archive = b"".join([chunk async for chunk in exporter.write(await exporter.begin(SOURCE))])
    assert (await Sender(importer, archive).send()).is_done
    store = MemoryStore(redis)
    assert TARGET in await store.list_memories(TENANT)
    assert (await store.version(TARGET), await store.count(TARGET)) == (1, 0)


async def test_the_scripts_keep_to_one_slot(cluster_node, archive):
    """All of an import on a node of a cluster, which refuses keys of two slots."""
    importer = MemoryImporter(cluster_node, ImportLimits(TTL_S, 2), clock_ms=lambda: NOW_MS)
    sender = Sender(importer, archive)
    assert (await sender.send()).is_done
    await importer.discard(TENANT, _id(1))
    exporter = MemoryExporter(cluster_node)
    exported = exporter.write(await exporter.begin(TARGET, 100))
    assert len(b"".join([chunk async for chunk in exported])) < len(archive)
