"""Objects that are written and read piece by piece."""

import gc
import os
import time

import pytest
from patience import PATIENCE_S

from app.errors import NotFound, StoreUnavailable
from app.files.contents import FileContents
from app.objects.folder import flush_to_disk

pytestmark = pytest.mark.anyio

KEY = "files/acme/file-1"
CHUNK = bytes(range(256)) * 1024


@pytest.fixture
def contents(tmp_path):
    """A store in a folder."""
    return FileContents.open(tmp_path.as_uri())


def _names(tmp_path):
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())


async def _until_gone(tmp_path):
    until_s = time.monotonic() + PATIENCE_S
    while _names(tmp_path) and time.monotonic() < until_s:
        gc.collect()
        time.sleep(0.02)  # noqa: ASYNC251 - the store's own thread removes them
    return _names(tmp_path)


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("num_chunks", [1, 30])
async def test_what_is_written_in_pieces_is_read_in_pieces(tmp_path, scheme, num_chunks):
    """Less than a part, and several parts."""
    contents = FileContents.open(tmp_path.as_uri() if scheme == "file" else "memory:///")
    writer = contents.writer(KEY)
    for _ in range(num_chunks):
        await writer.write(CHUNK)
    await writer.finish()
    writer.abandon()
    assert await contents.get(KEY) == CHUNK * num_chunks
    assert b"".join([chunk async for chunk in await contents.read(KEY)]) == CHUNK * num_chunks


@pytest.mark.parametrize("num_chunks", [0, 1, 30])
async def test_what_is_abandoned_leaves_nothing(contents, tmp_path, num_chunks):
    """Neither under its name nor under another, however much had come."""
    writer = contents.writer(KEY)
    for _ in range(num_chunks):
        await writer.write(CHUNK)
    writer.abandon()
    assert await _until_gone(tmp_path) == []
    with pytest.raises(NotFound):
        await contents.read(KEY)
    with pytest.raises(ValueError, match="given up"):
        await writer.write(CHUNK)


async def test_nothing_is_there_before_it_is_whole(contents):
    """Who reads sees all of an object or none."""
    writer = contents.writer(KEY)
    for _ in range(30):
        await writer.write(CHUNK)
    with pytest.raises(NotFound):
        await contents.get(KEY)
    assert [keys async for keys in contents.list_before(time.time() + 60)] in ([], [[]])
    await writer.finish()
    assert len(await contents.get(KEY)) == 30 * len(CHUNK)


async def test_an_object_is_on_the_disk_when_finish_returns(tmp_path):
    """The whole file under its name first, then each folder that may be new."""
    flushed = []

    def flush(path):
        flush_to_disk(path)
        flushed.append((path, path.stat().st_size if path.is_file() else None))

    writer = FileContents.open(tmp_path.as_uri(), flush=flush).writer(KEY)
    await writer.write(CHUNK)
    assert flushed == []
    await writer.finish()
    file = tmp_path / KEY
    folders = [file.parent, file.parent.parent, tmp_path]
    assert flushed == [(file, len(CHUNK)), *((place, None) for place in folders)]


async def test_a_store_that_cannot_be_written_is_unavailable(contents, tmp_path):
    """At the latest when it is finished."""
    (tmp_path / "files").write_text("a file where a folder is needed", encoding="utf-8")
    writer = contents.writer(KEY)
    with pytest.raises(StoreUnavailable, match=KEY):
        await _write_many(writer)
    writer.abandon()
    writer = contents.writer(KEY)
    await writer.write(b"1")
    with pytest.raises(StoreUnavailable, match=KEY):
        await writer.finish()


async def _write_many(writer):
    for _ in range(30):
        await writer.write(CHUNK)


async def test_parts_that_a_killed_process_left_are_removed(contents, tmp_path):
    """Old ones alone, of this folder alone, and no whole object."""
    await contents.put(KEY, b"1")
    old_s = time.time() - 100
    for name, at_s in [("a#1", old_s), ("b#22", old_s), ("c#1", time.time()), ("d", old_s)]:
        path = tmp_path / "files" / "acme" / name
        path.write_bytes(b"1")
        os.utime(path, (at_s, at_s))
    (tmp_path / "e#1").write_bytes(b"1")
    os.utime(tmp_path / "e#1", (old_s, old_s))
    assert await contents.delete_partial_before(time.time() - 50) == 2
    assert _names(tmp_path) == ["e#1", "files/acme/c#1", "files/acme/d", KEY]
    assert await FileContents.open("memory:///").delete_partial_before(time.time()) == 0


async def test_no_folder_has_no_parts(contents):
    """A store that holds nothing yet."""
    assert await contents.delete_partial_before(time.time()) == 0
    assert [keys async for keys in contents.list_before(time.time())] in ([], [[]])
