"""Accepting a job, counted, with what its worker's logs and spans have of the request: its id, and its place in a trace."""

from dataclasses import replace

import structlog
from opentelemetry.trace import SpanKind

from app.domain.job import Job, Origin
from app.errors import QueueFull
from app.http.deps import Deps
from app.jobs.types import Accepted, Idempotency
from app.telemetry.tracing import carried, span


async def accept(job: Job, deps: Deps, idempotency: Idempotency | None = None) -> Accepted:
    """The job that stands for this one, as `JobStore.accept` has it, and with its errors."""
    told = {"job_id": job.job_id, "tenant_id": job.tenant_id, "model": job.model, "kind": job.kind.value}
    with span("accept job", told, kind=SpanKind.PRODUCER):
        request_id = structlog.contextvars.get_contextvars().get("request_id", "")
        origin = Origin(str(request_id), carried())
        try:
            accepted = await deps.jobs.accept(replace(job, origin=origin), idempotency)
        except QueueFull as error:
            deps.metrics.jobs_refused.labels(job.model, error.code).inc()
            raise
    if accepted.job_id == job.job_id:
        deps.metrics.jobs_accepted.labels(job.model).inc()
    return accepted
