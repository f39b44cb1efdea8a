"""Arrays that grow at their end: short ones by copies, rows of many numbers in blocks that are never moved."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.worker.memory.selection import Halves, Indices

Scalar = TypeVar("Scalar", bound=np.generic)
BLOCK_ROWS = 16_384
_LEAST_ROWS = 64


def grown(array: NDArray[Scalar], num_rows: int) -> NDArray[Scalar]:
    """The array itself where it has so many rows, else a larger one with the same rows and zeros behind them.

    It doubles, but for large ones, which grow by a quarter.
    """
    held = len(array)
    if num_rows <= held:
        return array
    spare = held if held < BLOCK_ROWS else held // 4
    larger = np.zeros((max(num_rows, held + spare, _LEAST_ROWS), *array.shape[1:]), array.dtype)
    larger[:held] = array
    return larger


class RowBlocks:
    """Rows `[n, d]` in half precision, in blocks of BLOCK_ROWS; the first one grows as it is filled."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[Halves] = []
        self._num_rows = 0

    @classmethod
    def of(cls, dim: int, parts: Sequence[Halves]) -> Self:
        """What `parts` of another gave: those arrays, all but the last of BLOCK_ROWS."""
        rows = cls(dim)
        rows._blocks, rows._num_rows = list(parts), sum(map(len, parts))
        return rows

    @classmethod
    def empty_parts(cls, num_rows: int, dim: int) -> list[Halves]:
        """Arrays to be filled and given to `of`."""
        starts = range(0, num_rows, BLOCK_ROWS)
        return [np.empty((min(BLOCK_ROWS, num_rows - start), dim), np.float16) for start in starts]

    def __len__(self) -> int:
        return self._num_rows

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(block.nbytes for block in self._blocks)

    def parts(self) -> list[Halves]:
        """All rows in order, as views: of what is wiped or kept elsewhere later they may lose rows, never gain any."""
        starts = range(0, self._num_rows, BLOCK_ROWS)
        return [block[: self._num_rows - start] for start, block in zip(starts, self._blocks, strict=True)]

    def append(self, rows: Halves) -> None:
        """Some more; where they are shorter, zeros stand behind them."""
        done = 0
        while done < len(rows):
            number, start = divmod(self._num_rows, BLOCK_ROWS)
            block = self._room(number, start + len(rows) - done)
            count = min(len(rows) - done, BLOCK_ROWS - start)
            block[start : start + count, : rows.shape[1]] = rows[done : done + count]
            self._num_rows += count
            done += count

    def take(self, places: Indices) -> Halves:
        """Copies of the rows at some places. Cost O(k·d) where places of a block stand together, as ascending ones do."""
        taken = np.empty((len(places), self._dim), np.float16)
        for some, number, rows in _by_block(places):
            taken[some] = self._blocks[number][rows]
        return taken

    def wipe(self, places: Indices) -> None:
        """Makes rows zeros."""
        for _, number, rows in _by_block(places):
            self._blocks[number][rows] = 0

    def kept(self, places: Indices) -> "RowBlocks":
        """Another with the rows at some ascending places alone."""
        kept = RowBlocks(self._dim)
        for start in range(0, len(places), BLOCK_ROWS):
            kept.append(self.take(places[start : start + BLOCK_ROWS]))
        return kept

    def _room(self, number: int, num_rows: int) -> Halves:
        if number == len(self._blocks):
            self._blocks.append(np.empty((0, self._dim), np.float16))
        block = self._blocks[number]
        if len(block) < min(num_rows, BLOCK_ROWS):
            wanted = num_rows if number == 0 else BLOCK_ROWS
            block = self._blocks[number] = grown(block, wanted)[:BLOCK_ROWS]
        return block


def _by_block(places: Indices) -> Iterator[tuple[slice, int, Indices]]:
    """Runs of places in one block: which they are, the block, and their rows in it."""
    numbers = places // BLOCK_ROWS
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(places)]
    for start, end in pairwise(edges):
        if end > start:
            yield slice(start, end), int(numbers[start]), places[start:end] % BLOCK_ROWS
