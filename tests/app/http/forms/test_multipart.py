"""Reading form data part by part."""

import asyncio
import itertools

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from app.http.forms.multipart import MAX_PARTS, MultipartReader, PartStart, read_parts
from app.http.forms.uploads import clean_filename

BOUNDARY = b"x7MA4YWx"
HEADER = "multipart/form-data; boundary=" + BOUNDARY.decode()


def _part(name, data, filename=None):
    file = b"" if filename is None else b'; filename="' + filename + b'"'
    head = b'Content-Disposition: form-data; name="' + name + b'"' + file
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def _body(*parts):
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def _join(events):
    """The parts that events tell of, with their data in one piece."""
    parts = []
    for event in events:
        if isinstance(event, PartStart):
            parts.append([event.name, event.filename, b""])
        else:
            parts[-1][2] += event.data
    return [tuple(part) for part in parts]


def _read(body, cuts=()):
    reader = MultipartReader(BOUNDARY)
    edges = [0, *sorted(cuts), len(body)]
    events = [event for start, end in itertools.pairwise(edges) for event in reader.feed(body[start:end])]
    reader.finish()
    return _join(events)


_NAMES = st.text("abc[]_", min_size=1, max_size=8)
_DATA = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"\r", b"\n", b"--", BOUNDARY, b"x7", b"a"]), max_size=20).map(b"".join),
).filter(lambda data: b"\r\n--" + BOUNDARY not in b"\r\n" + data + b"\r\n--")


@given(
    st.lists(
        st.tuples(_NAMES, st.one_of(st.none(), st.just("f.jsonl"), st.just("ü.txt")), _DATA),
        min_size=1,
        max_size=5,
    ),
    st.data(),
)
def test_however_a_body_is_cut_its_parts_are_the_same(parts, data):
    """Built by hand, cut anywhere: names, names of files and every byte come back."""
    body = _body(*(_part(name.encode(), value, file and file.encode()) for name, file, value in parts))
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    assert _read(body, cuts) == [(name, file, value) for name, file, value in parts]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "last boundary"),
        (b"hello", "boundary"),
        (_part(b"file", b"1"), "last boundary"),
        (_body(_part(b"file", b"1"))[:-6], "last boundary"),
        (b"--" + BOUNDARY + b"\r\n\r\n1\r\n--" + BOUNDARY + b"--", "Content-Disposition"),
        (b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data\r\n\r\n1", "Content-Disposition"),
        (b"--" + BOUNDARY + b'\r\nContent-Disposition: inline; name="a"\r\n\r\n1', "Content-Disposition"),
        (b"--" + BOUNDARY + b"\r\nA: " + b"b" * 9000, "header"),
        (b"--" + BOUNDARY + b"\r\n" + b"A: b\r\n" * 50, "header"),
        (_body(*(_part(b"a%d" % n, b"1") for n in range(MAX_PARTS + 1))), "parts"),
    ],
)
def test_what_is_no_form_data_is_refused(body, why):
    """As a fault of the request, with what is wrong."""
    with pytest.raises(RequestValidationError) as caught:
        _read(body)
    assert caught.value.errors()[0]["type"] == "multipart_invalid"
    assert why.lower() in caught.value.errors()[0]["msg"].lower()


def test_a_boundary_has_a_bounded_length():
    """It is a part of every comparison."""
    with pytest.raises(RequestValidationError):
        MultipartReader(b"b" * 1000)


def _request(*chunks, header=HEADER, then=None):
    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60)
        return then

    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if then is not None:
        messages.append(then)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", header.encode())]}
    return Request(scope, receive)


END = {"type": "http.request", "body": b"", "more_body": False}


async def _parts(request, *, max_bytes=10_000):
    parts = read_parts(request, max_bytes=max_bytes, idle_timeout_s=0.1)
    return _join([event async for events in parts for event in events])


@pytest.mark.anyio
async def test_a_body_is_read_to_its_end():
    """Its chunks may come as they like, and something may follow the last boundary."""
    body = _body(_part(b"a", b"1"), _part(b"file", b"22", b"f"))
    assert await _parts(_request(body[:50], body[50:], b"epilogue", then=END)) == [
        ("a", None, b"1"),
        ("file", "f", b"22"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        (lambda: _request(_part(b"a", b"1")), 408),
        (lambda: _request(b"--" + BOUNDARY, b"b" * 10_000, then=END), 413),
        (lambda: _request(_body(_part(b"a", b"1")), b"e" * 10_000, then=END), 413),
        (lambda: _request(b"{}", header="application/json", then=END), 415),
        (lambda: _request(b"{}", header="", then=END), 415),
    ],
)
async def test_what_is_too_slow_too_large_or_of_another_type(request_of, status):
    """408, 413 and 415; a slow client's connection is closed, because the rest of its body may still come."""
    with pytest.raises(HTTPException) as caught:
        await _parts(request_of(), max_bytes=5000 if status == 413 else 10_000)
    assert caught.value.status_code == status
    assert (caught.value.headers == {"connection": "close"}) == (status == 408)


@pytest.mark.anyio
async def test_a_client_that_goes_away_ends_the_reading():
    """It is told apart from a body that ends."""
    with pytest.raises(ClientDisconnect):
        await _parts(_request(_part(b"a", b"1"), then={"type": "http.disconnect"}))


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["multipart/form-data", 'multipart/form-data; boundary=""'])
async def test_without_a_boundary_there_are_no_parts(header):
    """The message names what is missing."""
    with pytest.raises(RequestValidationError, match="boundary"):
        await _parts(_request(b"", header=header, then=END))


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("tasks.jsonl", "tasks.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\tasks.jsonl", "tasks.jsonl"),
        ("a\r\nset-cookie: b\x00\u202e.jsonl", "aset-cookie: b.jsonl"),
        ("  ", "upload"),
        ("..", "upload"),
        ("a/", "upload"),
        ("", "upload"),
        ("ü" * 200, "ü" * 127),
    ],
)
def test_a_files_name_is_kept_safely(given_name, kept):
    """The last part of a path, nothing that steers a terminal or a header, at most 255 bytes."""
    assert clean_filename(given_name) == kept


@given(st.text(max_size=400))
def test_no_name_is_a_path(text):
    """Whatever comes, what is kept can be a file's name in one folder, and stays as it is."""
    kept = clean_filename(text)
    assert kept
    assert not set("/\\\x00\r\n") & set(kept)
    assert kept not in {".", ".."}
    assert len(kept.encode()) <= 255
    assert clean_filename(kept) == kept
