"""What the API works with: opened by a main, given to `create_app`, closed by the main in reverse order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from app.audit.log import AuditLog
from app.batches.store import BatchStore
from app.catalogue import Catalogue
from app.files.contents import FileContents
from app.files.store import FileStore
from app.http.forms.pictures import PictureReader
from app.http.forms.thumbnails import Thumbnailer
from app.http.forms.uploads import Slots, UploadSlots
from app.http.process.background import Background
from app.images.store import ImageStore
from app.images.urls import UrlSigner
from app.jobs.events import JobEvents
from app.jobs.listing import JobLister
from app.jobs.remains import RemainsCleaner
from app.jobs.running import RunningJobs
from app.jobs.store import JobStore
from app.jobs.waiter import JobWaiter
from app.jobs.workers import WorkerRegistry
from app.memory.counting import EntryCounter
from app.memory.exporting import MemoryExporter
from app.memory.forgetting import MemoryForgetter
from app.memory.forking import MemoryForker
from app.memory.importing import ImportLimits, MemoryImporter
from app.memory.making import MemoryMaker
from app.memory.overview import MemoryOverview
from app.memory.shaping import MemoryShaper
from app.memory.store import MemoryStore
from app.redis.replicas import Replicas
from app.redis.room import RedisRoom
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.tenants.desk import TenantDesk
from app.tenants.keys import KeyStore
from app.tenants.registry import TenantRegistry
from app.webhooks.store import WebhookStore
from app.webhooks.targets import Targets


@dataclass(frozen=True, slots=True)
class MemoryDeps:
    """What the API shows of memories, forgets of them, and lets out and in."""

    overview: MemoryOverview
    versions: MemoryStore
    forgetter: MemoryForgetter
    shaper: MemoryShaper
    maker: MemoryMaker
    forker: MemoryForker
    exporter: MemoryExporter
    importer: MemoryImporter
    remains: RemainsCleaner
    counter: EntryCounter
    running: RunningJobs

    @classmethod
    def of(
        cls,
        redis: Redis,
        images: ImageStore,
        settings: Settings,
        *,
        clock_ms: Callable[[], int],
        replicas: Replicas,
    ) -> "MemoryDeps":
        """All of it over one Redis and one store of images."""
        return cls(
            overview=MemoryOverview(redis),
            versions=MemoryStore(redis),
            forgetter=MemoryForgetter(redis, clock_ms=clock_ms, replicas=replicas),
            shaper=MemoryShaper(redis, clock_ms=clock_ms, replicas=replicas),
            exporter=MemoryExporter(redis),
            maker=MemoryMaker(
                redis,
                max_memories=settings.max_memories_per_tenant,
                clock_ms=clock_ms,
                replicas=replicas,
            ),
            forker=MemoryForker(
                redis,
                max_memories=settings.max_memories_per_tenant,
                clock_ms=clock_ms,
                replicas=replicas,
            ),
            importer=MemoryImporter(redis, ImportLimits.of(settings), clock_ms=clock_ms, replicas=replicas),
            remains=RemainsCleaner(redis, images, clock_ms=clock_ms),
            counter=EntryCounter(redis, TenantRegistry(redis, clock_ms=clock_ms)),
            running=RunningJobs(redis),
        )


@dataclass(frozen=True, slots=True)
class Deps:
    """The stores, the settings, and the sources of time (Unix milliseconds) and of randomness (n bytes)."""

    jobs: JobStore
    job_lister: JobLister
    job_events: JobEvents
    waiter: JobWaiter
    registry: WorkerRegistry
    redis_room: RedisRoom
    keys: KeyStore
    audit: AuditLog
    desk: TenantDesk
    images: ImageStore
    files: FileStore
    contents: FileContents
    batches: BatchStore
    memories: MemoryDeps
    webhooks: WebhookStore
    webhook_targets: Targets
    uploads: UploadSlots
    transfers: Slots
    followers: Slots
    pictures: PictureReader
    thumbnails: Thumbnailer
    background: Background
    signer: UrlSigner
    catalogue: Catalogue
    settings: Settings
    metrics: Metrics
    now_ms: Callable[[], int]
    randomness: Callable[[int], bytes]


def deps_of(request: Request) -> Deps:
    """The dependencies that `create_app` was given."""
    deps = request.app.state.deps
    if not isinstance(deps, Deps):
        raise TypeError(f"expected Deps in app.state, got {type(deps).__name__}")
    return deps


DepsOf = Annotated[Deps, Depends(deps_of)]
