"""Files: send one, list them, see what is known of one, get its bytes, delete it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from app.domain.file import StoredFile, expiry_ms
from app.domain.ids import FILE_FORM, FileId, make_file_id, parse_file_id
from app.errors import InvalidId, StorageFull, StoreUnavailable, TooManyFiles
from app.files.keys import content_key
from app.files.store import FileQuery, no_such_file
from app.http.bodies.answers import FileAnswer, FileDeletedAnswer, FilesAnswer, describe_file
from app.http.deps import Deps, DepsOf
from app.http.forms.uploads import Upload, receive_upload
from app.http.guard.auth import Tenant
from app.http.openapi.document import CONTENT_DOCS, UPLOAD_DOCS
from app.http.openapi.error_docs import fails_with

MAX_LISTED = 10_000
AnyPurpose = Literal[
    "assistants",
    "assistants_output",
    "batch",
    "batch_output",
    "evals",
    "fine-tune",
    "fine-tune-results",
    "user_data",
    "vision",
]

router = APIRouter(prefix="/v1/files", tags=["files"])

_log = structlog.get_logger(__name__)


@router.post("", responses=fails_with(400, 408, 413, 415, 429), openapi_extra=UPLOAD_DOCS)
async def upload_file(request: Request, tenant_id: Tenant, deps: DepsOf) -> FileAnswer:
    """Send a file of requests for a batch.

    It goes to the object store as it comes, and is there once the answer is. Where sending breaks off, nothing is.
    """
    with deps.uploads.hold(tenant_id):
        await deps.files.check_room(tenant_id)
        created_at_ms = deps.now_ms()
        file_id = make_file_id(created_at_ms, deps.randomness(12))
        upload = await _store_bytes(request, content_key(tenant_id, file_id), deps)
    expires_after = upload.form.expires_after
    ttl_s = expires_after.seconds if expires_after else deps.settings.file_ttl_s
    file = StoredFile(
        tenant_id=tenant_id,
        file_id=file_id,
        filename=upload.filename,
        purpose=upload.form.purpose,
        size_bytes=upload.size_bytes,
        created_at_ms=created_at_ms,
        expires_at_ms=expiry_ms(created_at_ms, ttl_s),
    )
    await _record(file, deps)
    return describe_file(file)


@router.get("", responses=fails_with(400))
async def list_files(  # noqa: PLR0917 - the members of the query
    tenant_id: Tenant,
    deps: DepsOf,
    after: Annotated[
        str | None,
        Query(
            description="The id of the file before the first one.", json_schema_extra={"pattern": FILE_FORM}
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = MAX_LISTED,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation; the newest first.")] = "desc",
    purpose: Annotated[AnyPurpose | None, Query(description="Only files of it.")] = None,
) -> FilesAnswer:
    """The files that are there. A cursor stays good when its own file has gone."""
    try:
        cursor = None if after is None else parse_file_id(after)
    except InvalidId as error:
        raise InvalidId(error.message, param="after") from error
    page = await deps.files.list_files(
        tenant_id, FileQuery(limit=limit, order=order, after=cursor, purpose=purpose)
    )
    data = [describe_file(file) for file in page.files]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return FilesAnswer(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


@router.get("/{file_id}", responses=fails_with(404))
async def show_file(file_id: str, tenant_id: Tenant, deps: DepsOf) -> FileAnswer:
    """What is known of a file."""
    return describe_file(await deps.files.get(tenant_id, _parse(file_id)))


@router.get(
    "/{file_id}/content", response_class=Response, responses=fails_with(404), openapi_extra=CONTENT_DOCS
)
async def show_content(file_id: str, tenant_id: Tenant, deps: DepsOf) -> Response:
    """A file's bytes, as they were sent."""
    file = await deps.files.get(tenant_id, _parse(file_id))
    chunks = await deps.contents.read(content_key(tenant_id, file.file_id))
    headers = {
        "content-length": str(file.size_bytes),
        "content-disposition": disposition(file.filename),
    }
    return StreamingResponse(_count(chunks, deps), media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}", responses=fails_with(404))
async def delete_file(file_id: str, tenant_id: Tenant, deps: DepsOf) -> FileDeletedAnswer:
    """Delete a file. A second time there is none to delete: 404."""
    parsed = _parse(file_id)
    await deps.files.remove(tenant_id, parsed)
    deps.metrics.files_deleted.inc()
    await _discard(content_key(tenant_id, parsed), deps)
    return FileDeletedAnswer(id=parsed)


def disposition(filename: str) -> str:
    """Content-Disposition for any name: in ASCII for old clients, exactly for the others (RFC 6266)."""
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


async def _store_bytes(request: Request, key: str, deps: Deps) -> Upload:
    """Brings the body's file to the object store, or leaves nothing there."""
    settings = deps.settings
    writer = deps.contents.writer(key)
    deps.metrics.file_uploads_in_flight.inc()
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            upload = await receive_upload(
                request,
                writer,
                max_file_bytes=settings.max_file_bytes,
                timeout_s=settings.upload_timeout_s,
            )
        await writer.finish()
    except TimeoutError as error:
        raise HTTPException(
            408, f"an upload takes at most {settings.upload_timeout_s:g} s", {"connection": "close"}
        ) from error
    finally:
        writer.abandon()
        deps.metrics.file_uploads_in_flight.dec()
    return upload


async def _record(file: StoredFile, deps: Deps) -> None:
    """Writes the record. Where Redis does not say whether it did, the bytes stay, and the sweep finds out."""
    try:
        await deps.files.add(file)
    except (TooManyFiles, StorageFull):
        await _discard(content_key(file.tenant_id, file.file_id), deps)
        raise
    deps.metrics.files_uploaded.inc()
    deps.metrics.file_bytes.labels("in").inc(file.size_bytes)


async def _discard(key: str, deps: Deps) -> None:
    """Removes the bytes of what is no file; what cannot be removed now is left to the sweep."""
    try:
        await deps.contents.delete(key)
    except StoreUnavailable as error:
        deps.metrics.store_errors.labels("files").inc()
        _log.warning("file_left_to_sweep", key=key, error=error.message)


async def _count(chunks: AsyncIterator[bytes], deps: Deps) -> AsyncIterator[bytes]:
    counted = deps.metrics.file_bytes.labels("out")
    async for chunk in chunks:
        yield chunk
        counted.inc(len(chunk))


def _parse(file_id: str) -> FileId:
    """A file's id from a path. What cannot be one names no file."""
    try:
        return parse_file_id(file_id)
    except InvalidId as error:
        raise no_such_file(file_id) from error
