"""One memory as this worker holds it: append-only arrays in host memory, and a FAISS index over the prompts."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from app.worker.selection import FLOAT32_SLACK, Float32, Indices, exact_cosines, unit_rows
from sparke_engine.core.sampling import drawn

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One image of the past: its place in the log, a hash of its id, its feature `[d]`, its prompt embedding `[p]`."""

    version: int
    id_hash: int
    feature: NDArray[np.float16]
    prompt_embedding: NDArray[np.float16]


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

    Held in fp16 as the log has them, and once more in fp32 by the index: `2d + 6p + 17` bytes an entry, and the spare
    room of arrays that double. A forgotten entry is zeros at once, here and in the index, and its place is given back
    when more than half of all are such.
    """

    def __init__(self, feature_dim: int, prompt_dim: int) -> None:
        self._lock = threading.Lock()
        self._num_entries = 0
        self._features = np.empty((0, feature_dim), np.float16)
        self._prompts = np.empty((0, prompt_dim), np.float16)
        self._versions = np.empty(0, np.int64)
        self._id_hashes = np.empty(0, np.uint64)
        self._is_held = np.empty(0, np.bool_)
        self._num_dropped = 0
        self._index = faiss.IndexFlatIP(prompt_dim)

    def __len__(self) -> int:
        return self._num_entries - self._num_dropped

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        arrays = (self._features, self._prompts, self._versions, self._id_hashes, self._is_held)
        return sum(array.nbytes for array in arrays) + 4 * self._prompts.shape[1] * self._num_entries

    def append(self, entries: Sequence[HostEntry]) -> None:
        """Add entries whose versions follow those held. Of another dimension: ValueError, and nothing is added."""
        if not entries:
            return
        features = np.stack([entry.feature for entry in entries])
        prompts = np.stack([entry.prompt_embedding for entry in entries])
        expected, actual = (
            (self._features.shape[1], self._prompts.shape[1]),
            (features.shape[1], prompts.shape[1]),
        )
        if actual != expected:
            raise ValueError(f"entries have (feature, prompt) dimensions {actual}, the memory {expected}")
        versions = np.array([entry.version for entry in entries], np.int64)
        with self._lock:
            held = self._versions[self._num_entries - 1 : self._num_entries]
            if (np.diff(np.concatenate([held, versions])) <= 0).any():
                raise ValueError(f"versions must rise, got {versions.tolist()[:8]} after {held.tolist()}")
            end = self._num_entries + len(entries)
            self._reserve(end)
            rows = slice(self._num_entries, end)
            self._features[rows] = features
            self._prompts[rows] = prompts
            self._versions[rows] = versions
            self._id_hashes[rows] = [entry.id_hash for entry in entries]
            self._is_held[rows] = True
            self._index.add(unit_rows(prompts))
            self._num_entries = end

    def drop(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Forget the entries of some ranges (first, last) of versions; how many that were. Nothing of them is kept.

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

        The version filters first, and whether an entry qualifies depends on it and the query alone: a replay finds the
        same set. Above the cap a weighted sample stands for all, see `drawn`: by the hashes of ids and salted with the
        version that is read, so it is the same in a replay and another one for every other version. Cost O(n·p) for n
        entries, exact sums only for those within FAISS's rounding of the bound.
        """
        with self._lock:
            held = self._versions[: self._num_entries]
            num_then = int(np.searchsorted(held, query.version, side="right"))
            qualified, cosines = self._qualified(query, num_then)
            is_held = self._is_held[qualified]
            qualified, cosines = qualified[is_held], cosines[is_held]
            kept, weights = drawn(
                torch.from_numpy(np.exp(query.steepness * (cosines - 1.0))),
                torch.from_numpy(self._id_hashes[qualified].view(np.int64)),
                salt=query.version,
                most=query.cap,
            )
            taken = qualified[kept.numpy()]
            return Chosen(
                features=unit_rows(self._features[taken]),
                prompt_embeddings=unit_rows(self._prompts[taken]),
                versions=self._versions[taken].copy(),
                weights=weights.numpy().astype(np.float32),
                num_qualified=len(qualified),
            )

    def nearest(self, query: NearestQuery) -> list[tuple[int, float]]:
        """Versions and cosines, the nearest first; of equally near ones the lower version.

        Exact, and the same whatever else the memory holds. Cost O(n·p) for n entries, exact sums only for those within
        FAISS's rounding of the last place.
        """
        with self._lock:
            num_then = int(np.searchsorted(self._versions[: self._num_entries], query.version, side="right"))
            rows = np.flatnonzero(self._is_held[:num_then])
            if len(rows) == 0:
                return []
            prompt = unit_rows(query.prompt_embedding[None])[0]
            cosines = (self._indexed()[:num_then] @ prompt)[rows]
            place = max(0, len(rows) - query.limit)
            last = max(np.partition(cosines, place)[place] - FLOAT32_SLACK, query.min_cosine)
            rows = rows[cosines >= last - FLOAT32_SLACK]
            exact = np.clip(exact_cosines(unit_rows(self._prompts[rows]), prompt), -1.0, 1.0)
            rows, exact = rows[exact >= query.min_cosine], exact[exact >= query.min_cosine]
            order = np.lexsort((rows, -exact))[: query.limit]
            return list(zip(self._versions[rows[order]].tolist(), exact[order].tolist(), strict=True))

    def _qualified(self, query: NeighbourQuery, num_then: int) -> tuple[Indices, NDArray[np.float64]]:
        """Places, ascending, and cosines; where all qualify at equal influence, every cosine is said to be 1."""
        if num_then == 0 or (query.min_cosine <= -1.0 and query.steepness == 0.0):
            return np.arange(num_then, dtype=np.int64), np.ones(num_then)
        prompt, min_cosine = unit_rows(query.prompt_embedding[None])[0], query.min_cosine
        first_rows = faiss.SearchParameters(sel=faiss.IDSelectorRange(0, num_then))  # type: ignore[call-arg]
        _, cosines, rows = self._index.range_search(
            prompt[None], min_cosine - FLOAT32_SLACK, params=first_rows
        )
        order = np.argsort(rows)
        cosines, rows = cosines[order].astype(np.float64), rows[order].astype(np.int64)
        unsure = np.flatnonzero(cosines < min_cosine + FLOAT32_SLACK)
        cosines[unsure] = exact_cosines(unit_rows(self._prompts[rows[unsure]]), prompt)
        qualifies = cosines >= min_cosine
        return rows[qualifies], cosines[qualifies]

    def _wipe(self, rows: slice) -> None:
        self._num_dropped += int(self._is_held[rows].sum())
        for array in (self._is_held, self._features, self._prompts, self._id_hashes):
            array[rows] = 0
        if self._num_entries:
            self._indexed()[rows] = 0.0

    def _indexed(self) -> Float32:
        """The unit rows `[n, p]` that the index holds: a view of its memory, good until it grows."""
        num_values = self._num_entries * self._prompts.shape[1]
        values: Float32 = faiss.rev_swig_ptr(self._index.get_xb(), num_values)
        return values.reshape(self._num_entries, -1)

    def _close_gaps(self) -> None:
        rows = np.flatnonzero(self._is_held[: self._num_entries])
        self._features, self._prompts = self._features[rows], self._prompts[rows]
        self._versions, self._id_hashes = self._versions[rows], self._id_hashes[rows]
        self._is_held = self._is_held[rows]
        self._num_entries, self._num_dropped = len(rows), 0
        self._index.reset()
        self._index.add(unit_rows(self._prompts))

    def _reserve(self, num_entries: int) -> None:
        if num_entries <= len(self._versions):
            return
        capacity = max(num_entries, 2 * len(self._versions), 64)
        self._features = _grown(self._features, capacity)
        self._prompts = _grown(self._prompts, capacity)
        self._versions = _grown(self._versions, capacity)
        self._id_hashes = _grown(self._id_hashes, capacity)
        self._is_held = _grown(self._is_held, capacity)


def _grown(array: NDArray[Scalar], capacity: int) -> NDArray[Scalar]:
    larger = np.zeros((capacity, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
