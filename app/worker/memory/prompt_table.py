"""The distinct prompt embeddings of a memory, and which of them are near one: the index over a memory of any size."""

from collections.abc import Iterator, Sequence
from typing import Self

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from app.worker.memory.growing import RowBlocks, grown
from app.worker.memory.selection import FLOAT32_SLACK, Float32, Halves, Indices, exact_cosines, unit_rows

# |error| of a product in half precision, relative to the row's norm: 2^-11 for the query's rounding, 2^-11 for that of the
# result, p·2^-24 for sums in fp32: together 1.3e-3 for p = 4,096.
SIEVE_SLACK = 4e-3
_ORDINARY_NORMS = (
    0.5,
    2.0,
)  # outside of them halves have fewer digits, or no room: such rows pass the sieve always
_LEAST_WIDTH = (
    32  # FAISS takes very short vectors several at once, and then a product's rounding depends on its place
)
_BLOCK_ROWS = 512  # a block in fp32 stays in the cache of a core
_HASHED_ROWS = 8192
_LOOKUP_BYTES = 150  # what a dictionary holds for one number by another


class PromptTable:
    """Numbers for prompt embeddings, equal ones having one: entries of one prompt cost one comparison, however many.

    All are looked at, in half precision as they are held, by one product of a matrix with the query: a sieve that lets
    every row through that could be near enough. Those are computed again, each by itself in fp32, and in float64 where
    fp32 could not tell; so what is near depends on the two embeddings alone. There is nothing to train and nothing to
    rebuild. Not safe from several threads by itself.
    """

    def __init__(self, prompt_dim: int) -> None:
        self._prompt_dim = prompt_dim
        self._rows = RowBlocks(width_of(prompt_dim))  # zeros behind the embeddings
        self._uses = np.empty(0, np.int64)
        self._scales = np.empty(0, np.float64)  # 1 / norm; 0 for a row of zeros
        self._sieve_scales = np.empty(0, np.float32)
        self._numbers: dict[int, int] = {}  # by hash; of two rows of one hash the second is found by nobody

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def scales(self) -> NDArray[np.float64]:
        """1 / norm of each; 0 for a row of zeros."""
        return self._scales[: len(self)]

    @classmethod
    def restored(
        cls, prompt_dim: int, parts: Sequence[Halves], scales: NDArray[np.float64], uses: NDArray[np.int64]
    ) -> Self:
        """A table of what another had, used so often. Cost O(m·p)."""
        table = cls(prompt_dim)
        table._rows, table._scales, table._uses = RowBlocks.of(width_of(prompt_dim), parts), scales, uses
        table._sieve_scales = _sieve_scales(scales)
        used = np.flatnonzero(uses)
        for start in range(0, len(used), _HASHED_ROWS):
            some = used[start : start + _HASHED_ROWS]
            table._numbers.update(zip(_hashes(table.take(some)), some.tolist(), strict=True))
        return table

    def take(self, numbers: NDArray[np.integer]) -> Halves:
        """Some of them `[n, p]`, in the order of their numbers at the least cost; zeros where one is used no more."""
        return self._rows.take(numbers.astype(np.int64, copy=False))[:, : self._prompt_dim]

    def parts(self) -> list[Halves]:
        """All of them as views, `width_of(p)` numbers each."""
        return self._rows.parts()

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        arrays = (self._rows, self._uses, self._scales, self._sieve_scales)
        return sum(array.nbytes for array in arrays) + _LOOKUP_BYTES * len(self._numbers)

    def add(self, prompts: Halves) -> Indices:
        """The numbers of some rows `[n, p]`, each used once more; a row that is new gets the next one. Cost O(n·p)."""
        numbers = np.empty(len(prompts), np.int64)
        new: list[int] = []
        for place, row_hash in enumerate(_hashes(prompts)):
            number = self._numbers.get(row_hash)
            if number is None:
                number = self._numbers[row_hash] = len(self) + len(new)
                new.append(place)
            numbers[place] = number
        self._append(prompts[new])
        order = np.argsort(numbers, kind="stable")
        differs = (_bits(self.take(numbers[order])) != _bits(prompts[order])).any(axis=1)
        strangers = np.sort(order[differs])
        if len(strangers):  # another row has the same hash
            numbers[strangers] = np.arange(len(strangers)) + len(self)
            self._append(prompts[strangers])
        np.add.at(self._uses, numbers, 1)
        return numbers

    def release(self, numbers: NDArray[np.integer]) -> None:
        """Some rows are used once less, for each time they are named; those that are used no more are zeros at once."""
        np.subtract.at(self._uses, numbers, 1)
        named = np.unique(numbers)
        gone = named[self._uses[named] == 0]
        for row_hash, number in zip(_hashes(self.take(gone)), gone.tolist(), strict=True):
            if self._numbers.get(row_hash) == number:
                del self._numbers[row_hash]
        self._rows.wipe(gone.astype(np.int64))
        self._scales[gone] = 0
        self._sieve_scales[gone] = 0

    def close_gaps(self) -> Indices:
        """Numbers those that are used anew, in their order; the new number of each old one."""
        used = np.flatnonzero(self._uses[: len(self)])
        renumbered = np.full(len(self), -1, np.int64)
        renumbered[used] = np.arange(len(used))
        self._rows, self._uses = self._rows.kept(used), self._uses[used]
        self._scales, self._sieve_scales = self._scales[used], self._sieve_scales[used]
        self._numbers = {row_hash: int(renumbered[number]) for row_hash, number in self._numbers.items()}
        return renumbered

    def sieved(self, prompt: Float32) -> Float32:
        """Cosines to a unit vector `[p]` to within SIEVE_SLACK; NaN for a row that has to be computed another way."""
        query, products = (
            torch.from_numpy(self._padded(prompt).astype(np.float16)),
            np.empty(len(self), np.float32),
        )
        start = 0
        for part in self._rows.parts():
            products[start : start + len(part)] = torch.mv(torch.from_numpy(part), query).numpy()
            start += len(part)
        return products * self._sieve_scales[: len(self)]

    def near(self, prompt: Float32, min_cosine: float) -> tuple[Indices, NDArray[np.float64]]:
        """Numbers, ascending, and cosines of all rows with `cosine ≥ min_cosine` to a unit vector `[p]`.

        Cost O(m·p) in half precision for m rows, and about five times as much for each that passes the sieve. A row of
        zeros has the cosine 0.
        """
        sieved, query = self.sieved(prompt), self._padded(prompt)
        passed = np.flatnonzero(~(sieved < min_cosine - SIEVE_SLACK))
        cosines = self._cosines(passed, query)
        near = cosines >= min_cosine - FLOAT32_SLACK
        passed, cosines = passed[near], cosines[near]
        unsure = np.flatnonzero(cosines < min_cosine + FLOAT32_SLACK)
        cosines[unsure] = exact_cosines(unit_rows(self.take(passed[unsure])), prompt)
        is_near = cosines >= min_cosine
        return passed[is_near], cosines[is_near]

    def _padded(self, prompt: Float32) -> Float32:
        query = np.zeros(width_of(self._prompt_dim), np.float32)
        query[: self._prompt_dim] = prompt
        return query

    def _cosines(self, numbers: Indices, query: Float32) -> NDArray[np.float64]:
        """Row by row in fp32: none depends on how many there are, nor on its place."""
        products = np.empty(len(numbers), np.float32)
        for block in _blocks(len(numbers)):
            rows = torch.from_numpy(self._rows.take(numbers[block])).float().numpy()
            out = products[block]
            faiss.fvec_inner_products_ny(  # type: ignore[attr-defined]
                faiss.swig_ptr(out), faiss.swig_ptr(query), faiss.swig_ptr(rows), rows.shape[1], len(rows)
            )
        return products * self._scales[numbers]

    def _append(self, prompts: Halves) -> None:
        start, end = len(self), len(self) + len(prompts)
        self._uses, self._scales = grown(self._uses, end), grown(self._scales, end)
        self._sieve_scales = grown(self._sieve_scales, end)
        self._rows.append(prompts)
        for block in _blocks(len(prompts)):
            exact = prompts[block].astype(np.float64)
            exact *= exact
            norms = np.sqrt(exact.sum(axis=1))
            scales = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms != 0.0)
            self._scales[start : start + len(scales)] = scales
            self._sieve_scales[start : start + len(scales)] = _sieve_scales(scales)
            start += len(scales)


def width_of(prompt_dim: int) -> int:
    """How many numbers a row has in the table, zeros included."""
    return max(prompt_dim, _LEAST_WIDTH)


def _sieve_scales(scales: NDArray[np.float64]) -> Float32:
    """The same; NaN for a row that passes always."""
    is_ordinary = (scales > 1 / _ORDINARY_NORMS[1]) & (scales < 1 / _ORDINARY_NORMS[0])
    return np.where(is_ordinary, scales, np.nan).astype(np.float32)


def _hashes(rows: Halves) -> list[int]:
    width = rows.shape[1] * rows.itemsize
    data = rows.tobytes()
    return [hash(data[start : start + width]) for start in range(0, len(data), width)]


def _bits(rows: Halves) -> NDArray[np.uint16]:
    return np.ascontiguousarray(rows).view(np.uint16)


def _blocks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, num_rows, _BLOCK_ROWS))
