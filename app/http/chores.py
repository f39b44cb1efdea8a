"""What an API process does beside answering."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from app.errors import ServiceError
from app.files.sweeper import FileSweeper
from app.redis.cancelling import end_task
from app.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def sweeping_files(sweeper: FileSweeper, metrics: Metrics) -> AsyncIterator[None]:
    """Sweeps on a timer for as long as the context lasts. A sweep that fails is logged; the next one tries again."""
    task = asyncio.create_task(_sweep_for_ever(sweeper, metrics), name="file-sweep")
    try:
        yield
    finally:
        await end_task(task)


async def _sweep_for_ever(sweeper: FileSweeper, metrics: Metrics) -> None:
    while True:
        try:
            metrics.files_swept.inc(await sweeper.sweep())
        except ServiceError as error:
            _log.warning("file_sweep_failed", error=error.message)
        except Exception:  # noqa: BLE001 - this must not be the last sweep
            _log.exception("file_sweep_failed")
        await asyncio.sleep(sweeper.INTERVAL_S)
