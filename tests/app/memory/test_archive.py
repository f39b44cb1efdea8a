"""The archive of a memory: what comes out is what went in, and nothing else is taken for it."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.ids import LatentSpace, MemoryName, image_id, make_job_id
from app.errors import InvalidArchive
from app.memory.archive import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    FORMAT_VERSION,
    MAX_BLOCK_BYTES,
    ArchiveEnd,
    ArchiveHeader,
    ArchiveReader,
    ArchiveWriter,
    EndRead,
    EntriesRead,
    HeadRead,
)
from app.memory.codec import MemoryEntry, encode_entry

HYPOTHESIS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def _entry(number, dim=3):
    vector = np.full(dim, number % 7, np.float16)
    return encode_entry(
        MemoryEntry(
            image_id(make_job_id(number, b"12345678"), number % 5), number, number, vector, vector[:2]
        )
    )


def _header(version, num_entries):
    return ArchiveHeader(LatentSpace("demo"), MemoryName("default"), version, 1234, num_entries, 3, 2)


def _write(entries, version, *, forget_version=0, pieces=1):
    writer = ArchiveWriter(_header(version, len(entries)))
    blocks = [writer.begin()]
    blocks += [writer.add(entries[at : at + pieces]) for at in range(0, len(entries), pieces)]
    return b"".join([*blocks, writer.end(forget_version=forget_version)])


def _read(data, *sizes):
    """All that a reader finds in the data, which it gets in pieces of the sizes, in turn."""
    reader, found, at, turn = ArchiveReader(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        found += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    reader.finish()
    return found


versions = st.lists(st.integers(1, 10_000), unique=True, max_size=12).map(sorted)


@HYPOTHESIS
@given(versions, st.integers(0, 5), st.integers(1, 4), st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_what_comes_out_is_what_went_in(found_versions, later, pieces, sizes):
    """Entries, gaps in versions, header and end; in pieces of any size, and cut into the same blocks however it came."""
    entries = [(version, _entry(version)) for version in found_versions]
    version = (found_versions or [0])[-1] + later
    data = _write(entries, version, forget_version=later, pieces=pieces)
    head, *middle, end = _read(data, *sizes)
    assert isinstance(head, HeadRead)
    assert head.header == _header(version, len(entries))
    assert [each for read in middle for each in read.entries] == entries
    assert isinstance(end, EndRead)
    assert end.end == ArchiveEnd(len(entries), later)
    assert end.progress.offset_bytes == len(data)
    expected = next((at for at, v in enumerate(found_versions, 1) if v != at), None)
    assert end.progress.first_gap == expected
    assert data == _write(entries, version, forget_version=later)


@HYPOTHESIS
@given(versions, st.data())
def test_every_cut_is_found(found_versions, data):
    """An archive that ends anywhere before its end is refused, with the byte where it ends."""
    archive = _write([(version, _entry(version)) for version in found_versions], 10_000)
    cut = data.draw(st.integers(0, len(archive) - 1))
    with pytest.raises(InvalidArchive, match=f"ends at byte {cut}, before its end mark"):
        _read(archive[:cut])


@HYPOTHESIS
@given(versions, st.integers(1, 255), st.data())
def test_every_altered_byte_is_found(found_versions, change, data):
    """Whichever byte is another one, the archive is refused, and nothing of that block or behind it is handed on."""
    entries = [(version, _entry(version)) for version in found_versions]
    archive = bytearray(_write(entries, 10_000))
    place = data.draw(st.integers(0, len(archive) - 1))
    archive[place] ^= change
    reader, found = ArchiveReader(), []
    with pytest.raises(InvalidArchive):  # noqa: PT012 - where it is found is the question
        for at in range(0, len(archive), 50):
            found += reader.feed(bytes(archive[at : at + 50]))
        reader.finish()
    assert reader.progress.offset_bytes <= place
    assert all(read.progress.offset_bytes <= place for read in found)


def test_a_byte_too_many_and_blocks_in_another_order_are_found():
    """So are a block left out, one that is there twice, and one of another archive."""
    entries = [(version, _entry(version, 200_000)) for version in range(1, 4)]
    archive, other = _write(entries, 3), _write([(1, _entry(2, 200_000)), *entries[1:]], 3)
    ends, reader = [], ArchiveReader()
    for at in range(0, len(archive), 1000):
        ends += [read.progress.offset_bytes for read in reader.feed(archive[at : at + 1000])]
    head, one, two, three, whole = ends
    assert whole == len(archive)
    for wrong in (
        archive + b"\0",
        archive[:head] + archive[one:two] + archive[head:one] + archive[two:],
        archive[:head] + archive[one:],
        archive[:one] + archive[head:],
        archive[:one] + other[one:],
        archive[:two] + archive[three:],
    ):
        with pytest.raises(InvalidArchive, match=r"block [2-6] of the archive"):
            _read(wrong, 5000)


def test_a_reader_goes_on_from_where_another_was():
    """Progress and header are enough, at every block, and what was read before need not be sent again."""
    entries = [(version, _entry(version, 100_000)) for version in (1, 2, 5, 6, 9)]
    archive = _write(entries, 20, forget_version=11)
    head, *middle, end = _read(archive)
    assert len(middle) > 1
    for number, before in enumerate([head, *middle]):
        reader = ArchiveReader(head.header, before.progress)
        rest = reader.feed(archive[before.progress.offset_bytes :])
        reader.finish()
        assert [read.progress for read in rest] == [read.progress for read in [*middle, end][number:]]
    assert end.progress.first_gap == 3


def test_memory_is_bounded_by_a_block():
    """A block that says it is huge is refused before it is read, and blocks are closed at 256 KiB."""
    archive = _write([(version, _entry(version, 1000)) for version in range(1, 1001)], 1000)
    sizes = [
        len(read.entries) * len(_entry(1, 1000)) for read in _read(archive) if isinstance(read, EntriesRead)
    ]
    assert max(sizes) < BLOCK_BYTES + 3000
    assert len(sizes) > 5
    at = next(read.progress.offset_bytes for read in _read(archive))
    huge = archive[: at + 4] + struct.pack("<I", MAX_BLOCK_BYTES + 1)
    with pytest.raises(InvalidArchive, match=f"from byte {at}: a block has at most {MAX_BLOCK_BYTES} bytes"):
        ArchiveReader().feed(huge)


def test_what_is_no_archive_is_said_to_be_none():
    """Other bytes, and a format of the future."""
    archive = _write([], 0)
    with pytest.raises(InvalidArchive, match="no archive of a memory"):
        ArchiveReader().feed(b"PK\x03\x04 and so on")
    with pytest.raises(InvalidArchive, match=f"format version 3; this release reads 1 to {FORMAT_VERSION}"):
        ArchiveReader().feed(archive[:6] + b"\3\0" + archive[8:])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([(2, _entry(2)), (1, _entry(1))], "version 1 comes after 2"),
        ([(1, _entry(1)), (1, _entry(1))], "version 1 comes after 1"),
        ([(8, _entry(8))], "version 8 comes after 0 in a memory of version 7"),
        ([(1, _entry(1)[:-1] + b"?")], "version 1: checksum"),
        ([(1, b"")], "version 1: expected"),
    ],
)
def test_entries_are_looked_at(entries, said):
    """Right digests do not make wrong entries right: order, versions and each entry's own checksum."""
    with pytest.raises(InvalidArchive, match=rf"block 2 of the archive, before byte \d+: {said}"):
        _read(_write(entries, 7))


def test_the_bytes_are_as_documented():
    """The preamble, the header and the end mark of an empty archive, by the offsets of docs/archive.md."""
    archive = _write([], 5, forget_version=4)
    assert archive[:8] == b"SPKMEM\2\0"
    assert archive[8:16] == b"HEAD" + struct.pack("<I", 34 + 11)
    assert struct.unpack("<QqQII", archive[16:48]) == (5, 1234, 0, 3, 2)
    assert archive[48:61] == bytes([4, 7]) + b"demodefault"
    done = archive[61 + DIGEST_BYTES :]
    assert done[:24] == b"DONE" + struct.pack("<IQQ", 16, 0, 4)
    assert len(done) == 24 + DIGEST_BYTES
