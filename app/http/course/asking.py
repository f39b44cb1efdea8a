"""Questions about memories: which model answers, and a job that nobody sees but who waits for it."""

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.domain.ids import JobId, LatentSpace, TenantId, make_job_id
from app.domain.job import Job, JobKind, JobRecord, JobState, Question
from app.domain.model import ModelSpec
from app.errors import InvalidValue, ModelNotFound, StoreUnavailable, WaitTimeout
from app.http.bodies.generation import find_model
from app.http.bodies.showing import error_of
from app.http.course.answering import unless_disconnected
from app.http.course.origin import accept
from app.http.deps import Deps


async def choose_model(wanted: str | None, space: LatentSpace, deps: Deps) -> ModelSpec:
    """The model that is asked: the one that is wanted, or one of the memory's latent space that a worker has.

    Where no worker has any, the catalogue's first of that space: the job says what there is to say. Raises ModelNotFound,
    and InvalidValue for a model of another space.
    """
    of_space = [spec for spec in deps.catalogue.values() if spec.latent_space == space]
    if wanted is not None:
        spec = find_model(wanted, deps.catalogue)
        if spec.latent_space != space:
            able = ", ".join(other.model_id for other in of_space) or "none of the catalogue"
            raise InvalidValue(
                f"model {spec.model_id} has the latent space {spec.latent_space!r} and this memory {space!r}; models that"
                f" can answer: {able}",
                param="model",
            )
        return spec
    if not of_space:
        raise ModelNotFound(
            f"no model of the catalogue has this memory's latent space {space!r}; its entries can be listed, not asked"
        )
    workers = await deps.registry.list_workers()
    served = {model for worker in workers if worker.phase == "ready" for model in worker.models}
    return next((spec for spec in of_space if spec.model_id in served), of_space[0])


async def ask(
    request: Request, tenant_id: TenantId, question: Question, *, kind: JobKind, deps: Deps
) -> JobRecord:
    """The job of a question once it has succeeded; its record is gone by then. The request's body must have been read.

    Raises the job's failure, QueueFull, NoWorker, WaitTimeout, StoreUnavailable. Whoever goes away, or waits for too
    long, cancels it: an answer is of use to nobody else.
    """
    now_ms, timeout_s = deps.now_ms(), deps.settings.request_timeout_s
    job: Job = Job(
        tenant_id=tenant_id,
        job_id=make_job_id(now_ms, deps.randomness(8)),
        kind=kind,
        request=question,
        created_at_ms=now_ms,
        deadline_at_ms=now_ms + int(timeout_s * 1000),
    )
    await accept(job, deps)
    waiting = deps.waiter.wait(tenant_id, job.job_id, timeout_s)
    try:
        record = await unless_disconnected(request, waiting)
    except (ClientDisconnect, WaitTimeout, asyncio.CancelledError):
        await asyncio.shield(deps.jobs.cancel(tenant_id, job.job_id))
        raise
    await _discard(tenant_id, job.job_id, deps)
    if record.state is not JobState.SUCCEEDED:
        raise error_of(record)
    return record


async def _discard(tenant_id: TenantId, job_id: JobId, deps: Deps) -> None:
    try:
        await deps.jobs.discard_question(tenant_id, job_id)
    except StoreUnavailable:
        return  # it goes by itself, soon
