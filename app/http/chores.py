"""What an API process does beside answering."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
from redis.asyncio import Redis

from app.batches.driver import BatchDriver
from app.errors import ServiceError
from app.jobs.keys import FINISHED_CHANNEL
from app.redis.cancelling import end_task
from app.redis.listener import Listener
from app.telemetry.metrics import Metrics
from app.webhooks.deliverer import Deliverer

_log = structlog.get_logger(__name__)


class Sweeper(Protocol):
    """What removes objects that nobody needs: uploads, or copies that batches read."""

    INTERVAL_S: float

    async def sweep(self) -> int:
        """The number of objects removed."""


@asynccontextmanager
async def sweeping_files(sweeper: Sweeper, metrics: Metrics) -> AsyncIterator[None]:
    """Sweeps on a timer for as long as the context lasts. A sweep that fails is logged; the next one tries again."""
    task = asyncio.create_task(_sweep_for_ever(sweeper, metrics), name="file-sweep")
    try:
        yield
    finally:
        await end_task(task)


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


async def _sweep_for_ever(sweeper: Sweeper, metrics: Metrics) -> None:
    while True:
        try:
            metrics.files_swept.inc(await sweeper.sweep())
        except ServiceError as error:
            _log.warning("file_sweep_failed", error=error.message)
        except Exception:  # noqa: BLE001 - this must not be the last sweep
            _log.exception("file_sweep_failed")
        await asyncio.sleep(sweeper.INTERVAL_S)
