"""Entries of older releases are read once, to be written anew."""

import hashlib
import runpy
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import LatentSpace, MemoryName, image_id, make_job_id
from app.errors import CorruptRecord
from app.memory.archive import ArchiveHeader, ArchiveReader, EntriesRead
from app.memory.codec import MemoryEntry, decode_entry, encode_entry
from app.memory.upgrading import is_old, upgrade_entry

encode_old = runpy.run_path(str(Path(__file__).with_name("old_entries.py")))["encode_old"]


def _entry(number, feature=(1.0, float("nan"), float("inf")), prompt=""):
    image = image_id(make_job_id(number, b"12345678"), 3)
    return MemoryEntry(
        image, number, 1000 + number, np.array(feature, np.float16), np.ones(2, np.float16), prompt
    )


@given(st.integers(0, 2**40), st.lists(st.floats(width=16), max_size=20))
def test_an_old_entry_becomes_what_the_present_codec_writes(number, feature):
    """Every bit of the vectors, ids, seeds and times are as they were; twice is once."""
    entry = _entry(number, feature)
    upgraded = upgrade_entry(encode_old(entry))
    assert upgraded == encode_entry(entry)
    assert upgrade_entry(upgraded) == upgraded
    assert decode_entry(upgraded).feature.tobytes() == entry.feature.tobytes()


@given(st.data())
def test_a_damaged_old_entry_gets_no_new_checksum(data):
    """A changed byte, a cut and a wrong length are errors, or are left to the present codec, which refuses them."""
    old = encode_old(_entry(7))
    changed = bytearray(old)
    changed[data.draw(st.integers(0, len(old) - 1))] ^= data.draw(st.integers(1, 255))
    body = old[:-5]
    for wrong in (
        bytes(changed),
        old[: data.draw(st.integers(0, len(old) - 1))],
        body + struct.pack("<I", zlib.crc32(body)),
    ):
        with pytest.raises(CorruptRecord):
            decode_entry(upgrade_entry(wrong))


def test_only_old_entries_are_old():
    """What the present codec writes is passed over, and so is what is nothing."""
    assert is_old(encode_old(_entry(1)))
    assert not is_old(encode_entry(replace(_entry(1), prompt="a cat")))
    assert not is_old(b"")


def test_an_archive_of_an_older_release_is_read():
    """A backup is as good as it was: format 1 gives the entries that the present codec writes."""
    old = _old_archive([(version, encode_old(_entry(version))) for version in (1, 2, 5)])
    reader = ArchiveReader()
    read = [one for at in range(0, len(old), 50) for one in reader.feed(old[at : at + 50])]
    reader.finish()
    entries = [entry for one in read if isinstance(one, EntriesRead) for entry in one.entries]
    assert entries == [(version, encode_entry(_entry(version))) for version in (1, 2, 5)]


def _old_archive(entries):
    """An archive as format 1 has it: the digests are over the entries as they were then."""

    def digest(before, block):
        return hashlib.blake2b(before + block, digest_size=16).digest()

    header = ArchiveHeader(LatentSpace("demo"), MemoryName("default"), 9, 1234, len(entries), 3, 2)
    names = header.latent_space.encode() + header.name.encode()
    body = struct.pack("<QqQIIBB", 9, 1234, len(entries), 3, 2, 4, 7) + names
    listed = struct.pack("<I", len(entries))
    for version, data in entries:
        listed += struct.pack("<QI", version, len(data)) + data
    preamble = struct.pack("<6sH", b"SPKMEM", 1)
    whole, last = preamble, digest(b"", preamble)
    blocks = ((b"HEAD", body), (b"ENTR", listed), (b"DONE", struct.pack("<QQ", len(entries), 0)))
    for kind, content in blocks:
        block = struct.pack("<4sI", kind, len(content)) + content
        last = digest(last, block)
        whole += block + last
    return whole
