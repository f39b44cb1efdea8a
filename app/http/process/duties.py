"""What an API process does beside answering: the makers of its chores, and their start."""

from contextlib import AsyncExitStack

from redis.asyncio import Redis

from app.batches.driver import BatchDriver
from app.batches.inputs import BatchInputs
from app.batches.output import OutputStores
from app.batches.sweeper import InputSweeper
from app.batches.types import BatchLimits
from app.erasure.eraser import ErasedStores, TenantEraser
from app.files.store import FileStore
from app.files.sweeper import SLACK_S, FileSweeper
from app.http.course.batch_lines import WireForms
from app.http.deps import Deps
from app.http.process.accepting import Accepting, job_store
from app.http.process.chores import (
    counting_entries,
    delivering_webhooks,
    driving_batches,
    erasing,
    metering,
    removing_remains,
    sweeping_files,
)
from app.webhooks.deliverer import Deliverer
from app.webhooks.outbox import Outbox
from app.webhooks.sender import HttpSender


async def start_chores(stack: AsyncExitStack, deps: Deps, redis: Redis) -> None:
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
    accepting = Accepting(redis, settings, deps.catalogue, deps.desk, deps.files)
    room = settings.max_files_per_tenant + 2 * settings.max_open_batches_per_tenant
    stores = OutputStores(
        redis=redis,
        jobs=job_store(accepting, deps.metrics),
        inputs=inputs,
        files=FileStore(redis, max_files=room, clock_ms=deps.now_ms),
        contents=deps.contents,
        forms=WireForms(deps),
        url_ttl_s=min(settings.job_ttl_s, settings.image_ttl_s),
    )
    limits = BatchLimits.of(settings)
    return BatchDriver(deps.batches, stores, limits, deps.metrics, clock_ms=deps.now_ms)
