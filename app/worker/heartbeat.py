"""Says at intervals that this worker lives, and sweeps at intervals for what a crash left."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog

from app.domain.ids import ModelId
from app.domain.request import EditKind
from app.errors import ServiceError, StoreUnavailable
from app.jobs.types import ModelProgress, WorkerInfo, WorkerPhase
from app.redis.cancelling import wait_at_most
from app.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class Registry(Protocol):
    """Where workers say that they live."""

    async def beat(self, info: WorkerInfo) -> None:
        """The worker lives, for one time to live."""
        ...


class Heartbeat:
    """The worker's phase, told to the registry at every change and every interval."""

    def __init__(self, registry: Registry, info: WorkerInfo, *, interval_s: float, metrics: Metrics) -> None:
        self._registry = registry
        self._info = info
        self._interval_s = interval_s
        self._metrics = metrics
        self._changed = asyncio.Event()

    async def beat(self) -> None:
        """One beat now. StoreUnavailable where it cannot be told."""
        await self._registry.beat(self._info)

    def enter(
        self, phase: WorkerPhase, *, edits: Mapping[ModelId, frozenset[EditKind]] | None = None
    ) -> None:
        """Tell the registry at once of a new phase, and how the models can edit, where that is known since."""
        self._info = replace(
            self._info, phase=phase, loading={}, edits=self._info.edits if edits is None else edits
        )
        self._changed.set()

    def tell(self, loading: Mapping[ModelId, ModelProgress]) -> None:
        """Tell the registry at once how far the models are."""
        self._info = replace(self._info, loading=loading)
        self._changed.set()

    async def run(self) -> None:
        """Beat for ever. A beat that cannot be told is logged, and the next one tried in its time."""
        while True:
            await quietly(self.beat, "heartbeat_not_told", self._metrics)
            await wait_at_most(self._changed, self._interval_s)
            self._changed.clear()


async def repeat(
    operation: Callable[[], Awaitable[Any]], event: str, metrics: Metrics | None = None, *, interval_s: float
) -> None:
    """Run an operation for ever, `interval_s` apart; its ServiceErrors are treated as `quietly` does."""
    while True:
        await quietly(operation, event, metrics)
        await asyncio.sleep(interval_s)


async def quietly(
    operation: Callable[[], Awaitable[Any]], event: str, metrics: Metrics | None = None
) -> None:
    """Run an operation once; its ServiceErrors are logged as `event`.

    `metrics` are given where all of it is Redis: they count that it did not answer. Who only reserves would not notice a Redis that
    is full: reading works.
    """
    try:
        await operation()
    except ServiceError as error:
        if metrics is not None and isinstance(error, StoreUnavailable):
            metrics.store_errors.labels("redis").inc()
        _log.warning(event, reason=error.message)
