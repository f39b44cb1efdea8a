"""The inputs of batches: each batch has a copy of its own, and reads it line by line."""

from collections import deque

from anyio import to_thread

from app.batches.keys import FOLDER
from app.batches.types import RawLine
from app.domain.batch import Cursor
from app.objects.folder import ObjectFolder

_PIECE_BYTES = 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BatchInputs(ObjectFolder):
    """Bytes by key. Keys are made by `app.batches.keys.input_key`."""

    FOLDER = FOLDER
    WHAT = "batch input"


class InputReader:
    """The lines of an input from a place on, read in pieces, so that nothing stays open while their jobs run.

    Holds a piece of 1 MiB and a line at a time, and of a line that is too long only the beginning.
    """

    def __init__(
        self,
        inputs: BatchInputs,
        key: str,
        size_bytes: int,
        *,
        max_line_bytes: int,
        start: Cursor | None = None,
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        self._inputs = inputs
        self._key = key
        self._size_bytes = size_bytes
        self._max_line_bytes = max_line_bytes
        self._piece_bytes = piece_bytes
        begin = start or Cursor()
        self._num_read_bytes = begin.byte
        self._number, self._end_byte = begin.line, begin.byte
        self._ready: deque[tuple[RawLine, Cursor]] = deque()
        self._line = bytearray()

    @property
    def next_number(self) -> int:
        """The number of the line that is being read: one more than the lines so far, empty ones too."""
        return self._number

    async def take(self, most: int) -> list[tuple[RawLine, Cursor]]:
        """Up to `most` of the next lines that are not empty, each with the place after it; none only at the end.

        Raises NotFound and StoreUnavailable; called again, it goes on where it was.
        """
        while not self._ready and self._num_read_bytes < self._size_bytes:
            end_byte = min(self._num_read_bytes + self._piece_bytes, self._size_bytes)
            piece = await self._inputs.read_range(self._key, self._num_read_bytes, end_byte)
            self._num_read_bytes = end_byte
            await to_thread.run_sync(self._split, piece, end_byte == self._size_bytes)
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def _split(self, piece: bytes, is_last: bool) -> None:  # noqa: FBT001 - a thread takes no names
        first, *others = piece.split(b"\n")
        self._append(first)
        for part in others:
            self._end_byte += 1
            self._end_line()
            self._append(part)
        if is_last:
            self._end_line()

    def _append(self, part: bytes) -> None:
        self._end_byte += len(part)
        self._line += part[: self._max_line_bytes + 1 - len(self._line)]

    def _end_line(self) -> None:
        data = bytes(self._line)
        self._line.clear()
        if self._number == 1:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        if data.strip():
            line = RawLine(self._number, data if len(data) <= self._max_line_bytes else None)
            self._ready.append((line, Cursor(self._number + 1, self._end_byte)))
        self._number += 1
