"""Batches: create one of a file, list them, see how one stands, cancel one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.batches.store import no_such_batch
from app.domain.batch import COMPLETION_WINDOW_S, Batch
from app.domain.file import FilePurpose, StoredFile
from app.domain.ids import BATCH_FORM, BatchId, TenantId, make_batch_id, parse_batch_id, parse_file_id
from app.errors import InvalidId, InvalidValue, NotFound
from app.files.store import no_such_file
from app.http.bodies.batch_answers import BatchAnswer, BatchBody, BatchesAnswer, describe_batch
from app.http.bodies.json_body import read_json
from app.http.bodies.showing import base_url_of
from app.http.course.submission import IdempotencyKey, idempotency_of
from app.http.deps import Deps, DepsOf
from app.http.guard.auth import Tenant
from app.http.openapi.document import BATCH_DOCS
from app.http.openapi.error_docs import fails_with

MAX_LISTED = 100

router = APIRouter(prefix="/v1/batches", tags=["batches"])


async def read_batch_body(request: Request, _tenant: Tenant, deps: DepsOf) -> BatchBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, BatchBody, max_bytes=deps.settings.max_body_bytes)


@router.post("", responses=fails_with(400, 404, 413, 415, 422, 429), openapi_extra=BATCH_DOCS)
async def create_batch(
    request: Request,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    body: Annotated[BatchBody, Depends(read_batch_body)],
    idempotency_key: IdempotencyKey,
) -> BatchAnswer:
    """Make images of every line of a file, when there is time, within 24 hours.

    The answer comes at once. Each line is done once, whatever is restarted meanwhile; a line with a fault costs itself.
    """
    idempotency = idempotency_of(request, body, idempotency_key)
    if idempotency is not None:  # its file may have gone since, and files have filled up
        known = await deps.batches.standing_for(tenant_id, idempotency)
        if known is not None:
            return describe_batch(known)
    file = await _find_input(tenant_id, body.input_file_id, deps)
    await deps.files.check_room(tenant_id)
    created_at_ms = deps.now_ms()
    expires_after = body.output_expires_after
    batch = Batch(
        tenant_id=tenant_id,
        batch_id=make_batch_id(created_at_ms, deps.randomness(12)),
        input_file_id=file.file_id,
        input_bytes=file.size_bytes,
        base_url=base_url_of(request, deps),
        created_at_ms=created_at_ms,
        expires_at_ms=created_at_ms + COMPLETION_WINDOW_S * 1000,
        output_ttl_s=expires_after.seconds if expires_after else deps.settings.file_ttl_s,
        metadata=body.metadata,
    )
    return describe_batch(await deps.batches.create(batch, idempotency))


@router.get("", responses=fails_with(400))
async def list_batches(
    tenant_id: Tenant,
    deps: DepsOf,
    after: Annotated[
        str | None,
        Query(
            description="The id of the batch before the first one.", json_schema_extra={"pattern": BATCH_FORM}
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 20,
) -> BatchesAnswer:
    """The batches, the newest first. A cursor stays good when its own batch has gone."""
    try:
        cursor = None if after is None else parse_batch_id(after)
    except InvalidId as error:
        raise InvalidId(error.message, param="after") from error
    page = await deps.batches.list_batches(tenant_id, limit, cursor)
    data = [describe_batch(record) for record in page.batches]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return BatchesAnswer(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


@router.get("/{batch_id}", responses=fails_with(404))
async def show_batch(batch_id: str, tenant_id: Tenant, deps: DepsOf) -> BatchAnswer:
    """How a batch stands."""
    return describe_batch(await deps.batches.get(tenant_id, _parse(batch_id)))


@router.post("/{batch_id}/cancel", responses=fails_with(404, 409))
async def cancel_batch(batch_id: str, tenant_id: Tenant, deps: DepsOf) -> BatchAnswer:
    """Cancel a batch: no more of its lines are begun, and what was done stays, in its output file.

    Once more it changes nothing. A batch that writes its files already, or has ended otherwise, is 409.
    """
    return describe_batch(await deps.batches.cancel(tenant_id, _parse(batch_id)))


async def _find_input(tenant_id: TenantId, text: str, deps: Deps) -> StoredFile:
    try:
        file = await deps.files.get(tenant_id, parse_file_id(text))
    except (InvalidId, NotFound) as error:
        raise NotFound(no_such_file(text).message, param="input_file_id") from error
    if file.purpose is not FilePurpose.BATCH:
        raise InvalidValue(
            f"input_file_id: expected a file with purpose 'batch', got one with {file.purpose.value!r}",
            param="input_file_id",
        )
    return file


def _parse(batch_id: str) -> BatchId:
    """A batch's id from a path. What cannot be one names no batch."""
    try:
        return parse_batch_id(batch_id)
    except InvalidId as error:
        raise no_such_batch(batch_id) from error
