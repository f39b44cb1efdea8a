"""What a worker does beside its jobs, each for ever: leases, what the dead have left, sweeps, forgetting."""

import asyncio
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from app.domain.ids import ModelId, WorkerId
from app.images.store import ImageStore
from app.images.sweeper import ImageSweeper
from app.jobs.leases import JobReclaimer
from app.jobs.orphans import OrphanSweeper
from app.jobs.place import queues_of
from app.jobs.queue import JobQueue
from app.jobs.sweeper import JobSweeper
from app.jobs.types import JobLimits
from app.jobs.workers import WorkerRegistry, now_ms
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.tenants.registry import TenantRegistry
from app.worker.course.diversity import DiversityMeter
from app.worker.heartbeat import repeat
from app.worker.memory.memory_cache import MemoryCache
from app.worker.model.device import DeviceThread
from app.worker.patience import Patience

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the worker's parts share."""

    settings: Settings
    redis: Redis
    registry: WorkerRegistry
    metrics: Metrics
    patience: Patience
    stop: asyncio.Event
    thread: DeviceThread
    worker_id: WorkerId


async def extend_leases(desk: Desk, queues: tuple[JobQueue, ...]) -> None:
    """Extends the leases of all jobs that this worker holds, for ever."""

    async def extend_once() -> None:
        num_lost = sum([await queue.extend_leases(desk.worker_id) for queue in queues])
        if num_lost:
            _log.warning("leases_lost", num_jobs=num_lost)

    interval_s = desk.settings.heartbeat_interval_s
    await repeat(extend_once, "leases_not_extended", desk.metrics, interval_s=interval_s)


async def reclaim(desk: Desk, models: tuple[ModelId, ...]) -> None:
    """Takes back what workers that died have held, for ever."""
    settings = desk.settings
    lease_s = settings.heartbeat_ttl_s
    reclaimer = JobReclaimer(desk.redis, JobLimits.of(settings), lease_s=lease_s, metrics=desk.metrics)

    async def reclaim_once() -> None:
        for model in models:
            for queue in queues_of([model]):
                report = await reclaimer.reclaim(queue)
                desk.metrics.jobs_redelivered.labels(model).inc(report.num_redelivered)

    interval_s = settings.heartbeat_interval_s
    await repeat(reclaim_once, "leases_not_reclaimed", desk.metrics, interval_s=interval_s)


async def sweep(desk: Desk, models: tuple[ModelId, ...]) -> None:
    """Finds what a crash left of jobs, for ever."""
    interval_s = desk.settings.sweep_interval_s
    limits, metrics = JobLimits.of(desk.settings), desk.metrics
    sweeper = JobSweeper(desk.redis, limits, desk.registry, interval_s=interval_s, metrics=metrics)

    async def sweep_once() -> None:
        report = await sweeper.sweep(queues_of(models))
        desk.metrics.jobs_repaired.inc(report.num_repaired)

    await repeat(sweep_once, "sweep_failed", metrics, interval_s=interval_s)


async def sweep_images(desk: Desk, images: ImageStore) -> None:
    """Removes images that are past their time, and those that nobody committed, for ever."""
    old = ImageSweeper(desk.redis, images, image_ttl_s=desk.settings.image_ttl_s, clock_ms=now_ms)
    orphans = OrphanSweeper(desk.redis, images, clock_ms=now_ms)

    async def sweep_once() -> None:
        desk.metrics.images_expired.inc(await old.sweep())
        desk.metrics.images_orphaned.inc(await orphans.sweep())

    await repeat(sweep_once, "image_sweep_failed", interval_s=min(old.interval_s, orphans.INTERVAL_S))


async def measure(diversity: DiversityMeter) -> None:
    """Tells how diverse the last images were, for ever."""
    await repeat(diversity.measure, "diversity_not_measured", interval_s=diversity.INTERVAL_S)


async def forget(desk: Desk, memories: MemoryCache, diversity: DiversityMeter) -> None:
    """Has what was forgotten leave the copies of memories, and all that is of tenants that are being deleted, for ever.

    What nobody asks for is not read again, and would stay until it is evicted. The deletion of a tenant takes longer than some
    intervals.
    """
    registry = TenantRegistry(desk.redis, clock_ms=now_ms)

    async def forget_once() -> None:
        deleted = await registry.deletions()
        diversity.drop(deleted)
        num_dropped = memories.drop(deleted)
        if num_dropped:
            _log.info("memories_dropped", num_memories=num_dropped)
        await memories.drop_forgotten()

    await repeat(forget_once, "memories_not_dropped", interval_s=desk.settings.sweep_interval_s)
