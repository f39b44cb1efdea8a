"""What a worker's logs and traces have of the jobs that it works on: their ids in every line, a span for each, one for a batch."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, set_span_in_context, use_span

from app.domain.job import Job, JobState
from app.domain.request import GenerationRequest
from app.jobs.types import ReservedJob
from app.telemetry.tracing import Attribute, Told, context_of, note, now_ns, past_span, span, start_span


@dataclass(frozen=True, slots=True)
class _Open:
    span: Span
    started_s: float


class JobSpans:
    """The spans of the jobs that run, and since when they do."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], _Open] = {}

    @contextmanager
    def during(self, batch: Sequence[ReservedJob]) -> Iterator[None]:
        """The jobs run as long as the block lasts. Before it they were queued."""
        with ExitStack() as stack:
            for reserved in batch:
                self._begin(reserved)
                stack.callback(self._end, reserved)
            yield

    @contextmanager
    def within(self, reserved: ReservedJob) -> Iterator[None]:
        """What is done for one of them: lines of the log have its ids, spans are below its own."""
        current = use_span(self.of(reserved), record_exception=False, set_status_on_exception=False)
        with structlog.contextvars.bound_contextvars(**ids_of(reserved.job)), current:
            yield

    def of(self, reserved: ReservedJob) -> Span:
        """The span of a job; one that says nothing where it does not run here."""
        found = self._open.get(_key(reserved))
        return INVALID_SPAN if found is None else found.span

    def ran_s(self, reserved: ReservedJob) -> float:
        """For how long it has been running; 0 where it does not."""
        found = self._open.get(_key(reserved))
        return 0.0 if found is None else time.monotonic() - found.started_s

    def tell(self, reserved: ReservedJob, state: JobState | None, told: Told) -> None:
        """How the job ended; None where it is another worker's now."""
        current = self.of(reserved)
        note(current, {"state": "lost" if state is None else state.value, **told})
        if state in (JobState.FAILED, JobState.EXPIRED):
            current.set_status(StatusCode.ERROR)

    @contextmanager
    def batch(self, batch: Sequence[ReservedJob], told: Told) -> Iterator[Span]:
        """What the device does for all of them at once: a span below that of the first that is sampled, linked with each."""
        spans = [self.of(reserved) for reserved in batch]
        first = next((each for each in spans if each.get_span_context().trace_flags.sampled), INVALID_SPAN)
        parent = set_span_in_context(first, Context())
        with span("batch", {"num_jobs": len(batch), **told}, parent=parent, links=spans) as current:
            if current.get_span_context().is_valid:
                for each in spans:
                    each.add_link(current.get_span_context())
            yield current

    def _begin(self, reserved: ReservedJob) -> None:
        job, parent = reserved.job, context_of(reserved.job.origin.trace)
        past_span("queued", job.created_at_ms * 1_000_000, now_ns(), parent=parent)
        started = start_span("job", attributes_of(reserved), kind=SpanKind.CONSUMER, parent=parent)
        self._open[_key(reserved)] = _Open(started, time.monotonic())

    def _end(self, reserved: ReservedJob) -> None:
        self._open.pop(_key(reserved)).span.end()


@contextmanager
def batch_named() -> Iterator[None]:
    """Lines of the log have one id for all that is done of a batch."""
    with structlog.contextvars.bound_contextvars(run_id=f"run_{secrets.token_hex(6)}"):
        yield


def ids_of(job: Job) -> dict[str, str]:
    """What a line of the log names a job by. The request's id is that of the API's lines."""
    ids = {"job_id": job.job_id, "tenant_id": job.tenant_id}
    return {**ids, "request_id": job.origin.request_id} if job.origin.request_id else ids


def attributes_of(reserved: ReservedJob) -> dict[str, Attribute]:
    """What a span says of a job: ids and numbers, nothing that was written by its tenant."""
    job = reserved.job
    told: dict[str, Attribute] = {
        **ids_of(job),
        "model": job.model,
        "kind": job.kind.value,
        "lane": job.lane.value,
        "num_images": job.num_images,
        "attempt": reserved.num_attempts + 1,
    }
    if isinstance(job.request, GenerationRequest):
        size = f"{job.request.width_px}x{job.request.height_px}"
        told |= {"steps": job.request.steps, "size": size, "strength": job.request.diversity.strength}
    return told


def _key(reserved: ReservedJob) -> tuple[str, int]:
    return reserved.job.job_id, reserved.fence
