"""A job: one request's unit of work, and the states it goes through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from app.domain.ids import JobId, TenantId, WorkerId
from app.domain.request import GenerationRequest
from app.domain.result import Failure, GenerationResult


class JobKind(StrEnum):
    """What a worker does for a job. One that knows a kind not cannot read its jobs, and does not take them for others."""

    GENERATE = "generate"
    EDIT = "edit"  # its request has an edit


class Lane(StrEnum):
    """Which jobs go first: those that somebody waits for, before the lines of batches."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class JobState(StrEnum):
    """queued → running → succeeded | failed | cancelled | expired."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """True where no further state can follow."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted request. Times are Unix milliseconds. The lines of a batch have no events and are in no list."""

    tenant_id: TenantId
    job_id: JobId
    kind: JobKind
    request: GenerationRequest
    created_at_ms: int
    deadline_at_ms: int
    lane: Lane = Lane.INTERACTIVE
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_previews: int = 0


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What the store knows of a job now. Exactly one of result and failure is set at the end.

    `fence` counts its starts, `num_attempts` how often a worker began to run it and did not give it back in order.
    """

    job: Job
    state: JobState
    fence: int = 0
    worker_id: WorkerId | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    result: GenerationResult | None = None
    failure: Failure | None = None
    num_attempts: int = 0
    cancel_requested_at_ms: int | None = None
