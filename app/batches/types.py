"""Values and bounds of this folder, and what it asks of the HTTP edge: the form of a line."""

from dataclasses import dataclass
from typing import Protocol

from app.domain.batch import Batch, BatchLine, LineFault
from app.domain.ids import JobId
from app.domain.job import JobRecord
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of batches and times to live. A lease is extended three times in its time.

    It is given back where a store has been away for `patience_s`.
    Lines become jobs while fewer than `max_waiting` of the tenant wait for the model: the rest is for requests. Up to
    `max_held_back` lines that are refused are stepped over, and tried again after `retry_s`.
    """

    max_open_per_tenant: int = 20
    max_driven: int = 16
    max_lines: int = 50_000
    max_lines_waiting: int = 64
    max_waiting: int = 500
    max_held_back: int = 1000
    max_line_bytes: int = 4_194_304
    ttl_s: int = 30 * 86_400
    lease_s: float = 15.0
    poll_s: float = 0.5
    retry_s: float = 5.0
    patience_s: float = 30.0
    slice_s: float = 30.0

    @classmethod
    def of(cls, settings: Settings) -> "BatchLimits":
        """The bounds that the settings name."""
        return cls(
            max_open_per_tenant=settings.max_open_batches_per_tenant,
            max_driven=settings.max_batches_driven,
            max_lines=settings.max_batch_lines,
            max_lines_waiting=settings.max_batch_lines_waiting,
            max_waiting=max(1, settings.max_waiting_jobs_per_tenant // 2),
            max_line_bytes=settings.max_body_bytes,
            ttl_s=settings.file_ttl_s,
        )


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not empty, by its number from 1. `data` is None where it is longer than a line may be."""

    number: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """A line of an output: one for the file of answers, or for that of errors."""

    data: bytes
    is_error: bool


class LineForms(Protocol):
    """What a line is on the wire. Nothing here talks to anybody; all of it may run in a thread.

    The same line gives the same bytes, whenever it is asked.
    """

    def read(self, batch: Batch, raw: RawLine) -> BatchLine:
        """The request of a line, or its fault."""

    def answer(self, batch: Batch, line: BatchLine, record: JobRecord, *, expires_at_s: int) -> LineAnswer:
        """What is written of a line whose job has ended. Image URLs work until `expires_at_s`."""

    def refuse(self, line: BatchLine, fault: LineFault, job_id: JobId) -> LineAnswer:
        """What is written of a line that never became a request, or was not done."""
