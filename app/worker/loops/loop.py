"""Reserves jobs, lets the batcher group them, and runs one batch after another until the worker stops."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.domain.ids import ModelId, WorkerId
from app.jobs.types import ReservedJob
from app.telemetry.metrics import Metrics
from app.worker.loops.batcher import Batcher
from app.worker.loops.reserving import JobSource, Reserving
from app.worker.patience import Patience

_IDLE_BLOCK_MS = 1000  # also how long a stop may have to wait for a worker that has nothing to do


class Runner(Protocol):
    """What runs a batch."""

    async def run(self, batch: Sequence[ReservedJob]) -> None:
        """End every job of the batch."""
        ...


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What a loop works with. `stop` is set once, from outside."""

    source: JobSource
    runner: Runner
    batcher: Batcher[ReservedJob]
    models: Sequence[ModelId]
    worker_id: WorkerId
    patience: Patience
    clock_ms: Callable[[], int]
    stop: asyncio.Event
    metrics: Metrics


class WorkerLoop:
    """One batch at a time, so that an image which waits for nobody else is in the memory that the next batch reads.

    No more jobs are reserved than fill one batch: the rest stays where an idle worker can take it.
    """

    def __init__(self, parts: LoopParts) -> None:
        self._parts = parts
        self._batch: tuple[ReservedJob, ...] = ()
        self._reserving = Reserving(
            parts.source, parts.models, parts.worker_id, parts.patience, parts.metrics
        )

    async def run(self) -> None:
        """Work until `stop` is set; then finish the running batch and give back what was not begun.

        Cancelled, it gives back the running batch too: its jobs then run elsewhere, under a new fence. So it does after
        a fault, which counts as an attempt of each job, for one of them may have caused it.
        """
        parts, is_forgiven = self._parts, True
        try:
            while not parts.stop.is_set():
                await self._fill()
                self._batch = parts.batcher.next_batch(parts.clock_ms())
                self._count_held()
                if self._batch:
                    await parts.runner.run(self._batch)
                    self._batch = ()
                    self._count_held()
        except Exception:
            is_forgiven = False
            raise
        finally:
            await self._reserving.give_back((*self._batch, *parts.batcher.drain()), is_forgiven=is_forgiven)
            self._batch = ()
            self._count_held()

    async def _fill(self) -> None:
        """Reserve what there is room for; return when something came, or when the batcher's next batch is due."""
        parts = self._parts
        block_ms = self._block_ms()
        room_images = parts.batcher.room_images
        if room_images <= 0:
            await parts.patience.pause(block_ms / 1000)
            return
        for one in await self._reserving.reserve(room_images, block_ms):
            waited_s = max(0, parts.clock_ms() - one.job.created_at_ms) / 1000
            parts.metrics.job_wait_seconds.labels(one.job.model, one.job.lane).observe(waited_s)
            parts.batcher.add(one, parts.clock_ms())

    def _count_held(self) -> None:
        held = Counter(one.job.model for one in (*self._batch, *self._parts.batcher.waiting()))
        for model in self._parts.models:
            self._parts.metrics.jobs_running.labels(model).set(held[model])

    def _block_ms(self) -> int:
        ready_at_ms = self._parts.batcher.ready_at_ms()
        if ready_at_ms is None:
            return _IDLE_BLOCK_MS
        return min(max(ready_at_ms - self._parts.clock_ms(), 0), _IDLE_BLOCK_MS)
