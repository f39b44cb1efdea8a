"""Archives of memories that lie in Redis."""

import pytest

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.errors import InvalidRequest, InvalidValue, NotFound
from app.memory.archive import ArchiveEnd, ArchiveHeader, ArchiveReader, EntriesRead
from app.memory.exporting import MAX_PAGE_ENTRIES, MemoryExporter, skip
from app.memory.keys import MemoryKey, index_key, log_key, meta_key

pytestmark = pytest.mark.anyio

MEMORY = MemoryKey(TenantId("acme"), LatentSpace("demo"), MemoryName("default"))


@pytest.fixture
def exporter(redis):
    """An exporter."""
    return MemoryExporter(redis)


async def _bytes(exporter, version=None):
    export = await exporter.begin(MEMORY, version)
    return b"".join([chunk async for chunk in exporter.write(export)])


def _read(data):
    reader = ArchiveReader()
    head, *middle, end = reader.feed(data)
    reader.finish()
    return head.header, [entry for read in middle for entry in read.entries], end.end


async def test_an_archive_holds_what_the_memory_holds(exporter, fill_memory, make_entry):
    """Each entry under its version, whatever gaps there are, more than a page of them."""
    versions = [version for version in range(1, 1301) if version % 7]
    await fill_memory(MEMORY, versions)
    header, entries, end = _read(await _bytes(exporter))
    assert header == ArchiveHeader(MEMORY.latent_space, MEMORY.name, 1300, 1234, len(versions), 4, 2)
    assert entries == [(version, make_entry(version)) for version in versions]
    assert end == ArchiveEnd(len(versions), 0)
    assert len(versions) > 2 * MAX_PAGE_ENTRIES


async def test_what_comes_later_is_not_in_it(exporter, fill_memory, redis, make_entry):
    """The archive is of the version at its beginning, though the memory grows while it is read."""
    await fill_memory(MEMORY, range(1, 601))
    export = await exporter.begin(MEMORY)
    chunks = exporter.write(export)
    first = await anext(chunks)
    await redis.xadd(log_key(MEMORY), {"e": make_entry(601)}, id="601-0")
    await redis.hset(meta_key(MEMORY), "version", 601)
    header, entries, end = _read(first + b"".join([chunk async for chunk in chunks]))
    assert (header.version, len(entries), end.num_entries) == (600, 600, 600)


async def test_an_archive_of_a_version_is_the_same_to_the_byte(exporter, fill_memory, redis, make_entry):
    """Also when the memory has grown by more than a page of counting, so that one may go on where another broke off."""
    await fill_memory(MEMORY, range(1, 101))
    before = await _bytes(exporter)
    async with redis.pipeline(transaction=False) as pipeline:
        for version in range(101, 1500):
            pipeline.xadd(log_key(MEMORY), {"e": make_entry(version)}, id=f"{version}-0")
        pipeline.hset(meta_key(MEMORY), "version", 1499)
        await pipeline.execute()
    assert await _bytes(exporter, 100) == before
    assert _read(await _bytes(exporter))[0].num_entries == 1499


@pytest.mark.parametrize("from_byte", [0, 1, 8, 77, 100_000, -1, 0.5])
async def test_the_rest_from_a_byte_on(exporter, fill_memory, from_byte):
    """What is passed over and what follows are the whole archive; at its end nothing follows."""
    await fill_memory(MEMORY, range(1, 601), dim=300)
    whole = await _bytes(exporter)
    place = {-1: len(whole), 0.5: len(whole) // 2}.get(from_byte, from_byte)
    rest = await skip(exporter.write(await exporter.begin(MEMORY)), place)
    assert b"".join([chunk async for chunk in rest]) == whole[place:]


async def test_behind_the_end_there_is_nothing(exporter, fill_memory):
    """Not an empty answer, which would be taken for the end."""
    await fill_memory(MEMORY, [1])
    size = len(await _bytes(exporter))
    with pytest.raises(InvalidValue, match=f"from_byte {size + 1} is behind the archive's end at {size}"):
        await skip(exporter.write(await exporter.begin(MEMORY)), size + 1)


async def test_pages_are_bounded_by_bytes(exporter, fill_memory):
    """Large entries come a few at a time, and no chunk is much more than a block."""
    await fill_memory(MEMORY, range(1, 31), dim=32_768)
    export = await exporter.begin(MEMORY)
    assert export.page_entries == 3
    assert max([len(chunk) async for chunk in exporter.write(export)]) < 400_000


async def test_what_was_forgotten_meanwhile_is_not_in_it_and_said(exporter, fill_memory, redis):
    """The end mark has the version of the last act, so that nothing is replayed as if it were whole."""
    await fill_memory(MEMORY, range(1, 11))
    export = await exporter.begin(MEMORY)
    await redis.xdel(log_key(MEMORY), "4-0")
    await redis.hset(meta_key(MEMORY), mapping={"version": 11, "forget_version": 11})
    header, entries, end = _read(b"".join([chunk async for chunk in exporter.write(export)]))
    assert (header.version, header.num_entries) == (10, 10)
    assert [version for version, _ in entries] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert end == ArchiveEnd(9, 11)


async def test_an_entry_that_cannot_be_read_is_left_out(exporter, fill_memory, redis):
    """As by workers; the others are there, and the newest one that is corrupt gives no dimensions."""
    await fill_memory(MEMORY, [1, 2])
    await redis.xadd(log_key(MEMORY), {"e": b"no entry"}, id="3-0")
    await redis.hset(meta_key(MEMORY), "version", 3)
    header, entries, end = _read(await _bytes(exporter))
    assert [version for version, _ in entries] == [1, 2]
    assert (header.num_entries, header.feature_dim, end.num_entries) == (3, 0, 2)


async def test_a_memory_that_is_not_there(exporter, fill_memory, redis):
    """None of that name, a version of the future, and one that is deleted while it is read."""
    with pytest.raises(NotFound, match=r"demo\.default"):
        await exporter.begin(MEMORY)
    await fill_memory(MEMORY, range(1, 4))
    with pytest.raises(InvalidRequest, match=r"version 4 is outside 0\.\.3") as caught:
        await exporter.begin(MEMORY, 4)
    assert caught.value.param == "version"
    chunks = exporter.write(await exporter.begin(MEMORY))
    found = [await anext(chunks)]
    await redis.delete(log_key(MEMORY), index_key(MEMORY.tenant_id))
    with pytest.raises(NotFound):
        found += [chunk async for chunk in chunks]
    assert not any(isinstance(read, EntriesRead) for read in ArchiveReader().feed(b"".join(found)))
