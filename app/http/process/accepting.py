"""Where jobs are accepted, within the quotas of their tenants."""

from dataclasses import dataclass

from redis.asyncio import Redis

from app.catalogue import Catalogue
from app.domain.ids import TenantId
from app.domain.job import Job
from app.files.store import FileStore
from app.jobs.room import CountedRoom
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.jobs.workers import now_ms
from app.memory.keys import MemoryKey
from app.memory.making import MemoryMaker
from app.memory.overview import MemoryOverview
from app.redis.replicas import Replicas
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.tenants.desk import TenantDesk


@dataclass(frozen=True, slots=True)
class Accepting:
    """What is asked where jobs are accepted."""

    redis: Redis
    settings: Settings
    catalogue: Catalogue
    desk: TenantDesk
    files: FileStore


def job_store(deps: Accepting, metrics: Metrics, *, replicas: Replicas | None = None) -> JobStore:
    """Where jobs are accepted, within the tenants' quotas."""
    redis, settings, files = deps.redis, deps.settings, deps.files
    maker = MemoryMaker(redis, max_memories=settings.max_memories_per_tenant, clock_ms=now_ms)

    async def stored_bytes(tenant_id: TenantId) -> int:
        return await files.stored_bytes(tenant_id) + await deps.desk.usage.image_bytes(tenant_id)

    async def check_memory(job: Job) -> None:
        space = deps.catalogue[job.model].latent_space
        await maker.check_room(MemoryKey(job.tenant_id, space, job.memory_name))

    room = CountedRoom(
        memory_entries=MemoryOverview(redis).count_entries,
        stored_bytes=stored_bytes,
        check_memory=check_memory,
    )
    limits, quotas = JobLimits.of(settings), deps.desk.quotas
    return JobStore(redis, limits, quotas=quotas, room=room, replicas=replicas, metrics=metrics)
