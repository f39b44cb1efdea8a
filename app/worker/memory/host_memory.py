"""One memory as this worker holds it: arrays in host memory that grow at their end, and a table of its prompts."""

import hashlib
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from app.worker.memory.growing import RowBlocks, grown
from app.worker.memory.prompt_table import SIEVE_SLACK, PromptTable, width_of
from app.worker.memory.selection import Float32, Halves, Indices, exact_cosines, unit_rows
from sparke_engine.core.sampling import drawn


@dataclass(frozen=True, slots=True, eq=False)
class HostRows:
    """Images of the past in the order of the log: versions, hashes of ids, features `[n, d]`, prompt embeddings `[n, p]`."""

    versions: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    features: Halves
    prompt_embeddings: Halves


@dataclass(frozen=True, slots=True, eq=False)
class HostArrays:
    """All that a memory holds: of n entries, and of m distinct prompts with the inverse of their norms; large ones in parts."""

    versions: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    is_held: NDArray[np.bool_]
    prompt_numbers: NDArray[np.int32]
    scales: NDArray[np.float64]
    features: Sequence[Halves]
    prompts: Sequence[Halves]

    @classmethod
    def empty(cls, dimensions: tuple[int, int], num_entries: int, num_prompts: int) -> Self:
        """Arrays to be filled."""
        return cls(
            np.empty(num_entries, np.int64),
            np.empty(num_entries, np.uint64),
            np.empty(num_entries, np.bool_),
            np.empty(num_entries, np.int32),
            np.empty(num_prompts, np.float64),
            RowBlocks.empty_parts(num_entries, dimensions[0]),
            RowBlocks.empty_parts(num_prompts, width_of(dimensions[1])),
        )

    def parts(self) -> list[NDArray[Any]]:
        """All of them, always in the same order."""
        flat = (self.versions, self.id_hashes, self.is_held, self.prompt_numbers, self.scales)
        return [*flat, *self.features, *self.prompts]


@dataclass(frozen=True, slots=True)
class NeighbourQuery:
    """What to choose: entries up to `version` whose cosine c to the prompt is at least `min_cosine`, at most `cap`.

    Above the cap an entry has the influence exp(−steepness·(1 − c)), which is k_Y^p at p/σ_Y²; at 0 all have the same.
    """

    prompt_embedding: Float32
    version: int
    min_cosine: float
    steepness: float
    cap: int


@dataclass(frozen=True, slots=True)
class NearestQuery:
    """Which entries up to `version` have the greatest cosine to the prompt, at least `min_cosine`; at most `limit`."""

    prompt_embedding: Float32
    version: int
    limit: int
    min_cosine: float = -1.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choice in version order, unit rows in fp32; each stands for so many of the `num_qualified` as its weight says."""

    features: Float32
    prompt_embeddings: Float32
    versions: NDArray[np.int64]
    weights: Float32
    num_qualified: int


class HostMemory:
    """Entries come in version order, and go where they are forgotten. Safe from several threads: a lock guards all.

    Held in fp16 as the log has them, each distinct prompt once: `2d + 21` bytes an entry and `2p + 170` a prompt, and the
    spare room of what grows. A forgotten entry is zeros at once, and so is a prompt that no entry has any more; its
    place is given back when more than half of all are such.
    """

    def __init__(self, feature_dim: int, prompt_dim: int) -> None:
        self._lock = threading.Lock()
        self._dimensions = (feature_dim, prompt_dim)
        self._num_entries = 0
        self._features = RowBlocks(feature_dim)
        self._prompt_numbers = np.empty(0, np.int32)
        self._versions = np.empty(0, np.int64)
        self._id_hashes = np.empty(0, np.uint64)
        self._is_held = np.empty(0, np.bool_)
        self._num_dropped = 0
        self._prompts = PromptTable(prompt_dim)

    def __len__(self) -> int:
        return self._num_entries - self._num_dropped

    def __contains__(self, version: int) -> bool:
        """Whether the entry of that version is held."""
        with self._lock:
            place = int(np.searchsorted(self._versions[: self._num_entries], version))
            return (
                place < self._num_entries and self._versions[place] == version and bool(self._is_held[place])
            )

    @property
    def num_prompts(self) -> int:
        """How many prompts are compared."""
        return len(self._prompts)

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        arrays = (self._features, self._prompt_numbers, self._versions, self._id_hashes, self._is_held)
        return sum(array.nbytes for array in arrays) + self._prompts.size_bytes

    @classmethod
    def restored(cls, dimensions: tuple[int, int], arrays: HostArrays) -> Self:
        """A memory of arrays as `frozen` gives them, which are its own from now on."""
        memory = cls(*dimensions)
        memory._versions, memory._id_hashes = arrays.versions, arrays.id_hashes
        memory._is_held, memory._prompt_numbers = arrays.is_held, arrays.prompt_numbers
        memory._features, memory._num_entries = (
            RowBlocks.of(dimensions[0], arrays.features),
            len(arrays.versions),
        )
        memory._num_dropped = len(arrays.versions) - int(arrays.is_held.sum())
        uses = np.bincount(arrays.prompt_numbers[arrays.is_held], minlength=len(arrays.scales))
        memory._prompts = PromptTable.restored(dimensions[1], arrays.prompts, arrays.scales, uses)
        return memory

    def frozen(self) -> HostArrays:
        """All that is held now, without a copy of what is large. What is dropped later may become zeros here too."""
        with self._lock:
            end = self._num_entries
            return HostArrays(
                self._versions[:end],
                self._id_hashes[:end],
                self._is_held[:end].copy(),
                self._prompt_numbers[:end],
                self._prompts.scales,
                self._features.parts(),
                self._prompts.parts(),
            )

    def append(self, rows: HostRows) -> None:
        """Add entries whose versions follow those held. Of another dimension: ValueError, and nothing is added."""
        if not len(rows.versions):
            return
        actual = (rows.features.shape[1], rows.prompt_embeddings.shape[1])
        if actual != self._dimensions:
            raise ValueError(
                f"entries have (feature, prompt) dimensions {actual}, the memory {self._dimensions}"
            )
        with self._lock:
            held = self._versions[self._num_entries - 1 : self._num_entries]
            if (np.diff(np.concatenate([held, rows.versions])) <= 0).any():
                raise ValueError(
                    f"versions must rise, got {rows.versions.tolist()[:8]} after {held.tolist()}"
                )
            end = self._num_entries + len(rows.versions)
            self._reserve(end)
            place = slice(self._num_entries, end)
            self._features.append(rows.features)
            self._prompt_numbers[place] = self._prompts.add(rows.prompt_embeddings)
            self._versions[place] = rows.versions
            self._id_hashes[place] = rows.id_hashes
            self._is_held[place] = True
            self._num_entries = end

    def drop(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Forget the entries of some ranges (first, last) of versions; how many there were. Nothing of them is kept.

        Cost O(log n) a range and O(d + p) an entry; now and then all that is left is copied.
        """
        with self._lock:
            num_before, held = len(self), self._versions[: self._num_entries]
            for first, last in ranges:
                start, end = np.searchsorted(held, (first, last + 1)).tolist()
                self._wipe(slice(start, end))
            num_dropped = num_before - len(self)
            if 2 * self._num_dropped > self._num_entries:
                self._close_gaps()
            return num_dropped

    def select(self, query: NeighbourQuery) -> Chosen:
        """Every entry with `version ≤ query.version` and `cosine ≥ query.min_cosine`, in version order.

        Whether an entry qualifies depends on it and the query alone: a replay finds the same set. Above the cap a
        weighted sample stands for all, see `drawn`: by the hashes of ids and salted with the version that is read, so
        it is the same in a replay and another one for every other version. Cost O(m·p) for m distinct prompts and O(n)
        for n entries.
        """
        return select_together([(self, query)])

    def nearest(self, query: NearestQuery) -> list[tuple[int, float]]:
        """Versions and cosines, the nearest first; of equally near ones the lower version.

        Exact, and the same whatever else the memory holds. Cost O(m·p) for m distinct prompts and O(n) for n entries, exact
        sums only for those within the sieve's rounding of the last place.
        """
        with self._lock:
            num_then = int(np.searchsorted(self._versions[: self._num_entries], query.version, side="right"))
            rows = np.flatnonzero(self._is_held[:num_then])
            if len(rows) == 0:
                return []
            prompt = unit_rows(query.prompt_embedding[None])[0]
            sieved, numbers = self._prompts.sieved(prompt), self._prompt_numbers[rows]
            place = max(0, len(rows) - query.limit)
            last = np.partition(np.nan_to_num(sieved, nan=-1.0)[numbers], place)[place] - SIEVE_SLACK
            is_near = ~(sieved < max(last, query.min_cosine) - SIEVE_SLACK)
            rows = rows[is_near[numbers]]
            numbers, place_of = np.unique(self._prompt_numbers[rows], return_inverse=True)
            exact = np.clip(exact_cosines(unit_rows(self._prompts.take(numbers)), prompt), -1.0, 1.0)[
                place_of
            ]
            rows, exact = rows[exact >= query.min_cosine], exact[exact >= query.min_cosine]
            order = np.lexsort((rows, -exact))[: query.limit]
            return list(zip(self._versions[rows[order]].tolist(), exact[order].tolist(), strict=True))

    def _qualified(self, query: NeighbourQuery) -> tuple[Indices, NDArray[np.float64]]:
        """Places, ascending, and cosines; where all qualify at equal influence, every cosine is said to be 1."""
        num_then = int(np.searchsorted(self._versions[: self._num_entries], query.version, side="right"))
        is_held = self._is_held[:num_then]
        if num_then == 0 or (query.min_cosine <= -1.0 and query.steepness == 0.0):
            places = np.flatnonzero(is_held)
            return places, np.ones(len(places))
        prompt = unit_rows(query.prompt_embedding[None])[0]
        near, cosines = self._prompts.near(prompt, query.min_cosine)
        is_near, cosine_of = np.zeros(len(self._prompts), np.bool_), np.zeros(len(self._prompts))
        is_near[near], cosine_of[near] = True, cosines
        numbers = self._prompt_numbers[:num_then]
        places = np.flatnonzero(is_near[numbers] & is_held)
        return places, cosine_of[numbers[places]]

    def _picked(self, rows: Indices) -> tuple[Halves, Halves, NDArray[np.int64]]:
        """Features, prompt embeddings and versions of some rows, as copies."""
        prompts = self._prompts.take(self._prompt_numbers[rows])
        return self._features.take(rows), prompts, self._versions[rows].copy()

    def _wipe(self, place: slice) -> None:
        is_held = self._is_held[place]
        self._num_dropped += int(is_held.sum())
        self._prompts.release(self._prompt_numbers[place][is_held])
        self._features.wipe(np.arange(place.start, place.stop))
        for array in (self._is_held, self._prompt_numbers, self._id_hashes):
            array[place] = 0

    def _close_gaps(self) -> None:
        rows = np.flatnonzero(self._is_held[: self._num_entries])
        self._prompt_numbers = self._prompts.close_gaps()[self._prompt_numbers[rows]].astype(np.int32)
        self._features, self._versions = self._features.kept(rows), self._versions[rows]
        self._id_hashes, self._is_held = self._id_hashes[rows], self._is_held[rows]
        self._num_entries, self._num_dropped = len(rows), 0

    def _reserve(self, num_entries: int) -> None:
        self._prompt_numbers = grown(self._prompt_numbers, num_entries)
        self._versions = grown(self._versions, num_entries)
        self._id_hashes = grown(self._id_hashes, num_entries)
        self._is_held = grown(self._is_held, num_entries)


def select_together(parts: Sequence[tuple[HostMemory, NeighbourQuery]]) -> Chosen:
    """What one memory of all their entries would choose: of each what its query asks, memory by memory, then by versions.

    The queries differ in their versions alone. An image that several memories hold, as forks do, counts once, as the
    first of them has it. All are held still meanwhile, so nothing goes while it is chosen. Cost as of `select`, and of a
    sort of all that qualify where there are several.
    """
    memories, queries = zip(*parts, strict=True)
    with ExitStack() as stack:
        for memory in sorted(
            set(memories), key=id
        ):  # one order for all, or two readers could wait for each other
            stack.enter_context(memory._lock)  # noqa: SLF001 - it is this module's
        found = [memory._qualified(query) for memory, query in parts]  # noqa: SLF001
        hashes = [memory._id_hashes[places] for memory, (places, _) in zip(memories, found, strict=True)]  # noqa: SLF001
        once, kept, weights = _drawn_once(hashes, [cosines for _, cosines in found], queries)
        taken = np.split(
            once[kept], np.searchsorted(once[kept], np.cumsum([len(each) for each in hashes])[:-1])
        )
        starts = np.cumsum([0, *(len(each) for each in hashes)])
        rows = [
            places[each - start] for (places, _), each, start in zip(found, taken, starts[:-1], strict=True)
        ]
        picked = [memory._picked(each) for memory, each in zip(memories, rows, strict=True)]  # noqa: SLF001
    features, prompts, versions = (np.concatenate(column) for column in zip(*picked, strict=True))
    return Chosen(unit_rows(features), unit_rows(prompts), versions, weights.astype(np.float32), len(once))


def _drawn_once(
    hashes: Sequence[NDArray[np.uint64]],
    cosines: Sequence[NDArray[np.float64]],
    queries: Sequence[NeighbourQuery],
) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """Of all entries in a row: the places of those that count, which of these are kept, and what each of the kept counts."""
    ids, query = np.concatenate(hashes), queries[0]
    once = np.arange(len(ids)) if len(hashes) == 1 else np.sort(np.unique(ids, return_index=True)[1])
    kept, weights = drawn(
        torch.from_numpy(np.exp(query.steepness * (np.concatenate(cosines)[once] - 1.0))),
        torch.from_numpy(ids[once].view(np.int64)),
        salt=_salt_of([each.version for each in queries]),
        most=query.cap,
    )
    return once, kept.numpy(), weights.numpy()


def _salt_of(versions: Sequence[int]) -> int:
    """Another one for every version of every memory; of one memory it is the version."""
    if len(versions) == 1:
        return versions[0]
    told = b"".join(version.to_bytes(8, "big") for version in versions)
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 1
