"""What is to be done although nobody waits for it any more."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from app.errors import ServiceError

_log = structlog.get_logger(__name__)


class Background:
    """Runs short tasks to their end. An async context manager: leaving it waits for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._tasks)

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Starts a task. What of the service's errors it raises is logged."""
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except ServiceError as error:
        _log.warning("background_task_failed", error=error.message)
