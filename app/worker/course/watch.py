"""Asks once a step whether a running batch is still wanted, and tells how far it is.

Its jobs may have been cancelled, or given to others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import structlog

from app.domain.ids import JobId
from app.errors import StoreUnavailable
from app.jobs.types import Progress, ReservedJob, Standing

TELL_EVERY_S = 0.25  # how often a job's progress is told at most

_log = structlog.get_logger(__name__)


class BatchStopped(Exception):
    """No job of the batch is wanted any more. Raised on the device thread, to leave the engine at a step."""


class Standings(Protocol):
    """Who knows how a started job stands."""

    async def standing(self, reserved: ReservedJob, progress: Progress | None = None) -> Standing:
        """Its worker's own still, to be ended as cancelled, or no longer its own; how far it is, is told where given."""
        ...


class BatchWatch:
    """An async context manager around one batch; at its end nothing is being asked any more.

    `let_go` is called once, on the event loop, for each job that is not wanted; its batch-mates go on. Steps wait for no
    answer: one question is under way at a time, and an answer counts from the next step on.
    """

    def __init__(
        self,
        standings: Standings,
        batch: Sequence[ReservedJob],
        let_go: Callable[[ReservedJob, Standing], Awaitable[None]],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standings = standings
        self._batch = tuple(batch)
        self._let_go = let_go
        self._monotonic_s = monotonic_s
        self._gone: set[JobId] = set()
        self._loop = asyncio.get_running_loop()
        self._question: asyncio.Task[None] | None = None
        self._told_at_s = 0.0
        self._is_open = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if self._question is not None:
            await self._question

    def is_gone(self, reserved: ReservedJob) -> bool:
        """True where the job is not wanted any more."""
        return reserved.job.job_id in self._gone

    def on_step(self, step: int, num_steps: int) -> None:
        """On the device thread, once a step. Raises BatchStopped where no job is wanted any more."""
        if len(self._gone) == len(self._batch):
            raise BatchStopped("every job of the batch was cancelled, or is another worker's now")
        self._loop.call_soon_threadsafe(self._ask, Progress(step, num_steps))

    def _ask(self, progress: Progress) -> None:
        if self._is_open and (self._question is None or self._question.done()):
            is_due = self._monotonic_s() - self._told_at_s >= TELL_EVERY_S
            if is_due:
                self._told_at_s = self._monotonic_s()
            self._question = self._loop.create_task(self._look(progress if is_due else None))

    async def _look(self, progress: Progress | None) -> None:
        wanted = [reserved for reserved in self._batch if not self.is_gone(reserved)]
        try:
            found = await asyncio.gather(
                *(self._standings.standing(reserved, progress) for reserved in wanted)
            )
        except StoreUnavailable as error:
            _log.warning("standing_not_read", reason=error.message)
            return
        for reserved, standing in zip(wanted, found, strict=True):
            if standing is not Standing.OURS:
                self._gone.add(reserved.job.job_id)
                await self._let_go(reserved, standing)
