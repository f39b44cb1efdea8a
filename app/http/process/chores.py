"""What an API process does beside answering."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from app.batches.driver import BatchDriver
from app.erasure.eraser import TenantEraser
from app.errors import ServiceError
from app.jobs.keys import FINISHED_CHANNEL
from app.memory.counting import EntryCounter
from app.redis.cancelling import end_task
from app.redis.listener import Listener
from app.telemetry.metrics import Metrics
from app.tenants.usage import UsageMeter
from app.webhooks.deliverer import Deliverer

_FLUSH_S = 5.0

_log = structlog.get_logger(__name__)


class Sweeper(Protocol):
    """What removes objects that nobody needs: uploads, copies that batches read, what is left of forgotten images."""

    INTERVAL_S: float

    async def sweep(self) -> int:
        """The number of objects removed."""


@asynccontextmanager
async def sweeping_files(sweeper: Sweeper, metrics: Metrics) -> AsyncIterator[None]:
    """Sweeps on a timer for as long as the context lasts. A sweep that fails is logged; the next one tries again."""
    async with _sweeping(sweeper, metrics.files_swept, "file_sweep_failed"):
        yield


@asynccontextmanager
async def removing_remains(cleaner: Sweeper, metrics: Metrics) -> AsyncIterator[None]:
    """The same for what is left of forgotten entries."""
    async with _sweeping(cleaner, metrics.images_forgotten, "remains_sweep_failed"):
        yield


@asynccontextmanager
async def driving_batches(driver: BatchDriver) -> AsyncIterator[None]:
    """Drives batches for as long as the context lasts, and leaves them so that another process can go on at once."""
    task = asyncio.create_task(driver.run(), name="batches")
    try:
        yield
    finally:
        await end_task(task)
        await driver.close()


@asynccontextmanager
async def delivering_webhooks(deliverer: Deliverer, redis: Redis) -> AsyncIterator[None]:
    """Delivers for as long as the context lasts, and leaves the rest so that another process can go on at once."""
    async with Listener(redis, [FINISHED_CHANNEL], deliverer.hear):
        task = asyncio.create_task(deliverer.run(), name="webhooks")
        try:
            yield
        finally:
            await end_task(task)
            await deliverer.close()


@asynccontextmanager
async def erasing(eraser: TenantEraser, *, pause_s: float = 2.0) -> AsyncIterator[None]:
    """Brings deletions on for as long as the context lasts; what is left over is for another process."""
    task = asyncio.create_task(_erase_for_ever(eraser, pause_s), name="erasure")
    try:
        yield
    finally:
        await end_task(task)


async def _erase_for_ever(eraser: TenantEraser, pause_s: float) -> None:
    are_listed = False
    while True:
        try:
            if not are_listed:
                await eraser.list_known()
                are_listed = True
            await eraser.look()
        except ServiceError as error:
            _log.warning("erasure_failed", error=error.message)
        except Exception:  # noqa: BLE001 - this must not be the last look
            _log.exception("erasure_failed")
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def counting_entries(counter: EntryCounter) -> AsyncIterator[None]:
    """Counts the entries of all memories on a timer for as long as the context lasts."""
    task = asyncio.create_task(_count_for_ever(counter), name="entry-count")
    try:
        yield
    finally:
        await end_task(task)


async def _count_for_ever(counter: EntryCounter) -> None:
    while True:
        try:
            await counter.count()
        except ServiceError as error:
            _log.warning("memory_entries_not_counted", error=error.message)
        except Exception:  # noqa: BLE001 - this must not be the last count
            _log.exception("memory_entries_not_counted")
        await asyncio.sleep(counter.INTERVAL_S)


@asynccontextmanager
async def metering(meter: UsageMeter) -> AsyncIterator[None]:
    """Writes down what was counted on a timer for as long as the context lasts, and once more at its end."""
    task = asyncio.create_task(_flush_for_ever(meter), name="usage")
    try:
        yield
    finally:
        await end_task(task)
        await _flush(meter)


async def _flush_for_ever(meter: UsageMeter) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        await _flush(meter)


async def _flush(meter: UsageMeter) -> None:
    try:
        await meter.flush()
    except ServiceError as error:
        _log.warning("usage_not_written", error=error.message)
    except Exception:  # noqa: BLE001 - this must not be the last time
        _log.exception("usage_not_written")


@asynccontextmanager
async def _sweeping(sweeper: Sweeper, removed: Counter, event: str) -> AsyncIterator[None]:
    task = asyncio.create_task(_sweep_for_ever(sweeper, removed, event), name=event)
    try:
        yield
    finally:
        await end_task(task)


async def _sweep_for_ever(sweeper: Sweeper, removed: Counter, event: str) -> None:
    while True:
        try:
            removed.inc(await sweeper.sweep())
        except ServiceError as error:
            _log.warning(event, error=error.message)
        except Exception:  # noqa: BLE001 - this must not be the last sweep
            _log.exception(event)
        await asyncio.sleep(sweeper.INTERVAL_S)
