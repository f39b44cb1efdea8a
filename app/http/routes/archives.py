"""Memories as archives: one leaves as a stream of bytes, and another service, or this one, takes it."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.domain.ids import (
    IMPORT_FORM,
    NAME_FORM,
    ImportId,
    parse_import_id,
)
from app.errors import InvalidId
from app.http.bodies.archive_answers import ImportAnswer, describe_import
from app.http.bodies.generation import to_memory_name
from app.http.bodies.memory_answers import MAX_VERSION
from app.http.course.imports import OCTETS, ImportQuery, receive_import
from app.http.deps import DepsOf
from app.http.guard.auditing import note
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with
from app.http.routes.files import disposition
from app.http.routes.memories import parse_memory
from app.memory.exporting import skip
from app.memory.importing import no_such_import

MAX_BYTE = 2**53

FromByte = Annotated[int, Query(ge=0, le=MAX_BYTE, description="The first byte of the archive that is sent.")]

EXPORT_DOCS: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "The archive's bytes",
            "headers": {
                "Content-Disposition": {
                    "description": "A name for the file, with the version.",
                    "required": True,
                    "schema": {"type": "string"},
                }
            },
            "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
        }
    }
}
IMPORT_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
}

router = APIRouter(prefix="/v1/memories", tags=["memories"])


@router.get(
    "/{memory_id}/export",
    response_class=Response,
    responses=fails_with(400, 404, 429),
    openapi_extra=EXPORT_DOCS,
)
async def export_memory(  # noqa: PLR0917 - the members of the query
    memory_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    version: Annotated[
        int | None, Query(ge=0, le=MAX_VERSION, description="As it was then; the current one if absent.")
    ] = None,
    from_byte: FromByte = 0,
) -> Response:
    """A memory as an archive, from `from_byte` on.

    With its `version` named, an archive is the same to the byte each time, unless something was forgotten meanwhile; so
    one that broke off goes on from the bytes that have come. Where it does not fit, its digests tell.
    """
    memory = parse_memory(memory_id, tenant_id)
    with ExitStack() as stack:
        stack.enter_context(deps.transfers.hold(tenant_id))
        export = await deps.memories.exporter.begin(memory, version)
        chunks = await skip(deps.memories.exporter.write(export), from_byte)
        filename = f"{memory.memory_id}-{export.header.version}.sparke"
        return _Export(chunks, stack.pop_all(), filename)


@router.post("/import", responses=fails_with(400, 408, 409, 413, 415, 429), openapi_extra=IMPORT_DOCS)
async def import_memory(  # noqa: PLR0917 - the members of the query
    request: Request,
    tenant_id: Tenant,
    deps: DepsOf,
    name: Annotated[
        str | None,
        Query(
            description="The memory's name; the archive's own if absent.",
            json_schema_extra={"pattern": NAME_FORM},
        ),
    ] = None,
    import_id: Annotated[
        str | None,
        Query(
            description="An id of yours, under which the import can be gone on with. Without one it leaves nothing when it"
            " breaks off.",
            json_schema_extra={"pattern": IMPORT_FORM},
        ),
    ] = None,
    from_byte: FromByte = 0,
) -> ImportAnswer:
    """Make a memory of an archive. It is there once all of it has come and was right, and not before.

    `from_byte` is where in the archive the body begins: at most what has come under this id, and what came before is
    passed over. A memory that has versions already is not written to: 409.
    """
    query = ImportQuery(
        None if name is None else to_memory_name(name, "name"), _parse_query_id(import_id), from_byte
    )
    with deps.transfers.hold(tenant_id):
        answer = describe_import(await receive_import(request, tenant_id, query, deps), deps)
        note(memory=answer.memory_id, num_entries=answer.num_entries)
        return answer


@router.get("/import/{import_id}", responses=fails_with(404))
async def show_import(import_id: str, tenant_id: Tenant, deps: DepsOf) -> ImportAnswer:
    """How far an import is. It can be read for some time after its last byte has come."""
    try:
        parsed = parse_import_id(import_id)
    except InvalidId as error:
        raise no_such_import(import_id) from error
    return describe_import(await deps.memories.importer.get(tenant_id, parsed), deps)


class _Export(StreamingResponse):
    """An archive on its way to a client. It holds its slot until it is over, however that comes."""

    def __init__(self, chunks: AsyncIterator[bytes], slot: ExitStack, filename: str) -> None:
        super().__init__(chunks, media_type=OCTETS, headers={"content-disposition": disposition(filename)})
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slot:
            await super().__call__(scope, receive, send)


def _parse_query_id(import_id: str | None) -> ImportId | None:
    try:
        return None if import_id is None else parse_import_id(import_id)
    except InvalidId as error:
        raise InvalidId(error.message, param="import_id") from error
