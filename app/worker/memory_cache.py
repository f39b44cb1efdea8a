"""The memories this worker holds: each follows its log in Redis, the least recently used go when the budget is spent."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from app.errors import CorruptRecord
from app.memory.codec import decode_entry
from app.memory.keys import MemoryKey
from app.telemetry.metrics import Metrics
from app.worker.host_memory import HostEntry, HostMemory

PAGE_ENTRIES = 512

_log = structlog.get_logger(__name__)


class MemoryLog(Protocol):
    """Where memories come from: pages of `(version, entry bytes)` in order, a short page being the last."""

    async def read_after(self, memory: MemoryKey, version: int, limit: int = ...) -> list[tuple[int, bytes]]:
        """One page of the entries after `version`."""
        ...


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Lengths of the vectors of a latent space."""

    feature: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A memory that has followed its log up to `version`."""

    memory: HostMemory
    version: int


@dataclass(slots=True)
class _Slot:
    dimensions: Dimensions
    memory: HostMemory
    version: int = 0
    last_digest: bytes = b""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryCache:
    """Host copies of memories, rebuilt from their logs whenever need be; the logs are the truth.

    `sync` reads the log from the last entry that is held. Where that entry is no longer what it was, the log has shrunk
    or begun anew, and the copy is built again from nothing. A memory in use outlives its eviction.
    """

    def __init__(
        self, log: MemoryLog, *, budget_bytes: int, metrics: Metrics, page_entries: int = PAGE_ENTRIES
    ) -> None:
        self._memory_log = log
        self._budget_bytes = budget_bytes
        self._page_entries = page_entries
        self._metrics = metrics
        self._slots: OrderedDict[MemoryKey, _Slot] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Bytes of all memories held."""
        return sum(slot.memory.size_bytes for slot in self._slots.values())

    @property
    def num_memories(self) -> int:
        """How many memories are held."""
        return len(self._slots)

    async def sync(self, key: MemoryKey, dimensions: Dimensions) -> Synced:
        """The memory as its log has it now. StoreUnavailable where the log cannot be read.

        Costs one round trip and one repeated entry where nothing is new. An entry that is corrupt or of other
        dimensions is left out, and logged: it must not cost the tenant the rest.
        """
        slot = self._slots.get(key)
        if slot is None or slot.dimensions != dimensions:
            slot = self._slots[key] = _new_slot(dimensions)
        self._slots.move_to_end(key)
        async with slot.lock:
            with self._metrics.memory_sync_seconds.time():
                await self._follow(key, slot)
            synced = Synced(slot.memory, slot.version)
        self._evict()
        self._metrics.memory_cache_bytes.set(self.size_bytes)
        return synced

    async def _follow(self, key: MemoryKey, slot: _Slot) -> None:
        after = max(slot.version - 1, 0)
        while True:
            page = await self._memory_log.read_after(key, after, self._page_entries)
            num_read = len(page)
            if slot.version > 0 and after < slot.version:
                if not page or (page[0][0], _digest(page[0][1])) != (slot.version, slot.last_digest):
                    _log.info("memory_rebuilt", memory=str(key), version=slot.version)
                    slot.memory, slot.version, slot.last_digest = _new_slot(slot.dimensions).memory, 0, b""
                    after = 0
                    continue
                page = page[1:]
            if page:
                num_left_out = await asyncio.to_thread(_append, key, slot, page)
                self._metrics.memory_entries_corrupt.inc(num_left_out)
            if num_read < self._page_entries:
                return
            after = slot.version

    def _evict(self) -> None:
        while len(self._slots) > 1 and self.size_bytes > self._budget_bytes:
            key, slot = self._slots.popitem(last=False)
            _log.info("memory_evicted", memory=str(key), size_bytes=slot.memory.size_bytes)


def _new_slot(dimensions: Dimensions) -> _Slot:
    return _Slot(dimensions, HostMemory(dimensions.feature, dimensions.prompt))


def _append(key: MemoryKey, slot: _Slot, page: Sequence[tuple[int, bytes]]) -> int:
    """Add a page to the slot; how many of its entries were left out."""
    entries = []
    for version, data in page:
        try:
            entries.append(_read_entry(slot.dimensions, version, data))
        except CorruptRecord as error:
            _log.error("memory_entry_left_out", memory=str(key), version=version, reason=error.message)
    slot.memory.append(entries)
    version, data = page[-1]
    slot.version, slot.last_digest = version, _digest(data)
    return len(page) - len(entries)


def _read_entry(dimensions: Dimensions, version: int, data: bytes) -> HostEntry:
    entry = decode_entry(data)
    found = Dimensions(entry.feature.size, entry.prompt_embedding.size)
    if found != dimensions:
        raise CorruptRecord(
            f"expected {dimensions}, got {found}: the latent space has changed under its name"
        )
    id_hash = int.from_bytes(_digest(entry.image_id.encode("ascii")), "big")
    return HostEntry(version, id_hash, entry.feature, entry.prompt_embedding)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()
