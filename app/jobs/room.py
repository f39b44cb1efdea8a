"""Whether what a job would leave behind still fits: memories, entries in them, bytes in the object store."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from app.domain.ids import TenantId
from app.domain.job import Job
from app.domain.quota import Quotas
from app.domain.request import GenerationRequest
from app.errors import MemoryFull, StorageFull

Count = Callable[[TenantId], Awaitable[int]]
CheckMemory = Callable[[Job], Awaitable[None]]
"""Raises TooManyMemories where the memory that a job writes to would be one more than its tenant may have."""


class Room(Protocol):
    """What is asked before a job is accepted."""

    async def check(self, job: Job, quotas: Quotas) -> None:
        """Raises MemoryFull or StorageFull where there is no room for it."""
        ...


class NoBounds:
    """There is always room."""

    async def check(self, job: Job, quotas: Quotas) -> None:
        """Raises nothing."""


class CountedRoom:
    """Counts what is there, where the tenant has a bound on it; of memories it always has.

    What jobs leave behind comes when they end. So jobs that were accepted while there was room may go beyond a bound, by
    no more than all jobs that a tenant may have open.
    """

    def __init__(self, *, memory_entries: Count, stored_bytes: Count, check_memory: CheckMemory) -> None:
        self._memory_entries = memory_entries
        self._stored_bytes = stored_bytes
        self._check_memory = check_memory

    async def check(self, job: Job, quotas: Quotas) -> None:
        """Raises TooManyMemories, MemoryFull, StorageFull and StoreUnavailable. A question leaves nothing behind."""
        if job.kind.is_question:
            return
        if job.remembers:
            await self._check_memory(job)
        most = quotas.max_memory_entries
        if most is not None and job.remembers:
            num_entries, num_images = await self._memory_entries(job.tenant_id), job.num_images
            if num_entries + num_images > most:
                raise _memory_full(job, num_entries=num_entries, most=most)
        if quotas.max_stored_bytes is not None:
            num_bytes = await self._stored_bytes(job.tenant_id)
            if num_bytes >= quotas.max_stored_bytes:
                raise StorageFull(
                    f"your files and images have {num_bytes} bytes of {quotas.max_stored_bytes}; delete files, or wait"
                    " until images expire"
                )


def _memory_full(job: Job, *, num_entries: int, most: int) -> MemoryFull:
    told = f"your memories hold {num_entries} entries of {most}, and this would add {job.num_images}; forget some"
    if isinstance(job.request, GenerationRequest):
        told += ", or ask with diversity.memory.write false"
        return MemoryFull(told, param="diversity.memory.write", limit=most)
    return MemoryFull(told, limit=most)
