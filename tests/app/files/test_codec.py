"""A file's record as bytes, and the keys that name it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.file import FilePurpose, StoredFile, expiry_ms
from app.domain.ids import TenantId, make_file_id, parse_file_id
from app.errors import CorruptRecord, InvalidId
from app.files.codec import decode_file, encode_file
from app.files.keys import content_key, parse_content_key

ACME = TenantId("acme")
FILE = StoredFile(ACME, make_file_id(5, b"0123456789ab"), "a.jsonl", FilePurpose.BATCH, 7, 5, 9)


@given(st.text(max_size=255).filter(lambda text: text.encode(errors="ignore").decode() == text))
def test_every_name_comes_back(filename):
    """Whatever letters it has."""
    file = dataclasses.replace(FILE, filename=filename)
    assert decode_file(encode_file(file), where="file") == file


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", encode_file(FILE).replace(b'"batch"', b'"lunch"')])
def test_what_is_no_record_is_corrupt(data):
    """And the message says where it was found."""
    with pytest.raises(CorruptRecord, match="file f"):
        decode_file(data, where="file f")


def test_a_place_in_the_store_is_of_its_file():
    """There and back; what is not of that form is not ours."""
    assert parse_content_key(content_key(ACME, FILE.file_id)) == (ACME, FILE.file_id)
    for key in ("images/acme/" + FILE.file_id, "files/acme", "files/acme/x", "files/A B/" + FILE.file_id, ""):
        assert parse_content_key(key) is None


def test_ids_sort_by_creation_and_have_96_random_bits():
    """The random part is as it was given, and nothing shorter is accepted."""
    ids = [make_file_id(at_ms, bytes([255 - at_ms] * 12)) for at_ms in range(3)]
    assert ids == sorted(ids)
    assert ids[1].endswith("fe" * 12)
    assert parse_file_id(ids[0]) == ids[0]
    for wrong in (lambda: make_file_id(1, b"short"), lambda: parse_file_id("file-../../x")):
        with pytest.raises(InvalidId):
            wrong()


def test_an_expiry_counts_from_the_second_that_is_told():
    """`expires_at` minus `created_at` is what was asked for, to the second."""
    assert expiry_ms(1_999, 3600) == 3_601_000
