"""Snapshots of large memories in a local folder, to start from. Redis has their keys; what is forgotten takes those along."""

import contextlib
import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from app.memory.keys import MemoryKey
from app.worker.memory.host_memory import HostArrays, HostMemory
from app.worker.memory.sealed_file import BrokenFile, SealedReader, write_sealed

DIGEST_BYTES = 8
_HEADER = struct.Struct("<QQ8sIIQQ")
_SUFFIX = ".snapshot"
_UNFINISHED_S = 3600.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotPoint:
    """Which state of a memory: its last entry's version and digest, and the last act of forgetting that it has followed."""

    version: int
    last_digest: bytes
    forget_version: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A memory of two dimensions, feature and prompt, as it was at a point."""

    point: SnapshotPoint
    dimensions: tuple[int, int]
    arrays: HostArrays

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays; the file has a thousandth more."""
        return sum(array.nbytes for array in self.arrays.parts())


class SnapshotFolder:
    """At most `max_bytes` of snapshots; those that were used least recently go. Methods block, and may run in threads.

    Names are hashes, so nothing of a tenant is in them. Workers of one machine may share a folder: a file is put in place
    whole, and whose it is does not matter.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._is_over = threading.Event()

    @classmethod
    def open(cls, folder: Path, *, max_bytes: int) -> Self:
        """Makes the folder, for this user alone, and removes what a crash left unfinished. Raises OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob(f"*{_SUFFIX}.*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                    path.unlink()
        return cls(folder, max_bytes=max_bytes)

    def has(self, memory: MemoryKey) -> bool:
        """Whether there is one, which need not open."""
        return self._path(memory).exists()

    def save(self, memory: MemoryKey, snapshot: Snapshot, key: bytes) -> bool:
        """Puts it in the place of the one before; False where it is larger than all may be. Raises OSError."""
        if snapshot.size_bytes > self._max_bytes:
            return False
        point, arrays = snapshot.point, snapshot.arrays
        header = _HEADER.pack(
            point.version,
            point.forget_version,
            point.last_digest,
            *snapshot.dimensions,
            len(arrays.versions),
            len(arrays.scales),
        )
        parts = [memoryview(header), *map(_bytes_of, arrays.parts())]
        write_sealed(self._path(memory), key, self._while_wanted(parts))
        self._make_room()
        return True

    def give_up(self) -> None:
        """Ends what is being written, in its thread, before its next part, and lets nothing more be written."""
        self._is_over.set()

    def load(
        self, memory: MemoryKey, key: bytes, dimensions: tuple[int, int]
    ) -> tuple[SnapshotPoint, HostMemory]:
        """The memory as it was. Raises BrokenFile where the file has another key or other dimensions, and OSError."""
        path = self._path(memory)
        with path.open("rb") as file:
            reader, header = SealedReader(file, key), bytearray(_HEADER.size)
            reader.read_into(memoryview(header))
            version, forget_version, digest, *shape = _HEADER.unpack(header)
            if tuple(shape[:2]) != dimensions:
                raise BrokenFile(f"it has the dimensions {tuple(shape[:2])}, expected {dimensions}")
            arrays = HostArrays.empty(dimensions, *shape[2:])
            for array in arrays.parts():
                reader.read_into(_bytes_of(array))
            reader.end()
        with contextlib.suppress(
            FileNotFoundError
        ):  # another worker made room; what was read is whole all the same
            os.utime(path)
        return SnapshotPoint(version, digest, forget_version), HostMemory.restored(dimensions, arrays)

    def remove(self, memory: MemoryKey) -> None:
        """Removes a memory's snapshot, if there is one."""
        self._path(memory).unlink(missing_ok=True)

    def _while_wanted(self, parts: Iterable[memoryview]) -> Iterator[memoryview]:
        for part in parts:
            if self._is_over.is_set():
                raise OSError("the worker stops, and has no more time for it")
            yield part

    def _make_room(self) -> None:
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        total_bytes = sum(size_bytes for _, size_bytes, _ in found)
        for _, size_bytes, path in sorted(found):
            if total_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total_bytes -= size_bytes
            _log.info("memory_snapshot_evicted", size_bytes=size_bytes)

    def _path(self, memory: MemoryKey) -> Path:
        return self._folder / (hashlib.sha256(str(memory).encode()).hexdigest() + _SUFFIX)


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
