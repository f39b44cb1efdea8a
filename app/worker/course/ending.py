"""How a worker ends jobs without what they were for, and counts and logs how each of them ended."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import StoreUnavailable
from app.jobs.transitions import CANCELLED
from app.jobs.types import ReservedJob, Standing
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Attribute
from app.worker.course.job_spans import JobSpans, ids_of
from app.worker.failures import failure_of
from app.worker.patience import Patience

_log = structlog.get_logger(__name__)


class Fails(Protocol):
    """Who ends a job with a failure."""

    async def fail(self, reserved: ReservedJob, failure: Failure) -> JobState | None:
        """End the job with a failure; the state it then has. None where the job is not ours."""
        ...


@dataclass(frozen=True, slots=True)
class JobEnder:
    """`clock_ms` is Unix time in milliseconds."""

    jobs: Fails
    patience: Patience
    metrics: Metrics
    clock_ms: Callable[[], int]
    spans: JobSpans = field(default_factory=JobSpans)

    def is_late(self, reserved: ReservedJob) -> bool:
        """True where the job's deadline is over."""
        return self.clock_ms() >= reserved.job.deadline_at_ms

    async def fail(self, reserved: ReservedJob, failure: Failure) -> None:
        """End a job with a failure, and say so in the log where even that cannot be written."""
        log = _log.bind(**ids_of(reserved.job), code=failure.code)
        try:
            state = await self.patience.call(lambda: self.jobs.fail(reserved, failure))
        except StoreUnavailable as error:
            log.error("failure_not_written", reason=error.message)  # noqa: TRY400 - no fault of the code
            return
        self.count(reserved, state, code=failure.code)

    async def let_go(self, reserved: ReservedJob, standing: Standing) -> None:
        """A job that is not wanted any more: it ends as cancelled, or is another worker's already."""
        if standing is Standing.CANCELLED:
            await self.fail(reserved, CANCELLED)
        else:
            self.count(reserved, None)

    async def fail_for(self, reserved: ReservedJob, error: Exception, event: str) -> None:
        """End a job for what went wrong with it, which the log gets as `event`.

        Where a store is away and the worker stops, the job is left to its lease instead.
        """
        if isinstance(error, StoreUnavailable) and self.patience.is_over and not self.is_late(reserved):
            _log.warning("job_left_to_its_lease", **ids_of(reserved.job), reason=error.message)
            return
        failure = failure_of(error, reserved.job)
        _log.warning(event, **ids_of(reserved.job), code=failure.code, exc_info=error)
        await self.fail(reserved, failure)

    def count(self, reserved: ReservedJob, state: JobState | None, **told: Attribute) -> None:
        """Tell of the end of a job, which counted where it happened; None where somebody else had ended or taken it."""
        job = reserved.job
        if state is None:
            self.metrics.jobs_fence_lost.labels(job.model).inc()
        elif job.kind.is_question:
            age_s = max(0, self.clock_ms() - job.created_at_ms) / 1000
            self.metrics.question_seconds.labels(job.model, job.kind, state).observe(age_s)
        self.spans.tell(reserved, state, told)
        ran_s = self.spans.ran_s(reserved)
        _log.info(
            "job_ended" if state else "job_no_longer_ours",
            **ids_of(job),
            state=state,
            model=job.model,
            kind=job.kind,
            lane=job.lane,
            num_images=job.num_images,
            num_attempts=reserved.num_attempts,
            waited_s=round(max(0.0, (self.clock_ms() - job.created_at_ms) / 1000 - ran_s), 3),
            ran_s=round(ran_s, 3),
            prompt=job.prompt,
            **told,
        )
