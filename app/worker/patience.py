"""Repeats what failed because Redis or the object store was away, until it works, time is up, or the worker stops."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import structlog

from app.errors import StoreUnavailable
from app.redis.cancelling import wait_at_most
from app.telemetry.metrics import Metrics

T = TypeVar("T")
Store = Literal["redis", "images"]

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 2.0

_log = structlog.get_logger(__name__)


class Patience:
    """Backs off from 0.1 s, doubling up to 2 s. `stop` ends all waiting: what fails then fails for good."""

    def __init__(self, stop: asyncio.Event, clock_ms: Callable[[], int], metrics: Metrics) -> None:
        self._stop = stop
        self._clock_ms = clock_ms
        self._metrics = metrics

    async def call(
        self, operation: Callable[[], Awaitable[T]], *, store: Store = "redis", until_ms: int | None = None
    ) -> T:
        """The operation's result. It must be safe to repeat. StoreUnavailable when the time or the worker ends."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return await operation()
            except StoreUnavailable as error:
                self._metrics.store_errors.labels(store).inc()
                is_late = until_ms is not None and self._clock_ms() >= until_ms
                if is_late or self._stop.is_set():
                    raise
                _log.warning("store_unavailable", store=store, retry_in_s=delay_s, reason=error.message)
            await self.pause(delay_s)
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    @property
    def is_over(self) -> bool:
        """True once the worker stops: nothing is repeated any more."""
        return self._stop.is_set()

    async def pause(self, delay_s: float) -> None:
        """Sleep, but no longer than until the worker stops."""
        await wait_at_most(self._stop, delay_s)
