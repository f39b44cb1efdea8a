"""Starts copies of memories from snapshots, and writes snapshots of the large ones, off the way of any request."""

import asyncio
from typing import Protocol

import structlog

from app.memory.keys import MemoryKey
from app.worker.memory.host_memory import HostMemory
from app.worker.memory.sealed_file import BrokenFile
from app.worker.memory.snapshots import Snapshot, SnapshotFolder, SnapshotPoint

LEAST_ENTRIES = 20_000  # fewer are read from the log within a second
_LEAST_SHARE = (
    0.05  # of a memory that must have come since its snapshot for a new one to be worth its writing
)

_log = structlog.get_logger(__name__)


class KeyStore(Protocol):
    """Where keys of snapshots are: with what is forgotten, they go."""

    async def find(self, memory: MemoryKey) -> bytes | None:
        """The key, if there is one."""
        ...

    async def claim(self, memory: MemoryKey, forget_version: int) -> bytes | None:
        """The key for a snapshot that has followed all acts up to one; None where there was another since."""
        ...


class HeldMemories(Protocol):
    """Copies that can be written."""

    def held(self, least_entries: int) -> list[tuple[MemoryKey, SnapshotPoint, int]]:
        """Those of so many entries: where each is, and how many it has."""
        ...

    async def freeze(self, key: MemoryKey) -> Snapshot | None:
        """One as its log has it now, if it is held and can be gone on from."""
        ...


class SnapshotKeeper:
    """Reads and writes one folder. What fails is logged: a snapshot is a help, the log of a memory is the truth."""

    def __init__(self, folder: SnapshotFolder, keys: KeyStore, *, least_entries: int = LEAST_ENTRIES) -> None:
        self._folder = folder
        self._keys = keys
        self._least_entries = least_entries
        self._saved: dict[MemoryKey, SnapshotPoint] = {}

    async def restore(
        self, memory: MemoryKey, dimensions: tuple[int, int]
    ) -> tuple[SnapshotPoint, HostMemory] | None:
        """A memory as its snapshot has it. One that does not open is removed. Raises StoreUnavailable."""
        try:
            if not await asyncio.to_thread(self._folder.has, memory):
                return None
            key = await self._keys.find(memory)
            if key is None:
                raise BrokenFile("its key is gone: something was forgotten since")  # noqa: TRY301
            found = await asyncio.to_thread(self._folder.load, memory, key, dimensions)
        except (BrokenFile, OSError, MemoryError) as error:
            _log.warning("memory_snapshot_not_read", memory=str(memory), reason=str(error))
            await self._remove(memory)
            return None
        point, restored = found
        self._saved[memory] = point
        _log.info(
            "memory_snapshot_read", memory=str(memory), version=point.version, num_entries=len(restored)
        )
        return found

    async def save(self, memories: HeldMemories) -> None:
        """Writes each that has grown or lost enough since its snapshot, and removes those without a key.

        Raises StoreUnavailable.
        """
        for memory in list(self._saved):
            if await self._keys.find(memory) is None:
                await self._remove(memory)
        for memory, point, num_entries in memories.held(self._least_entries):
            if self._is_due(memory, point, num_entries):
                await self._save_one(memory, await memories.freeze(memory))

    def give_up(self) -> None:
        """Ends what is being written, soon, and lets nothing more be written."""
        self._folder.give_up()

    def _is_due(self, memory: MemoryKey, point: SnapshotPoint, num_entries: int) -> bool:
        saved = self._saved.get(memory)
        if saved is None or point.version < saved.version:
            return True
        return point.version - saved.version > _LEAST_SHARE * num_entries

    async def _save_one(self, memory: MemoryKey, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        key = await self._keys.claim(memory, snapshot.point.forget_version)
        if key is None:
            return  # something was forgotten just now; the next time will do
        try:
            is_written = await asyncio.to_thread(self._folder.save, memory, snapshot, key)
        except OSError as error:
            _log.warning("memory_snapshot_not_written", memory=str(memory), reason=str(error))
            return
        if not is_written:
            reason = "it is larger than SPARKE_MEMORY_SNAPSHOTS_BYTES"
            _log.warning(
                "memory_snapshot_not_written",
                memory=str(memory),
                reason=reason,
                size_bytes=snapshot.size_bytes,
            )
        else:
            self._saved[memory] = snapshot.point
            _log.info(
                "memory_snapshot_written",
                memory=str(memory),
                version=snapshot.point.version,
                size_bytes=snapshot.size_bytes,
            )

    async def _remove(self, memory: MemoryKey) -> None:
        self._saved.pop(memory, None)
        try:
            await asyncio.to_thread(self._folder.remove, memory)
        except OSError as error:
            _log.warning("memory_snapshot_not_removed", memory=str(memory), reason=str(error))
