"""Everything that the API works with, opened over one Redis, and closed in reverse order."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from importlib.metadata import version

from redis.asyncio import Redis

from app.audit.log import AuditLimits, AuditLog
from app.batches.store import BatchStore
from app.catalogue import Catalogue, load_catalogue
from app.files.contents import FileContents
from app.files.store import FileStore
from app.http.deps import Deps, MemoryDeps
from app.http.forms.pictures import PictureReader
from app.http.forms.thumbnails import Thumbnailer
from app.http.forms.uploads import FollowerSlots, Slots, UploadSlots
from app.http.process.accepting import Accepting, job_store
from app.http.process.background import Background
from app.http.process.duties import start_chores
from app.images.store import ImageStore
from app.images.urls import SigningKeyStore, UrlSigner
from app.jobs.events import JobEvents
from app.jobs.listing import JobLister
from app.jobs.waiter import JobWaiter
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.migration import check_format
from app.redis.connection import check_server, connect
from app.redis.replicas import Replicas
from app.redis.room import RedisRoom
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.tenants.desk import TenantDesk
from app.tenants.keys import KeyStore
from app.webhooks.store import WebhookStore
from app.webhooks.targets import SystemResolver, Targets


async def _signing_key(redis: Redis, settings: Settings) -> bytes:
    given = settings.url_signing_key
    return given.get_secret_value().encode() if given else await SigningKeyStore(redis).get_or_create()


@asynccontextmanager
async def open_deps(settings: Settings, redis_url: str) -> AsyncIterator[Deps]:
    """Everything the API works with, over the Redis at `redis_url`.

    Raises ConfigurationError for what is wrong with it, and StoreUnavailable where it does not answer.
    """
    catalogue = load_catalogue(settings.models_file)
    async with AsyncExitStack() as stack:
        redis = connect(redis_url, timeout_s=settings.redis_timeout_s)
        stack.push_async_callback(redis.aclose)
        await check_server(redis)
        await check_format(redis)
        key = await _signing_key(redis, settings)
        registry = WorkerRegistry(redis, ttl_s=settings.heartbeat_ttl_s)
        replicas = Replicas.of(redis, settings)
        desk = TenantDesk.open(redis, settings, clock_ms=now_ms, replicas=replicas)
        files = FileStore(
            redis,
            max_files=settings.max_files_per_tenant,
            clock_ms=now_ms,
            replicas=replicas,
            most_bytes=desk.most_file_bytes,
        )
        accepting = Accepting(redis, settings, catalogue, desk, files)
        metrics = _open_metrics(catalogue)
        jobs = job_store(accepting, metrics, replicas=replicas)
        waiter = JobWaiter(redis, jobs, registry, no_worker_grace_s=settings.no_worker_grace_s)
        images = await ImageStore.reach(settings.image_store_url)
        resolver = stack.enter_context(closing(SystemResolver()))
        deps = Deps(
            jobs=jobs,
            job_lister=JobLister(redis),
            job_events=await stack.enter_async_context(JobEvents(redis)),
            waiter=await stack.enter_async_context(waiter),
            registry=registry,
            redis_room=RedisRoom(redis),
            keys=KeyStore(redis, replicas=replicas),
            audit=_audit_log(redis, settings, replicas),
            desk=desk,
            images=images,
            files=files,
            contents=FileContents.open(settings.file_store_url),
            batches=_batch_store(redis, settings, replicas),
            memories=_memory_deps(redis, settings, images, replicas),
            webhooks=WebhookStore(redis, clock_ms=now_ms, replicas=replicas),
            webhook_targets=Targets(resolver, allow_private=settings.webhooks_allow_private),
            uploads=UploadSlots(settings.max_uploads_per_tenant),
            transfers=Slots(settings.max_transfers_per_tenant),
            followers=FollowerSlots(settings.max_followers_per_tenant),
            pictures=PictureReader(max_pixels=settings.max_picture_pixels),
            thumbnails=Thumbnailer(),
            background=await stack.enter_async_context(Background()),
            signer=UrlSigner(key),
            catalogue=catalogue,
            settings=settings,
            metrics=metrics,
            now_ms=now_ms,
            randomness=secrets.token_bytes,
        )
        await start_chores(stack, deps, redis)
        yield deps


def _audit_log(redis: Redis, settings: Settings, replicas: Replicas) -> AuditLog:
    return AuditLog(redis, AuditLimits.of(settings), clock_ms=now_ms, replicas=replicas, is_logged=True)


def _batch_store(redis: Redis, settings: Settings, replicas: Replicas) -> BatchStore:
    return BatchStore(
        redis,
        max_open_per_tenant=settings.max_open_batches_per_tenant,
        idempotency_ttl_s=settings.idempotency_ttl_s,
        clock_ms=now_ms,
        replicas=replicas,
    )


def _memory_deps(redis: Redis, settings: Settings, images: ImageStore, replicas: Replicas) -> MemoryDeps:
    return MemoryDeps.of(redis, images, settings, clock_ms=now_ms, replicas=replicas)


def _open_metrics(catalogue: Catalogue) -> Metrics:
    metrics = Metrics.of_process("api")
    metrics.begin(tuple(catalogue))
    metrics.build_info.labels(version("sparke"), "api", "", "", "").set(1)
    return metrics
