"""The memories this worker holds: each follows its log in Redis, the least recently used go when the budget is spent."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog

from app.domain.ids import TenantId
from app.memory.codec import decode_page
from app.memory.keys import MemoryKey
from app.memory.store import ForgottenRanges
from app.telemetry.metrics import Metrics
from app.worker.memory.host_memory import HostMemory, HostRows
from app.worker.memory.snapshots import DIGEST_BYTES, Snapshot, SnapshotPoint

PAGE_ENTRIES = 2048
PAGE_BYTES = (
    16 * 1024 * 1024
)  # of vectors: where latents are kept whole, 2,048 entries would be 268 MB in one reply

_log = structlog.get_logger(__name__)


class MemoryLog(Protocol):
    """Where memories come from: pages of `(version, entry bytes)` in order, a short page being the last."""

    async def read_after(self, memory: MemoryKey, version: int, limit: int = ...) -> list[tuple[int, bytes]]:
        """One page of the entries after `version`."""
        ...

    async def read_forgotten(self, memory: MemoryKey, since: int, /) -> ForgottenRanges:
        """What was forgotten by acts after the version `since`."""
        ...

    async def last_acts(self, memories: Sequence[MemoryKey], /) -> list[int | None]:
        """The version of each memory's last act of forgetting; None where nothing is known of the memory."""
        ...


class SnapshotSource(Protocol):
    """Where a copy may begin from, instead of from nothing."""

    async def restore(
        self, memory: MemoryKey, dimensions: tuple[int, int], /
    ) -> tuple[SnapshotPoint, HostMemory] | None:
        """A memory as it was at a point, if there is such a thing."""
        ...


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Lengths of the vectors of a latent space."""

    feature: int
    prompt: int

    @property
    def entry_bytes(self) -> int:
        """How long an entry's vectors are in a log."""
        return 2 * (self.feature + self.prompt)


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
    last_digest: bytes = (
        b""  # of the entry of that version; empty where it was forgotten, or there is none yet
    )
    forget_version: int = 0  # everything that was forgotten up to here has left the copy
    is_begun: bool = False
    num_built: int = 0  # how often it was built again from nothing
    size_bytes: int = 0  # as the cache counts it
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryCache:
    """Host copies of memories, rebuilt from their logs whenever need be; the logs are the truth.

    `sync` drops what was forgotten, then reads the log from the last entry that is held. Where that entry is no longer
    what it was, the log has shrunk or begun anew, and the copy is built again from nothing. A memory in use outlives its
    eviction; what is forgotten leaves it all the same while it is held, by `drop_forgotten` though nobody reads it. Where
    there is a snapshot, a copy begins with that, and follows the log from there as from anything else that it holds.
    """

    def __init__(
        self,
        log: MemoryLog,
        *,
        budget_bytes: int,
        metrics: Metrics,
        page_entries: int = PAGE_ENTRIES,
        snapshots: SnapshotSource | None = None,
    ) -> None:
        self._snapshots = snapshots
        self._memory_log = log
        self._budget_bytes = budget_bytes
        self._page_entries = page_entries
        self._metrics = metrics
        self._slots: OrderedDict[MemoryKey, _Slot] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all memories held, each as it was after its last sync."""
        return self._size_bytes

    @property
    def num_memories(self) -> int:
        """How many memories are held."""
        return len(self._slots)

    async def sync(self, key: MemoryKey, dimensions: Dimensions, *, forget_version: int = 0) -> Synced:
        """The memory as its log has it now, without anything that was forgotten up to `forget_version`.

        Costs one round trip and one repeated entry where nothing is new, and one more where something was forgotten. An
        entry that is corrupt or of other dimensions is left out, and logged: it must not cost the tenant the rest.
        Raises StoreUnavailable where the log cannot be read.
        """
        slot = self._slots.get(key)
        if slot is None or slot.dimensions != dimensions:
            self._remove(key)
            slot = self._slots[key] = _new_slot(dimensions)
        self._slots.move_to_end(key)
        async with slot.lock:
            with self._metrics.memory_sync_seconds.time():
                outcome = await self._bring_up(key, slot, forget_version)
            self._metrics.memory_cache_lookups.labels(outcome).inc()
            synced = Synced(slot.memory, slot.version)
        self._count(key, slot)
        self._evict()
        self._metrics.memory_cache_bytes.set(self.size_bytes)
        return synced

    def drop(self, tenant_ids: Collection[TenantId]) -> int:
        """Forgets the copies of some tenants' memories; how many there were. One in use goes when it is used no more."""
        gone = [key for key in self._slots if key.tenant_id in tenant_ids]
        for key in gone:
            self._remove(key)
        self._metrics.memory_cache_bytes.set(self.size_bytes)
        return len(gone)

    async def drop_forgotten(self) -> None:
        """Has what was forgotten leave every copy, read or not, and drops those that have no entry then.

        Cost: one round trip and 2 ms of this process for each 100 copies, and one round trip more for each of which
        something was forgotten. Raises StoreUnavailable.
        """
        held = [(key, slot) for key, slot in self._slots.items() if slot.version > 0]
        acts = await self._memory_log.last_acts([key for key, _ in held])
        for (key, slot), act in zip(held, acts, strict=True):
            if act == slot.forget_version:
                continue
            async with slot.lock:
                if act is not None:
                    await self._forget(key, slot)
            self._count(key, slot)
            if (act is None or len(slot.memory) == 0) and self._slots.get(key) is slot:
                self._remove(key)
        self._metrics.memory_cache_bytes.set(self.size_bytes)

    def held(self, least_entries: int) -> list[tuple[MemoryKey, SnapshotPoint, int]]:
        """Memories of so many entries or more: where each is, and how many it has."""
        return [
            (key, _point(slot), len(slot.memory))
            for key, slot in self._slots.items()
            if len(slot.memory) >= least_entries
        ]

    async def freeze(self, key: MemoryKey) -> Snapshot | None:
        """A memory as its log has it now, without what was forgotten; None where it is not held, or its last entry is gone.

        Raises StoreUnavailable where the log cannot be read.
        """
        slot = self._slots.get(key)
        if slot is None or not slot.is_begun:
            return None
        async with slot.lock:
            await self._forget(key, slot)
            await self._follow(key, slot)
            self._count(key, slot)
            if not slot.last_digest:
                return None
            dimensions = (slot.dimensions.feature, slot.dimensions.prompt)
            arrays = await asyncio.to_thread(
                slot.memory.frozen
            )  # a choice may hold it for a tenth of a second
            return Snapshot(_point(slot), dimensions, arrays)

    async def _bring_up(self, key: MemoryKey, slot: _Slot, forget_version: int) -> str:
        """Has the slot follow its log; what it was before that: see the metric of lookups."""
        was_begun, num_built, before = slot.is_begun, slot.num_built, (slot.version, slot.forget_version)
        if not slot.is_begun:
            await self._begin(key, slot)
        is_restored = not was_begun and slot.version > 0
        if slot.version == 0:
            slot.forget_version = forget_version
        elif slot.forget_version != forget_version:
            await self._forget(key, slot)
        await self._follow(key, slot)
        if slot.num_built != num_built:
            return "log"
        if not was_begun:
            return "snapshot" if is_restored else "log"
        return "hit" if before == (slot.version, slot.forget_version) else "tail"

    async def _begin(self, key: MemoryKey, slot: _Slot) -> None:
        found = None
        if self._snapshots is not None:
            dimensions = slot.dimensions
            found = await self._snapshots.restore(key, (dimensions.feature, dimensions.prompt))
        if found is not None:
            point, slot.memory = found
            slot.version, slot.last_digest = point.version, point.last_digest
            slot.forget_version = point.forget_version
        slot.is_begun = True

    async def _follow(self, key: MemoryKey, slot: _Slot) -> None:
        is_checked = False
        most_entries = max(1, min(self._page_entries, PAGE_BYTES // slot.dimensions.entry_bytes))
        while True:
            checks = bool(slot.last_digest) and not is_checked
            after = slot.version - 1 if checks else slot.version
            page = await self._memory_log.read_after(key, after, most_entries)
            num_read = len(page)
            if checks:
                if not page or (page[0][0], _digest(page[0][1])) != (slot.version, slot.last_digest):
                    await self._forget(key, slot)
                    if slot.last_digest:  # it was not forgotten, so this is another log
                        _rebuild(key, slot)
                    continue
                page = page[1:]
            is_checked = True
            if page:
                num_left_out = await asyncio.to_thread(_append, key, slot, page)
                self._metrics.memory_entries_corrupt.inc(num_left_out)
            if num_read < most_entries:
                return

    async def _forget(self, key: MemoryKey, slot: _Slot) -> None:
        """Drops what was forgotten since the slot was told last; where that cannot be told, all of it."""
        forgotten = await self._memory_log.read_forgotten(key, slot.forget_version)
        if forgotten.version < slot.forget_version or slot.forget_version < forgotten.floor:
            _rebuild(key, slot)
        else:
            num_dropped = await asyncio.to_thread(slot.memory.drop, forgotten.ranges)
            if any(first <= slot.version <= last for first, last in forgotten.ranges):
                slot.last_digest = b""
            if num_dropped:
                _log.info("memory_entries_dropped", memory=str(key), num_entries=num_dropped)
        slot.forget_version = forgotten.version

    def _count(self, key: MemoryKey, slot: _Slot) -> None:
        if self._slots.get(key) is slot:  # else it was evicted meanwhile
            size_bytes = slot.memory.size_bytes
            self._size_bytes += size_bytes - slot.size_bytes
            slot.size_bytes = size_bytes

    def _remove(self, key: MemoryKey) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._size_bytes -= slot.size_bytes

    def _evict(self) -> None:
        while len(self._slots) > 1 and self._size_bytes > self._budget_bytes:
            key, slot = next(iter(self._slots.items()))
            self._remove(key)
            self._metrics.memory_cache_evictions.inc()
            _log.info("memory_evicted", memory=str(key), size_bytes=slot.size_bytes)


def _point(slot: _Slot) -> SnapshotPoint:
    return SnapshotPoint(slot.version, slot.last_digest, slot.forget_version)


def _new_slot(dimensions: Dimensions) -> _Slot:
    return _Slot(dimensions, HostMemory(dimensions.feature, dimensions.prompt))


def _rebuild(key: MemoryKey, slot: _Slot) -> None:
    _log.info("memory_rebuilt", memory=str(key), version=slot.version)
    slot.memory, slot.version, slot.last_digest = _new_slot(slot.dimensions).memory, 0, b""
    slot.num_built += 1


def _append(key: MemoryKey, slot: _Slot, page: Sequence[tuple[int, bytes]]) -> int:
    """Add a page to the slot; how many of its entries were left out."""
    dimensions = (slot.dimensions.feature, slot.dimensions.prompt)
    found = decode_page([data for _, data in page], dimensions)
    for place, reason in found.wrong:
        _log.error("memory_entry_left_out", memory=str(key), version=page[place][0], reason=reason)
    versions = np.array([version for version, _ in page], np.int64)[found.places]
    digests = b"".join(_digest(image_id.encode("ascii")) for image_id in found.image_ids)
    id_hashes = np.frombuffer(digests, ">u8").astype(np.uint64)
    slot.memory.append(HostRows(versions, id_hashes, found.features, found.prompt_embeddings))
    version, data = page[-1]
    slot.version, slot.last_digest = version, _digest(data)
    return len(found.wrong)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
