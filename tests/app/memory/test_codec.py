"""Bytes of memory entries."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.domain.ids import image_id, make_job_id
from app.errors import CorruptRecord
from app.memory.codec import MemoryEntry, decode_entry, decode_page, encode_entry, without_prompt

_HALVES = arrays.arrays(np.float16, st.integers(0, 40))
_ENTRIES = st.builds(
    MemoryEntry,
    image_id=st.builds(
        lambda at, noise, index: image_id(make_job_id(at, noise), index),
        st.integers(0, 2**48 - 1),
        st.binary(min_size=8, max_size=8),
        st.integers(0, 999),
    ),
    seed=st.integers(0, 2**53 - 1),
    created_at_ms=st.integers(0, 2**48),
    feature=_HALVES,
    prompt_embedding=_HALVES,
    prompt=st.text(max_size=40),
)


def _sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@given(_ENTRIES)
def test_an_entry_comes_back_as_it_was(entry):
    """Every member survives, each half bit for bit, infinities and NaNs too."""
    found = decode_entry(encode_entry(entry))
    assert (found.image_id, found.seed, found.created_at_ms, found.prompt) == (
        entry.image_id,
        entry.seed,
        entry.created_at_ms,
        entry.prompt,
    )
    assert found.feature.tobytes() == entry.feature.tobytes()
    assert found.prompt_embedding.tobytes() == entry.prompt_embedding.tobytes()


@given(_ENTRIES, st.data())
def test_any_changed_byte_is_noticed(entry, data):
    """Whichever byte is changed, and to whatever, the entry is corrupt."""
    encoded = bytearray(encode_entry(entry))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptRecord, match=r"^here: "):
        decode_entry(bytes(encoded), where="here")


@given(_ENTRIES, st.data())
def test_a_cut_or_grown_entry_is_noticed(entry, data):
    """Neither a lost tail nor added bytes pass, even where the checksum was made to fit."""
    encoded = encode_entry(entry)
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    for wrong in (
        cut,
        encoded + data.draw(st.binary(min_size=1, max_size=8)),
        _sealed(encoded),
        _sealed(cut[:-4]),
    ):
        if wrong != encoded:
            with pytest.raises(CorruptRecord):
                decode_entry(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_corrupt(data):
    """No input escapes with another exception, also none whose checksum fits."""
    for candidate in (data, _sealed(data)):
        with pytest.raises(CorruptRecord):
            decode_entry(candidate)


@given(_ENTRIES)
def test_a_prompt_can_be_taken_out(entry):
    """What is left is the entry that never had one, to the byte."""
    encoded = encode_entry(entry)
    assert without_prompt(encoded) == encode_entry(replace(entry, prompt=""))
    assert without_prompt(without_prompt(encoded)) == without_prompt(encoded)


def test_a_prompt_that_is_no_text_is_corrupt():
    """Bytes that are no UTF-8 are not handed on, whatever the checksum says."""
    entry = MemoryEntry(
        image_id(make_job_id(1, b"12345678"), 0),
        1,
        2,
        np.ones(2, np.float16),
        np.ones(3, np.float16),
        prompt="ab",
    )
    body = bytearray(encode_entry(entry)[:-4])
    body[-1] = 0xFF
    with pytest.raises(CorruptRecord, match="here: its prompt is not UTF-8"):
        decode_entry(_sealed(bytes(body)), where="here")


def test_another_release_s_entry_says_so():
    """An entry of a later codec version is refused by number."""
    entry = MemoryEntry(
        image_id(make_job_id(1, b"12345678"), 0), 1, 2, np.ones(2, np.float16), np.ones(3, np.float16)
    )
    body = bytearray(encode_entry(entry)[:-4])
    body[4] = 3
    with pytest.raises(CorruptRecord, match="codec version 3"):
        decode_entry(_sealed(bytes(body)))


def test_other_float_types_are_stored_as_halves():
    """A float32 feature of a worker comes back rounded to float16, in one dimension."""
    name = image_id(make_job_id(1, b"12345678"), 0)
    entry = MemoryEntry(name, 1, 2, np.full((2, 2), 0.1, np.float32), np.full(3, 0.2, np.float64))
    found = decode_entry(encode_entry(entry))
    assert found.feature.dtype == found.prompt_embedding.dtype == np.float16
    assert found.feature.tolist() == [float(np.float16(0.1))] * 4


@given(st.lists(st.tuples(_ENTRIES, st.sampled_from(["whole", "broken", "cut"])), max_size=8))
def test_a_page_is_its_entries(drawn):
    """Those that are whole and of the dimensions asked for, bit for bit, in order; every other one is told, with why."""
    page = [encode_entry(entry) for entry, _ in drawn]
    for place, (_, state) in enumerate(drawn):
        broken = page[place][:-1] + bytes([page[place][-1] ^ 1])
        page[place] = {"whole": page[place], "broken": broken, "cut": page[place][:5]}[state]
    dimensions = (drawn[0][0].feature.size, drawn[0][0].prompt_embedding.size) if drawn else (1, 1)
    found = decode_page(page, dimensions)
    good = [
        (place, entry)
        for place, (entry, state) in enumerate(drawn)
        if state == "whole" and (entry.feature.size, entry.prompt_embedding.size) == dimensions
    ]
    assert found.places.tolist() == [place for place, _ in good]
    assert found.image_ids == [entry.image_id for _, entry in good]
    for row, (_, entry) in enumerate(good):
        assert found.features[row].tobytes() == entry.feature.tobytes()
        assert found.prompt_embeddings[row].tobytes() == entry.prompt_embedding.tobytes()
    assert sorted(found.places.tolist() + [place for place, _ in found.wrong]) == list(range(len(page)))
    for place, reason in found.wrong:
        assert {"whole": "dimensions", "broken": "checksum", "cut": "expected"}[drawn[place][1]] in reason
