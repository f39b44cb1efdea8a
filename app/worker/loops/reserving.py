"""Reserves jobs through outages, and gives back those that were not done: what the worker's loops share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from app.domain.ids import ModelId, WorkerId
from app.errors import ServiceError, StoreUnavailable
from app.jobs.types import ReservedJob
from app.telemetry.metrics import Metrics
from app.worker.patience import Patience

_FIRST_OUTAGE_PAUSE_S = 0.2
_MAX_OUTAGE_PAUSE_S = 5.0

_log = structlog.get_logger(__name__)


class JobSource(Protocol):
    """Where jobs come from, and where those go back to that were not run."""

    async def reserve(
        self, models: Sequence[ModelId], worker_id: WorkerId, max_images: int, block_ms: int
    ) -> list[ReservedJob]:
        """Start jobs until they have `max_images` images; wait up to `block_ms` for the first."""
        ...

    async def give_back(self, reserved: ReservedJob, *, is_forgiven: bool) -> bool:
        """Make a job that was not done queued again; forgiven, its attempt does not count."""
        ...


@dataclass(slots=True)
class Reserving:
    """Jobs of some queues for one worker. While Redis is away it pauses, longer each time."""

    source: JobSource
    queues: Sequence[ModelId]
    worker_id: WorkerId
    patience: Patience
    metrics: Metrics
    outage_pause_s: float = _FIRST_OUTAGE_PAUSE_S

    async def reserve(self, room_images: int, block_ms: int) -> list[ReservedJob]:
        """What `JobSource.reserve` gives; nothing, after a pause, where it does not answer."""
        try:
            reserved = await self.source.reserve(self.queues, self.worker_id, room_images, block_ms)
        except ServiceError as error:
            self.metrics.store_errors.labels("redis").inc()
            _log.warning("nothing_reserved", pause_s=self.outage_pause_s, reason=error.message)
            await self.patience.pause(self.outage_pause_s)
            self.outage_pause_s = min(2 * self.outage_pause_s, _MAX_OUTAGE_PAUSE_S)
            return []
        self.outage_pause_s = _FIRST_OUTAGE_PAUSE_S
        return reserved

    async def give_back(self, left: Sequence[ReservedJob], *, is_forgiven: bool) -> None:
        """Makes jobs queued again, as far as Redis is there; the others are left to their leases."""
        for reserved in left:
            log = _log.bind(job_id=reserved.job.job_id)
            try:
                given = await self.source.give_back(reserved, is_forgiven=is_forgiven)
            except StoreUnavailable as error:
                log.warning("job_not_given_back", reason=error.message)
            else:
                log.info("job_given_back" if given else "job_no_longer_ours")
