"""Values that the classes of this folder hand out, and the bounds they keep."""

from dataclasses import dataclass
from typing import Literal

from app.domain.ids import ModelId, WorkerId
from app.domain.job import Job
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Bounds of the queue and times to live."""

    max_waiting_per_tenant: int = 1000
    max_open: int = 10_000
    max_released_per_tenant: int = 8
    job_ttl_s: int = 7 * 86_400

    @classmethod
    def of(cls, settings: Settings) -> "JobLimits":
        """The bounds that the settings name."""
        return cls(
            max_waiting_per_tenant=settings.max_waiting_jobs_per_tenant,
            max_open=settings.max_open_jobs,
            max_released_per_tenant=settings.max_released_jobs_per_tenant,
            job_ttl_s=settings.job_ttl_s,
        )


@dataclass(frozen=True, slots=True)
class ReservedJob:
    """A job that this worker has started. Its end counts only while `fence` is the record's fence."""

    job: Job
    fence: int
    worker_id: WorkerId
    stream_id: str


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit that counted. `memory_version` is the memory's version after it, None where nothing was remembered."""

    memory_version: int | None


WorkerPhase = Literal["loading", "ready", "draining"]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a live worker says of itself. A draining worker takes no more jobs."""

    worker_id: WorkerId
    phase: WorkerPhase
    models: tuple[ModelId, ...]
    started_at_ms: int
