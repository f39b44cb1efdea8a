"""Files that only their key opens."""

import io
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.worker.memory import sealed_file
from app.worker.memory.sealed_file import BrokenFile, SealedReader, write_sealed

KEY, OTHER = bytes(range(32)), bytes(32)


def _read(data, sizes, key=KEY):
    reader = SealedReader(io.BytesIO(data), key)
    found = []
    for size in sizes:
        part = bytearray(size)
        reader.read_into(memoryview(part))
        found.append(bytes(part))
    reader.end()
    return found


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.binary(max_size=300), max_size=5), block=st.integers(1, 100), cuts=st.data())
def test_what_was_written_is_read(tmp_path_factory, parts, block, cuts):
    """In pieces of any size, across blocks."""
    path = tmp_path_factory.mktemp("sealed") / "file"
    write_sealed(
        path, KEY, [memoryview(part[at : at + block]) for part in parts for at in range(0, len(part), block)]
    )
    whole, sizes = b"".join(parts), []
    while sum(sizes) < len(whole):
        sizes.append(cuts.draw(st.integers(1, len(whole) - sum(sizes))))
    assert b"".join(_read(path.read_bytes(), sizes)) == whole


@pytest.fixture
def sealed(tmp_path):
    """A file of two small blocks and the end mark."""
    path = tmp_path / "file"
    write_sealed(path, KEY, [memoryview(b"secret one"), memoryview(b"two")])
    return path.read_bytes()


def test_every_altered_byte_and_every_cut_is_found(sealed):
    """And every other key; nothing of what is inside can be read from outside."""
    assert _read(sealed, [13]) == [b"secret onetwo"]
    assert b"secret" not in sealed
    for place in range(len(sealed)):
        altered = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        for broken in (altered, sealed[:place]):
            with pytest.raises(BrokenFile):
                _read(broken, [13])
    for data, size, key in (
        (sealed, 13, OTHER),
        (sealed, 12, KEY),
        (sealed, 14, KEY),
        (sealed + b"x", 13, KEY),
    ):
        with pytest.raises(BrokenFile):
            _read(data, [size], key)


def test_blocks_cannot_be_moved(sealed):
    """Neither within a file nor from another one under the same key."""
    first, second = 16 + 4 + 26, 16 + 4 + 26 + 4 + 19
    moved = sealed[:16] + sealed[first:second] + sealed[16:first] + sealed[second:]
    with pytest.raises(BrokenFile):
        _read(moved, [13])


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    """What breaks off while it is written leaves the one before, and no part; others may not read it."""
    path = tmp_path / "file"
    write_sealed(path, KEY, [memoryview(b"one")])

    def parts():
        yield memoryview(b"two")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_sealed(path, KEY, parts())
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert _read(path.read_bytes(), [3]) == [b"one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_same_bytes_never_give_the_same_file(tmp_path):
    """Each file has nonces of its own, so that one key may seal many."""
    files = [tmp_path / name for name in "ab"]
    for path in files:
        write_sealed(path, KEY, [memoryview(b"x" * (sealed_file._BLOCK_BYTES + 1))])
    one, two = (path.read_bytes() for path in files)
    assert len(one) == len(two)
    assert one[20:60] != two[20:60]
