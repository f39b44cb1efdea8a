"""A batch: many requests in one file, done when there is time, and the states it goes through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from app.domain.ids import BatchId, FileId, TenantId
from app.domain.request import GenerationRequest

ENDPOINT = "/v1/images/generations"
COMPLETION_WINDOW = "24h"
COMPLETION_WINDOW_S = 86_400
MAX_CUSTOM_ID_CHARS = 512
MAX_FAULTS_SHOWN = 100


class BatchState(StrEnum):
    """validating → in_progress → finalizing → completed | expired; failed, or cancelling → cancelled, on the way.

    In the words of the OpenAI API.
    """

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_ended(self) -> bool:
        """True where no further state can follow."""
        return self in _ENDED


_ENDED = frozenset({BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Batch:
    """What a batch is from its creation on. Times are Unix milliseconds.

    `base_url` is how its creator reached the API: the images' URLs begin with it.
    """

    tenant_id: TenantId
    batch_id: BatchId
    input_file_id: FileId
    input_bytes: int
    base_url: str
    created_at_ms: int
    expires_at_ms: int
    output_ttl_s: int
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LineFault:
    """What is wrong with a line, or with the file where `line` is None. Lines count from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class LineCounts:
    """Lines of a batch: all of them, with an image, with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """The first line that has not become a job yet, by its number and its first byte."""

    line: int = 1
    byte: int = 0


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was to become a job and was refused: why, and from where it is read again, None where never."""

    fault: LineFault
    start: Cursor | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What the store knows of a batch now.

    `reached_at_ms` has the states it has been in; `counts` is None before it is validated. `held_up` is why the next
    line is no job, where a quota or a full queue is. `outcome` is the state it ends in, once that is known.
    """

    batch: Batch
    state: BatchState
    reached_at_ms: Mapping[BatchState, int] = field(default_factory=dict)
    counts: LineCounts | None = None
    faults: tuple[LineFault, ...] = ()
    cursor: Cursor = Cursor()
    held_up: LineFault | None = None
    outcome: BatchState | None = None
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line as it was read: with the request that it became, or with its fault."""

    number: int
    custom_id: str | None
    request: GenerationRequest | None = None
    fault: LineFault | None = None
