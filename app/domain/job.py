"""A job: one request's unit of work, and the states it goes through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic

from typing_extensions import TypeVar

from app.domain.encoding import EncodedImage, EncodeRequest, EncodeResult
from app.domain.ids import JobId, MemoryName, ModelId, TenantId, WorkerId
from app.domain.question import (
    PreviewRequest,
    PreviewResult,
    SearchRequest,
    SearchResult,
    StatsRequest,
    StatsResult,
)
from app.domain.request import GenerationRequest
from app.domain.result import Failure, GeneratedImage, GenerationResult

Question = SearchRequest | PreviewRequest | StatsRequest
JobRequest = GenerationRequest | EncodeRequest | Question
JobResult = GenerationResult | EncodeResult | SearchResult | PreviewResult | StatsResult
StoredImage = GeneratedImage | EncodedImage
Asked_co = TypeVar("Asked_co", bound=JobRequest, default=JobRequest, covariant=True)


class JobKind(StrEnum):
    """What a worker does for a job. One that knows a kind not cannot read its jobs, and does not take them for others."""

    GENERATE = "generate"
    EDIT = "edit"  # its request has an edit
    ENCODE = "encode"
    SEARCH = "search"
    PREVIEW = "preview"
    STATS = "stats"

    @property
    def is_question(self) -> bool:
        """True where somebody waits for what a model says of a memory, and nothing changes."""
        return self not in (JobKind.GENERATE, JobKind.EDIT, JobKind.ENCODE)

    @property
    def is_quiet(self) -> bool:
        """True where it makes no images, so it has no events, is in no list and is told to no webhook."""
        return self not in (JobKind.GENERATE, JobKind.EDIT)


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
class Origin:
    """The request that a job came of: its id, and where it stands in a trace, as headers of the W3C. Either may be empty."""

    request_id: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job(Generic[Asked_co]):
    """An accepted request; its type goes with the kind. Times are Unix milliseconds.

    The lines of a batch and quiet kinds have no events and are in no list.
    """

    tenant_id: TenantId
    job_id: JobId
    kind: JobKind
    request: Asked_co
    created_at_ms: int
    deadline_at_ms: int
    lane: Lane = Lane.INTERACTIVE
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_previews: int = 0
    origin: Origin = Origin()

    @property
    def model(self) -> ModelId:
        """The model that it needs."""
        return self.request.model

    @property
    def num_images(self) -> int:
        """How many images it leaves behind: none where it is a question."""
        if isinstance(self.request, GenerationRequest | EncodeRequest):
            return self.request.num_images
        return 0

    @property
    def prompt(self) -> str:
        """The prompt that its images are remembered under, or that is asked about; empty where none is."""
        return "" if isinstance(self.request, StatsRequest) else self.request.prompt

    @property
    def memory_name(self) -> MemoryName:
        """The memory that its images become entries of, or that is asked."""
        if isinstance(self.request, GenerationRequest | PreviewRequest):
            return self.request.diversity.memory.name
        return self.request.memory

    @property
    def remembers(self) -> bool:
        """True where its images are to become entries of a memory."""
        if isinstance(self.request, GenerationRequest):
            return self.request.diversity.memory.write
        return isinstance(self.request, EncodeRequest)

    @property
    def runs_alone(self) -> bool:
        """True where no other job may share its batch: it asks for one fixed shape, or makes none of its images."""
        return not isinstance(self.request, GenerationRequest) or self.request.reproducible

    @property
    def generation(self) -> GenerationRequest:
        """What images it makes. To be asked only of jobs that make images; TypeError for others."""
        if isinstance(self.request, GenerationRequest):
            return self.request
        raise TypeError(f"expected a job that makes images, got {self.job_id} of the kind {self.kind}")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What the store knows of a job now. Exactly one of result and failure is set at the end.

    `fence` is the number of its last start, `num_attempts` how often a worker began to run it and did not give it back in order.
    `committed_version` is its memory's version after its entries; None where nothing of it was remembered.
    """

    job: Job
    state: JobState
    fence: int = 0
    worker_id: WorkerId | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    result: JobResult | None = None
    failure: Failure | None = None
    num_attempts: int = 0
    cancel_requested_at_ms: int | None = None
    committed_version: int | None = None

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The images that it ended with; none where it did not, or is a question."""
        return self.result.images if isinstance(self.result, GenerationResult | EncodeResult) else ()
