"""Reads memories for jobs: which version, and which of its entries."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from app.domain.ids import TenantId
from app.domain.request import Diversity
from app.errors import ReferenceNotFound
from app.memory.keys import MemoryKey
from app.memory.store import ReadPoint
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import span
from app.worker.memory.host_memory import Chosen, HostMemory, NeighbourQuery, select_together
from app.worker.memory.memory_cache import Dimensions, MemoryCache
from app.worker.memory.neighbours import neighbour_query, to_neighbours
from app.worker.model.models import LoadedModel
from sparke_engine.types import Neighbours

T = TypeVar("T")
_MAX_RENAMES = 10  # between a job's look at a memory's version and its reading


class MemoryVersions(Protocol):
    """Which version of a memory a request reads."""

    async def resolve_version(self, memory: MemoryKey, wanted: int | None, *, member: str = ...) -> ReadPoint:
        """The current one, or the one that a replay wants.

        InvalidRequest where there is none such yet, VersionGone where something of it was forgotten since. `member` is
        the request's member that wants it.
        """
        ...

    async def renamed_since(self, memory: MemoryKey, version: int, /) -> MemoryKey | None:
        """What was at `version` under this name, under the one that it got since; None where it has kept its own."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """A memory at the version that a request's `member` reads; `wanted` where it is a replay."""

    key: MemoryKey
    member: str
    wanted: int | None
    point: ReadPoint

    @property
    def version(self) -> int:
        """The version that is read."""
        return self.point.version


@dataclass(frozen=True, slots=True)
class ReadMemories:
    """Where a job read its own memory, the versions of those that it read with it, and what was chosen, if anything was read."""

    point: ReadPoint
    also_versions: tuple[int, ...]
    chosen: Chosen | None

    @property
    def neighbours(self) -> Neighbours | None:
        """What was chosen, as an engine takes it; None where nothing was."""
        return None if self.chosen is None else to_neighbours(self.chosen)


@dataclass(frozen=True, slots=True)
class MemoryReader:
    """Chooses from this worker's copies. What was forgotten before a memory is opened is never among the chosen."""

    versions: MemoryVersions
    memories: MemoryCache
    metrics: Metrics

    async def read(
        self, tenant_id: TenantId, diversity: Diversity, model: LoadedModel, prompt_embedding: Tensor
    ) -> ReadMemories:
        """What a request reads of its memories, as one.

        Raises as `open` does, and ReferenceNotFound for a further memory that has held nothing yet.
        """
        memory, space = diversity.memory, model.spec.latent_space
        own = await self.open(MemoryKey(tenant_id, space, memory.name), memory.version)
        also = [
            await self._open_also(MemoryKey(tenant_id, space, other.name), other.version, index)
            for index, other in enumerate(memory.also)
        ]
        versions = tuple(reading.version for reading in also)
        readings = [own, *also] if memory.read and own.version > 0 else also
        if not readings:
            return ReadMemories(own.point, versions, None)
        preset = model.engine.preset
        queries = [
            neighbour_query(preset, diversity, prompt_embedding, version=reading.version)
            for reading in readings
        ]
        chosen = await self._choose_together(readings, model.dimensions, queries)
        return ReadMemories(own.point, versions, chosen)

    async def _open_also(self, key: MemoryKey, wanted: int | None, index: int) -> Reading:
        member = f"diversity.memory.also.{index}"
        reading = await self.open(key, wanted, member=member)
        if reading.version == 0:
            raise ReferenceNotFound(
                f"{member} names the memory {key.name!r}, which has held nothing yet in the latent space"
                f" {key.latent_space!r}: make images with diversity.memory.name {key.name!r}, or send pictures to it",
                param=f"{member}.name",
            )
        return reading

    async def open(self, key: MemoryKey, wanted: int | None, *, member: str = "diversity.memory") -> Reading:
        """The version to read. Raises InvalidRequest, VersionGone and StoreUnavailable."""
        return Reading(key, member, wanted, await self.versions.resolve_version(key, wanted, member=member))

    async def choose(self, reading: Reading, dimensions: Dimensions, query: NeighbourQuery) -> Chosen:
        """The entries of a query, as `ask` has it."""
        return await self.ask(reading, dimensions, lambda memory: memory.select(query))

    async def _choose_together(
        self, readings: Sequence[Reading], dimensions: Dimensions, queries: Sequence[NeighbourQuery]
    ) -> Chosen:
        """The entries of all queries as if of one memory. Replays look again when they have them, as `ask` does."""
        copies = [await self._follow(reading, dimensions) for reading in readings]
        with (
            self.metrics.memory_search_seconds.time(),
            span("memory search", {"num_memories": len(readings)}),
        ):
            chosen = await asyncio.to_thread(select_together, list(zip(copies, queries, strict=True)))
        for reading in readings:
            await self._look_again(reading)
        return chosen

    async def ask(self, reading: Reading, dimensions: Dimensions, question: Callable[[HostMemory], T]) -> T:
        """What a copy of the memory answers, in a thread, once it has followed its log.

        A replay looks again when it has that: had anything been forgotten meanwhile, VersionGone.
        """
        copy = await self._follow(reading, dimensions)
        with self.metrics.memory_search_seconds.time(), span("memory search", {"num_memories": 1}):
            answer = await asyncio.to_thread(question, copy)
        await self._look_again(reading)
        return answer

    async def _follow(self, reading: Reading, dimensions: Dimensions) -> HostMemory:
        """The copy of what is read, up to its version.

        A memory that got another name since it was opened is followed under that; a replay of it is refused when it looks
        again. The version that is read is mostly an entry's: with that the copy is the right one.
        """
        key, forget_version = reading.key, reading.point.forget_version
        for _ in range(_MAX_RENAMES):
            with span("memory sync", {"version": reading.version}):
                synced = await self.memories.sync(key, dimensions, forget_version=forget_version)
            if reading.wanted is not None or reading.version in synced.memory:
                break
            renamed = await self.versions.renamed_since(key, reading.point.current)
            if renamed is None:
                break
            key, forget_version = renamed, (await self.versions.resolve_version(renamed, None)).forget_version
        return synced.memory

    async def _look_again(self, reading: Reading) -> None:
        """Raises VersionGone where a replay's memory is no longer whole."""
        if reading.wanted is not None:
            await self.open(reading.key, reading.wanted, member=reading.member)
