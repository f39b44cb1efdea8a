"""Values that the classes of this folder hand out, and the bounds they keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from app.domain.ids import JobId, ModelId, TenantId, WorkerId
from app.domain.job import Job, JobRecord, JobState
from app.domain.quota import Quotas, Remaining
from app.domain.request import EditKind
from app.errors import IdempotencyMismatch
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Bounds of the queue and times to live."""

    max_waiting_per_tenant: int = 1000
    max_open: int = 10_000
    max_released_per_tenant: int | None = None
    job_ttl_s: int = 7 * 86_400
    max_deadline_s: int = 86_400
    idempotency_ttl_s: int = 86_400
    max_attempts: int = 3
    max_dead_letters: int = 1000
    usage_ttl_s: int = 62 * 86_400
    question_ttl_s: int = 60  # of the record of a question that has ended, which nobody may have read

    @classmethod
    def of(cls, settings: Settings) -> "JobLimits":
        """The bounds that the settings name."""
        return cls(
            max_waiting_per_tenant=settings.max_waiting_jobs_per_tenant,
            max_open=settings.max_open_jobs,
            max_released_per_tenant=settings.max_released_jobs_per_tenant,
            job_ttl_s=settings.job_ttl_s,
            idempotency_ttl_s=min(settings.idempotency_ttl_s, settings.job_ttl_s),
            max_attempts=settings.max_attempts,
            usage_ttl_s=settings.kept_usage_s,
        )

    @property
    def quotas(self) -> Quotas:
        """Those of a tenant for which nothing else is known."""
        return Quotas(max_waiting_jobs=self.max_waiting_per_tenant)

    @property
    def job_list_ttl_s(self) -> int:
        """How long a job is listed: as long as its record can be there, with an hour to run in."""
        return self.max_deadline_s + 3600 + self.job_ttl_s


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key for one request, and a fingerprint of that request: the same key is the same job, or batch."""

    key: str
    fingerprint: str

    @property
    def mismatch(self) -> IdempotencyMismatch:
        """What is said where the key was sent with another request before."""
        return IdempotencyMismatch(
            "this Idempotency-Key was sent with another request before; use a new key for a new request"
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job that stands for a request, and how many of the tenant wait for its model, at most `max_waiting`.

    `images` is what is left of the day's, None where they are not bounded.
    """

    job_id: JobId
    num_waiting: int
    max_waiting: int
    images: Remaining | None = None

    @property
    def num_free(self) -> int:
        """How many more may wait."""
        return max(0, self.max_waiting - self.num_waiting)


@dataclass(frozen=True, slots=True)
class ReservedJob:
    """A job that this worker has started. Its end counts only while `fence` is the record's fence.

    `num_attempts` counts how often others began to run it, and vanished or gave up: it may be what they died of.
    """

    job: Job
    fence: int
    worker_id: WorkerId
    stream_id: str
    num_attempts: int = 0

    @property
    def runs_alone(self) -> bool:
        """True where no other job may share its batch: it asks for one fixed shape, or has been begun before."""
        return self.job.runs_alone or self.num_attempts > 0


class Standing(StrEnum):
    """How a job that a worker has started stands now: its own still, to be ended as cancelled, or no longer its own."""

    OURS = "ours"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of a job's denoising steps are done."""

    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What happened to a job: its stream id, whose first half is Unix milliseconds, and the rest of its fields."""

    event_id: str
    type: str
    fields: Mapping[str, str]

    @property
    def at_ms(self) -> int:
        """When it happened, by Redis' clock, in Unix milliseconds."""
        return int(self.event_id.partition("-")[0])

    @property
    def is_last(self) -> bool:
        """True where no event can follow: the type is a terminal state."""
        return self.type in _LAST


_LAST = frozenset(state.value for state in JobState if state.is_terminal)


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which of a tenant's jobs to list, the newest first: at most `limit`, older than `after`."""

    limit: int
    after: JobId | None = None
    state: JobState | None = None
    model: ModelId | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, and where to go on: None where there are no more."""

    records: tuple[JobRecord, ...]
    next_after: JobId | None


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit that counted. `memory_version` is the memory's version after it, None where nothing was remembered."""

    memory_version: int | None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A commit that came after the job was cancelled: the job has ended so, and nothing of it was remembered."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that no worker could do, for the operator: why, how often it was begun, and by whom last."""

    tenant_id: TenantId
    job_id: JobId
    reason: str
    num_attempts: int
    worker_id: WorkerId
    at_ms: int


WorkerPhase = Literal["loading", "ready", "draining"]
LoadStage = Literal["waiting", "downloading", "loading", "warming_up", "ready"]


@dataclass(frozen=True, slots=True)
class ModelProgress:
    """How far a worker is with a model. Bytes are told while it is downloaded; the total grows while files are found."""

    stage: LoadStage
    done_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a live worker says of itself, once it is ready also how its models can edit. A draining one takes no more jobs.

    `metrics_url` is where its metrics are served, if they are.
    """

    worker_id: WorkerId
    phase: WorkerPhase
    models: tuple[ModelId, ...]
    started_at_ms: int
    edits: Mapping[ModelId, frozenset[EditKind]] = field(default_factory=dict)
    loading: Mapping[ModelId, ModelProgress] = field(default_factory=dict)
    metrics_url: str | None = None
