"""Commits what jobs were for, through outages of Redis, and counts the attempts that wrote nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from app.domain.job import JobResult
from app.errors import CorruptRecord, ServiceError, StoreUnavailable
from app.jobs.types import Cancelled, Committed, ReservedJob
from app.telemetry.metrics import Metrics
from app.telemetry.metrics.declaring import OTHER
from app.worker.patience import Patience


class Finished(NamedTuple):
    """A job's result, the entries that are to be remembered, and how far their memory had come when the job read one."""

    result: JobResult
    entries: Sequence[bytes]
    seen_version: int | None = None


class Commits(Protocol):
    """Who commits, checking the fence."""

    async def commit(
        self,
        reserved: ReservedJob,
        result: JobResult,
        entries: Sequence[bytes],
        *,
        seen_version: int | None = None,
    ) -> Committed | Cancelled | None:
        """Remember the entries, unless all was forgotten since `seen_version`, and end the job; at once or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class Committer:
    """The way of all runners to the end of a job that went well."""

    jobs: Commits
    patience: Patience
    metrics: Metrics

    async def commit(self, reserved: ReservedJob, finished: Finished) -> Committed | Cancelled | None:
        """Cancelled where the job was, None where the fence was lost. Repeated until Redis answers or the worker stops.

        Raises StoreUnavailable and CorruptRecord.
        """
        committed = await self.patience.call(lambda: self._try(reserved, finished))
        if not isinstance(committed, Committed):
            self._count(reserved, "cancelled" if committed else "fence_lost")
        return committed

    async def _try(self, reserved: ReservedJob, finished: Finished) -> Committed | Cancelled | None:
        result, entries, seen_version = finished
        try:
            return await self.jobs.commit(reserved, result, entries, seen_version=seen_version)
        except ServiceError as error:
            self._count(reserved, _reason_of(error))
            raise

    def _count(self, reserved: ReservedJob, reason: str) -> None:
        self.metrics.commit_failures.labels(reserved.job.model, reason).inc()


def _reason_of(error: ServiceError) -> str:
    if isinstance(error, StoreUnavailable):
        return "store_unavailable"
    return "corrupt_record" if isinstance(error, CorruptRecord) else OTHER
