"""Jobs: ask for images without waiting, see what became of it, follow it, cancel it."""

import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.domain.ids import JOB_FORM, JobId, ModelId, TenantId, parse_job_id
from app.domain.job import JobRecord, JobState, Lane
from app.errors import InvalidId, NotFound
from app.http.bodies.generation_bodies import MAX_DEADLINE_S, JobBody
from app.http.bodies.job_answers import JobAnswer, JobsAnswer, describe_job, job_json, jobs_json
from app.http.bodies.json_body import read_json
from app.http.bodies.showing import base_url_of
from app.http.course.streaming import EventStream, read_preview
from app.http.course.submission import IdempotencyKey, Wish, cancel_job, idempotency_of, submit
from app.http.deps import Deps, DepsOf
from app.http.guard.auth import Tenant
from app.http.guard.rate_limit import accepted_headers
from app.http.openapi.document import EVENTS_DOCS, JOB_DOCS
from app.http.openapi.error_docs import fails_with
from app.jobs.events import EVENT_FORM, order_of, parse_event_id
from app.jobs.types import JobEvent, JobQuery

MAX_LISTED = 100
_NUMBERS = ("step", "num_steps", "attempt", "image", "number")

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


async def read_job_body(request: Request, _tenant: Tenant, deps: DepsOf) -> JobBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, JobBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "",
    status_code=202,
    response_model=JobAnswer,
    responses=fails_with(400, 404, 410, 413, 415, 422, 429),
    openapi_extra=JOB_DOCS,
)
async def create_job(
    request: Request,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    body: Annotated[JobBody, Depends(read_job_body)],
    idempotency_key: IdempotencyKey,
) -> Response:
    """Ask for images without waiting for them. Once this is answered, the job ends in one way or another."""
    wish = Wish(
        body.deadline_s or MAX_DEADLINE_S,
        idempotency_of(request, body, idempotency_key),
        body.metadata or {},
        body.num_previews or 0,
    )
    accepted = await submit(tenant_id, body, wish, deps)
    answer = await _show(request, tenant_id, accepted.job_id, deps)
    answer.status_code = 202
    answer.headers.update({"location": f"/v1/jobs/{accepted.job_id}", **accepted_headers(accepted)})
    return answer


@router.get("", response_model=JobsAnswer, responses=fails_with(400))
async def list_jobs(  # noqa: PLR0917 - the members of the query
    request: Request,
    tenant_id: Tenant,
    deps: DepsOf,
    after: Annotated[
        str | None,
        Query(description="The id of the job before the first one.", json_schema_extra={"pattern": JOB_FORM}),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 20,
    status: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(max_length=200, description="Only jobs for this model.")] = None,
) -> Response:
    """Your jobs, the newest first; those of batches are not among them. A page may be short while there are more."""
    try:
        cursor = None if after is None else parse_job_id(after)
    except InvalidId as error:
        raise InvalidId(error.message, param="after") from error
    query = JobQuery(limit, cursor, status, None if model is None else ModelId(model))
    page = await deps.job_lister.list_jobs(tenant_id, query)
    base_url = base_url_of(request, deps)
    data = [describe_job(record, deps, base_url=base_url) for record in page.records]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    answer = JobsAnswer(
        data=data,
        first_id=ends[0],
        last_id=ends[1],
        next_after=page.next_after,
        has_more=page.next_after is not None,
    )
    return Response(jobs_json(answer), media_type="application/json")


@router.get("/{job_id}", response_model=JobAnswer, responses=fails_with(404))
async def show_job(request: Request, job_id: str, tenant_id: Tenant, deps: DepsOf) -> Response:
    """A job as it stands."""
    return await _show(request, tenant_id, _parse(job_id), deps)


@router.post(
    "/{job_id}/cancel", response_model=JobAnswer, responses=fails_with(404), operation_id="cancel_job"
)
async def cancel(request: Request, job_id: str, tenant_id: Tenant, deps: DepsOf) -> Response:
    """Cancel a job: nothing of it enters a memory from now on. One that has ended stays as it is."""
    parsed = _parse(job_id)
    await _get(tenant_id, parsed, deps)
    await cancel_job(tenant_id, parsed, deps)
    return await _show(request, tenant_id, parsed, deps)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses=fails_with(400, 404, 429),
    openapi_extra=EVENTS_DOCS,
)
async def follow_job(
    request: Request,
    job_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    last_event_id: Annotated[
        str | None,
        Header(
            description="Only what came after this event; a browser sends it by itself.",
            json_schema_extra={"pattern": EVENT_FORM},
        ),
    ] = None,
) -> Response:
    """What happens to a job, as server-sent events; the last one is its end, with the job as it is then.

    Whoever comes back with the id of the last event it got, to whichever replica, gets what it missed, and nothing
    twice. After the end there is nothing more: 204.
    """
    parsed = _parse(job_id)
    after = _parse_event(last_event_id)
    if (await _get(tenant_id, parsed, deps)).job.lane is Lane.BATCH:
        raise NotFound(f"job {parsed} is a line of a batch, which has no events")
    last = await deps.job_events.last(tenant_id, parsed)
    if last.is_last and order_of(after) >= order_of(last.event_id):
        return Response(status_code=204)
    with ExitStack() as stack:
        stack.enter_context(deps.followers.hold(tenant_id))
        stream = _tell(tenant_id, parsed, after, base_url=base_url_of(request, deps), deps=deps)
        return EventStream(stream, slot=stack.pop_all())


async def _tell(
    tenant_id: TenantId, job_id: JobId, after: str, *, base_url: str, deps: Deps
) -> AsyncGenerator[bytes]:
    followed = deps.job_events.follow(tenant_id, job_id, after=after, until_stop=True)
    async with aclosing(followed) as events:
        async for event in events:
            if event is None:
                yield KEEPALIVE_COMMENT
                continue
            told = _describe_event(event, job_id)
            if event.type == "preview":
                told["b64_json"] = await read_preview(event, deps)
            data = json.dumps(told, separators=(",", ":"))
            if event.is_last:
                record = await deps.jobs.get(tenant_id, job_id)
                shown = job_json(describe_job(record, deps, base_url=base_url))
                data = f'{data[:-1]},"job":{shown}}}'
            yield format_sse_event(data_str=data, event=event.type, id=event.event_id)


def _describe_event(event: JobEvent, job_id: JobId) -> dict[str, str | int | None]:
    told = {name: int(event.fields[name]) for name in _NUMBERS if name in event.fields}
    return {"type": event.type, "job_id": job_id, "at_ms": event.at_ms, **told}


async def _show(request: Request, tenant_id: TenantId, job_id: JobId, deps: Deps) -> Response:
    record = await _get(tenant_id, job_id, deps)
    answer = describe_job(record, deps, base_url=base_url_of(request, deps))
    return Response(job_json(answer), media_type="application/json")


async def _get(tenant_id: TenantId, job_id: JobId, deps: Deps) -> JobRecord:
    """A job's record. Raises NotFound, also for a question: nobody was told its id."""
    record = await deps.jobs.get(tenant_id, job_id)
    if record.job.kind.is_quiet:
        raise _no_such_job(job_id)
    return record


def _no_such_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:80]!r}")


def _parse(job_id: str) -> JobId:
    """A job's id from a path. What cannot be one names no job."""
    try:
        return parse_job_id(job_id)
    except InvalidId as error:
        raise _no_such_job(job_id) from error


def _parse_event(given: str | None) -> str:
    try:
        return parse_event_id(given) if given else "0-0"
    except InvalidId as error:
        raise InvalidId(error.message, param="Last-Event-ID") from error
