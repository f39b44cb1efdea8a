"""Lines come out of an input as they stand in it, whatever pieces it is read in."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batches.inputs import BatchInputs, InputReader
from app.batches.validation import LineScanner, survey_input
from app.domain.batch import BatchLine, Cursor, LineFault
from app.errors import NotFound

MOST_BYTES = 6


class _Memory(BatchInputs):
    """An input that is held in memory."""

    def __init__(self, data):
        self.data = data
        self.most_bytes_read = 0

    async def read_range(self, _key, start_byte, end_byte):
        """As of an object: the range must be there."""
        assert 0 <= start_byte < end_byte <= len(self.data)
        self.most_bytes_read = max(self.most_bytes_read, end_byte - start_byte)
        return self.data[start_byte:end_byte]


def _reader(data, piece_bytes, start=None):
    return InputReader(
        _Memory(data), "key", len(data), max_line_bytes=MOST_BYTES, start=start, piece_bytes=piece_bytes
    )


def _read_all(data, piece_bytes, most, start=None):
    async def read():
        reader, found = _reader(data, piece_bytes, start), []
        while taken := await reader.take(most):
            assert len(taken) <= most
            found += taken
        return found, reader.next_number

    return anyio.run(read)


def _oracle(data):
    """Every line at once."""
    lines = data.split(b"\n")
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    return [
        (number, line if len(line) <= MOST_BYTES else None)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


_TEXTS = st.lists(
    st.sampled_from([b"a", b"bc", b"\n", b"\n\n", b" ", b"\r\n", b"123456", b"1234567", b"\xc3\xa9"])
)


@given(_TEXTS.map(b"".join), st.integers(1, 9), st.integers(1, 4))
def test_lines_are_those_of_the_whole(data, piece_bytes, most):
    """Numbers count every line, also empty ones; one that is too long is told without its bytes."""
    found, num_lines = _read_all(data, piece_bytes, most)
    assert [(line.number, line.data) for line, _ in found] == _oracle(data)
    assert num_lines == (data.count(b"\n") + 2 if data else 1)


@given(_TEXTS.map(b"".join), st.integers(1, 9))
def test_a_reader_may_start_after_any_line(data, piece_bytes):
    """The place that one reader tells is where another goes on."""
    found, _ = _read_all(data, 1000, 1000)
    for place, (_, cursor) in enumerate(found):
        rest, _ = _read_all(data, piece_bytes, 3, cursor)
        assert rest == found[place + 1 :]


def test_a_byte_order_mark_is_no_part_of_a_line():
    """Some editors put one before the first line."""
    found, _ = _read_all(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo", 1000, 10)
    assert [line.data for line, _ in found] == [b"one", b"\xef\xbb\xbftwo"]


class _Names:
    """A line is its own custom_id; one with an `!` has a fault."""

    def read(self, _batch, raw):
        """The line."""
        text = raw.data.decode()
        fault = LineFault("odd", "!", None, raw.number) if "!" in text else None
        return BatchLine(raw.number, text.strip("!"), fault=fault)


@given(st.lists(st.sampled_from(["a", "b", "c", "a!", "d!", "e"]), min_size=1))
def test_a_custom_id_counts_once(words):
    """The second line of a name has a fault, whatever the first one was; a fault of its own stays."""

    async def survey():
        data = "\n".join(words).encode()
        return await survey_input(_reader(data, 4), LineScanner(_Names(), None), 1000)

    found = anyio.run(survey)
    expected, seen = {}, set()
    for number, word in enumerate(words, 1):
        name = word.strip("!")
        if "!" in word:
            expected[number] = "odd"
        elif name in seen:
            expected[number] = "duplicate_custom_id"
        seen.add(name)
    assert found.bad_lines == list(expected)
    assert {fault.line: fault.code for fault in found.faults} == expected
    assert found.num_lines == len(words)
    assert (found.failure is None) == (len(expected) < len(words))


def test_the_first_hundred_faults_are_shown():
    """All of them are counted."""

    async def survey():
        data = b"!\n" * 150 + b"x"
        return await survey_input(_reader(data, 1000), LineScanner(_Names(), None), 1000)

    found = anyio.run(survey)
    assert (len(found.bad_lines), len(found.faults), found.failure) == (150, 100, None)


@pytest.mark.anyio
async def test_copies_and_ranges(tmp_path):
    """A copy is there for good; what is not there is NotFound."""
    inputs = BatchInputs.open(tmp_path.as_uri())
    await inputs.put("batches/a/one", b"0123456789")
    await inputs.copy("batches/a/one", "batches/b/two")
    await inputs.delete("batches/a/one")
    assert await inputs.read_range("batches/b/two", 3, 6) == b"345"
    assert (await inputs.has("batches/b/two"), await inputs.has("batches/a/one")) == (True, False)
    for missing in (inputs.copy("batches/a/one", "batches/x"), inputs.read_range("batches/a/one", 0, 1)):
        with pytest.raises(NotFound):
            await missing


def test_cursors_start_at_the_first_byte():
    """Line 1, byte 0."""
    assert Cursor() == Cursor(1, 0)
