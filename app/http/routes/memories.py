"""Memories: what a tenant's images are pushed away from, seen and shaped by the tenant."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from app.domain.ids import MEMORY_FORM, MemoryId, TenantId, parse_memory_id
from app.errors import InvalidId
from app.http.auth import Tenant
from app.http.deps import DepsOf
from app.http.error_docs import fails_with
from app.http.memory_answers import (
    EntriesAnswer,
    MemoriesAnswer,
    MemoryAnswer,
    describe_entries,
    describe_memory,
)
from app.http.showing import base_url_of
from app.memory.keys import MemoryKey
from app.memory.overview import EntryQuery, no_such_memory

MAX_LISTED = 100
MAX_VERSION = 2**53

Version = Annotated[int | None, Query(ge=0, le=MAX_VERSION, description="The version before the first one.")]

router = APIRouter(prefix="/v1/memories", tags=["memories"])


@router.get("", responses=fails_with(400))
async def list_memories(
    tenant_id: Tenant,
    deps: DepsOf,
    after: Annotated[
        str | None,
        Query(
            description="The id of the memory before the first one.",
            json_schema_extra={"pattern": MEMORY_FORM},
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 20,
) -> MemoriesAnswer:
    """Your memories in order of their ids. A cursor stays good when its own memory has gone."""
    page = await deps.memories.list_memories(tenant_id, limit, _parse_cursor(after))
    data = [describe_memory(stats) for stats in page.memories]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return MemoriesAnswer(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


@router.get("/{memory_id}", responses=fails_with(404))
async def show_memory(memory_id: str, tenant_id: Tenant, deps: DepsOf) -> MemoryAnswer:
    """A memory as it stands."""
    return describe_memory(await deps.memories.get(parse_memory(memory_id, tenant_id)))


@router.get("/{memory_id}/entries", responses=fails_with(400, 404))
async def list_entries(  # noqa: PLR0917 - the members of the query
    request: Request,
    memory_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    after: Version = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By version; the newest first.")] = "desc",
) -> EntriesAnswer:
    """What a memory holds. Versions have gaps where something was forgotten."""
    memory = parse_memory(memory_id, tenant_id)
    page = await deps.memories.list_entries(memory, EntryQuery(limit, order, after))
    base_url = base_url_of(request, deps)
    data = await describe_entries(tenant_id, page.entries, deps, base_url=base_url)
    ends = (data[0].version, data[-1].version) if data else (None, None)
    return EntriesAnswer(data=data, first_version=ends[0], last_version=ends[1], has_more=page.has_more)


def parse_memory(memory_id: str, tenant_id: TenantId) -> MemoryKey:
    """The tenant's memory that a path names. What cannot be an id names none."""
    try:
        return MemoryKey(tenant_id, *parse_memory_id(memory_id))
    except InvalidId as error:
        raise no_such_memory(memory_id) from error


def _parse_cursor(after: str | None) -> MemoryId | None:
    if after is None:
        return None
    try:
        parse_memory_id(after)
    except InvalidId as error:
        raise InvalidId(error.message, param="after") from error
    return MemoryId(after)
