"""The API's main: opens what it works with, serves, and closes in reverse order."""

import asyncio
import math
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version

import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis

from app.audit.log import AuditLimits, AuditLog
from app.batches.driver import BatchDriver
from app.batches.inputs import BatchInputs
from app.batches.output import OutputStores
from app.batches.store import BatchStore
from app.batches.sweeper import InputSweeper
from app.batches.types import BatchLimits
from app.catalogue import Catalogue, load_catalogue
from app.domain.ids import TenantId
from app.domain.job import Job
from app.erasure.eraser import ErasedStores, TenantEraser
from app.errors import ConfigurationError
from app.files.contents import FileContents
from app.files.store import FileStore
from app.files.sweeper import SLACK_S, FileSweeper
from app.http.app import announce_stop, create_app, let_go_of_waiters, stop_followers
from app.http.auth import is_loopback
from app.http.background import Background
from app.http.batch_lines import WireForms
from app.http.chores import (
    counting_entries,
    delivering_webhooks,
    driving_batches,
    erasing,
    metering,
    removing_remains,
    sweeping_files,
)
from app.http.deps import Deps, MemoryDeps
from app.http.pictures import PictureReader
from app.http.protocol import MAX_HEAD_BYTES, bounded_protocol
from app.http.thumbnails import Thumbnailer
from app.http.uploads import FollowerSlots, Slots, UploadSlots
from app.images.store import ImageStore
from app.images.urls import SigningKeyStore, UrlSigner
from app.jobs.events import JobEvents
from app.jobs.listing import JobLister
from app.jobs.room import CountedRoom
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.jobs.waiter import JobWaiter
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.keys import MemoryKey
from app.memory.making import MemoryMaker
from app.memory.migration import check_format
from app.memory.overview import MemoryOverview
from app.redis.connection import check_server, connect
from app.redis.replicas import Replicas
from app.redis.room import RedisRoom
from app.settings import Settings
from app.signals import stop_signals
from app.telemetry.exporting import exporting_traces
from app.telemetry.metrics import Metrics
from app.tenants.desk import TenantDesk
from app.tenants.keys import KeyStore
from app.webhooks.deliverer import Deliverer
from app.webhooks.outbox import Outbox
from app.webhooks.sender import HttpSender
from app.webhooks.store import WebhookStore
from app.webhooks.targets import SystemResolver, Targets

_KEEP_ALIVE_S = 75
_TELLING_S = 2.0  # waiters look once a second
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class _Accepting:
    """What is asked where jobs are accepted."""

    redis: Redis
    settings: Settings
    catalogue: Catalogue
    desk: TenantDesk
    files: FileStore


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
        accepting = _Accepting(redis, settings, catalogue, desk, files)
        metrics = _open_metrics(catalogue)
        jobs = _job_store(accepting, replicas=replicas, metrics=metrics)
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
        await _start_chores(stack, deps, redis)
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


async def _start_chores(stack: AsyncExitStack, deps: Deps, redis: Redis) -> None:
    """What the process does beside answering, until the stack is left."""
    settings, inputs = deps.settings, BatchInputs.open(deps.settings.file_store_url)
    files = FileSweeper(
        redis, deps.files, deps.contents, upload_timeout_s=settings.upload_timeout_s, clock_ms=deps.now_ms
    )
    for sweeper in (files, InputSweeper(redis, inputs, clock_ms=deps.now_ms)):
        await stack.enter_async_context(sweeping_files(sweeper, deps.metrics))
    await stack.enter_async_context(removing_remains(deps.memories.remains, deps.metrics))
    await stack.enter_async_context(counting_entries(deps.memories.counter))
    await stack.enter_async_context(metering(deps.desk.meter))
    await stack.enter_async_context(erasing(_make_eraser(deps, redis, inputs)))
    await stack.enter_async_context(driving_batches(_make_driver(deps, redis, inputs)))
    await stack.enter_async_context(delivering_webhooks(_make_deliverer(deps, redis), redis))


def _job_store(
    deps: _Accepting, *, replicas: Replicas | None = None, metrics: Metrics | None = None
) -> JobStore:
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


def _make_eraser(deps: Deps, redis: Redis, inputs: BatchInputs) -> TenantEraser:
    """What deletes tenants. No request, and no job that a worker has in hand, takes longer than an upload may."""
    stores = ErasedStores(deps.jobs, deps.keys, (deps.images, deps.contents, inputs), tuple(deps.catalogue))
    linger_s = max(deps.settings.upload_timeout_s, deps.settings.request_timeout_s) + SLACK_S
    return TenantEraser(redis, deps.desk.registry, stores, linger_s=linger_s, clock_ms=deps.now_ms)


def _make_deliverer(deps: Deps, redis: Redis) -> Deliverer:
    outbox, sender = Outbox(redis, clock_ms=deps.now_ms), HttpSender(deps.webhook_targets)
    return Deliverer(deps.webhooks, outbox, sender, deps.metrics, clock_ms=deps.now_ms)


def _make_driver(deps: Deps, redis: Redis, inputs: BatchInputs) -> BatchDriver:
    """What drives batches. Their files have room beyond what a tenant may upload, so that none has to wait for it.

    Lines wait for no replicas: what a fail-over undoes of them is done again from the batch, which lies in the same slot.
    """
    settings = deps.settings
    room = settings.max_files_per_tenant + 2 * settings.max_open_batches_per_tenant
    stores = OutputStores(
        redis=redis,
        jobs=_job_store(_Accepting(redis, settings, deps.catalogue, deps.desk, deps.files)),
        inputs=inputs,
        files=FileStore(redis, max_files=room, clock_ms=deps.now_ms),
        contents=deps.contents,
        forms=WireForms(deps),
        url_ttl_s=min(settings.job_ttl_s, settings.image_ttl_s),
    )
    limits = BatchLimits.of(settings)
    return BatchDriver(deps.batches, stores, limits, deps.metrics, clock_ms=deps.now_ms)


def _open_metrics(catalogue: Catalogue) -> Metrics:
    metrics = Metrics.of_process("api")
    metrics.begin(tuple(catalogue))
    metrics.build_info.labels(version("sparke"), "api", "", "", "").set(1)
    return metrics


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before anything is started. Raises ConfigurationError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"host {host!r} is not an address of this machine: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another one with --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL at which a browser on this machine finds what listens."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


async def refuse_to_be_open(deps: Deps) -> None:
    """Raises ConfigurationError where others could reach a server that asks for no key."""
    host = deps.settings.host
    if not is_loopback(host) and not await deps.keys.any_keys():
        raise ConfigurationError(
            f"there are no API keys, so anybody who reaches {host} could use this server; make one first with"
            " `sparke keys create --tenant NAME`, or listen on --host 127.0.0.1"
        )


@asynccontextmanager
async def serving(app: FastAPI, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """Serves as long as the context lasts, in the task that it gives; that ends by itself only by an error.

    At the end those who follow jobs are let go, the socket is closed, and what is under way is answered, for at most
    `stop_timeout_s`; shortly before, those who wait for jobs hear that they have to ask again.
    """
    settings = app.state.deps.settings
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.stop_timeout_s),
        timeout_keep_alive=_KEEP_ALIVE_S,
        http=bounded_protocol(settings.head_timeout_s),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield running
    finally:
        server.should_exit = True
        stop_followers(app)
        telling_s = max(0.0, settings.stop_timeout_s - _TELLING_S)
        telling = asyncio.get_running_loop().call_later(telling_s, let_go_of_waiters, app)
        await running
        telling.cancel()


def run_api(settings: Settings, redis_url: str) -> None:
    """Serves the API until SIGINT or SIGTERM. Raises ServiceError where it cannot start."""
    with suppress(KeyboardInterrupt), exporting_traces("sparke-api"):
        asyncio.run(_run_api(settings, redis_url))


async def _run_api(settings: Settings, redis_url: str) -> None:
    with bind(settings.host, settings.port) as listener, stop_signals() as stop:
        async with open_deps(settings, redis_url) as deps:
            await refuse_to_be_open(deps)
            app = create_app(deps)
            async with serving(app, listener) as http:
                print(f"SPARKE API: {url_of(listener)}", flush=True)  # noqa: T201 - what the command is for
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait((stopping, http), return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                announce_stop(app)
                await asyncio.wait((http,), timeout=settings.stop_notice_s)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: our mains decide the order in which things stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
