"""Reads memories for jobs: which version, and which of its entries."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from app.domain.ids import TenantId
from app.domain.job import Job
from app.domain.request import Diversity
from app.memory.keys import MemoryKey
from app.memory.store import ReadPoint
from app.telemetry.metrics import Metrics
from app.worker.host_memory import Chosen, HostMemory, NeighbourQuery
from app.worker.memory_cache import Dimensions, MemoryCache
from app.worker.models import LoadedModel
from app.worker.neighbours import neighbour_query, to_neighbours
from sparke_engine.types import Neighbours

T = TypeVar("T")


class MemoryVersions(Protocol):
    """Which version of a memory a request reads."""

    async def resolve_version(self, memory: MemoryKey, wanted: int | None, *, member: str = ...) -> ReadPoint:
        """The current one, or the one that a replay wants.

        InvalidRequest where there is none such yet, VersionGone where something of it was forgotten since. `member` is
        the request's member that wants it.
        """
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
class MemoryReader:
    """Chooses from this worker's copies. What was forgotten before a memory is opened is never among the chosen."""

    versions: MemoryVersions
    memories: MemoryCache
    metrics: Metrics

    async def read(
        self, job: Job, model: LoadedModel, prompt_embedding: Tensor
    ) -> tuple[ReadPoint, Neighbours | None]:
        """Where a job reads its own memory, and the neighbours that it has there, if any. Raises as `open` does."""
        diversity = job.generation.diversity
        point, chosen = await self.choose_for(job.tenant_id, diversity, model, prompt_embedding)
        return point, None if chosen is None else to_neighbours(chosen)

    async def choose_for(
        self, tenant_id: TenantId, diversity: Diversity, model: LoadedModel, prompt_embedding: Tensor
    ) -> tuple[ReadPoint, Chosen | None]:
        """The same, as what was chosen; None where nothing is read, or there is nothing."""
        key = MemoryKey(tenant_id, model.spec.latent_space, diversity.memory.name)
        reading = await self.open(key, diversity.memory.version)
        if not diversity.memory.read or reading.version == 0:
            return reading.point, None
        query = neighbour_query(model.engine.preset, diversity, prompt_embedding, version=reading.version)
        return reading.point, await self.choose(reading, model.dimensions, query)

    async def open(self, key: MemoryKey, wanted: int | None, *, member: str = "diversity.memory") -> Reading:
        """The version to read. Raises InvalidRequest, VersionGone and StoreUnavailable."""
        return Reading(key, member, wanted, await self.versions.resolve_version(key, wanted, member=member))

    async def choose(self, reading: Reading, dimensions: Dimensions, query: NeighbourQuery) -> Chosen:
        """The entries of a query, as `ask` has it."""
        return await self.ask(reading, dimensions, lambda memory: memory.select(query))

    async def ask(self, reading: Reading, dimensions: Dimensions, question: Callable[[HostMemory], T]) -> T:
        """What a copy of the memory answers, in a thread, once it has followed its log.

        A replay looks again when it has that: had anything been forgotten meanwhile, VersionGone.
        """
        synced = await self.memories.sync(
            reading.key, dimensions, forget_version=reading.point.forget_version
        )
        with self.metrics.memory_search_seconds.time():
            answer = await asyncio.to_thread(question, synced.memory)
        if reading.wanted is not None:
            await self.open(reading.key, reading.wanted, member=reading.member)
        return answer
