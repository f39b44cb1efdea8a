"""Memories: what a tenant's images are pushed away from, seen and shaped by the tenant."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from app.domain.ids import (
    MEMORY_FORM,
    ImageId,
    MemoryId,
    MemoryName,
    TenantId,
    parse_image_id,
    parse_memory_id,
)
from app.errors import InvalidId, NotFound
from app.http.bodies.json_body import read_json
from app.http.bodies.memory_answers import (
    MAX_VERSION,
    EntriesAnswer,
    ForgetBody,
    ForgottenAnswer,
    MemoriesAnswer,
    MemoryAnswer,
    MemoryDeletedAnswer,
    ShapeBody,
    describe_entries,
    describe_memory,
)
from app.http.bodies.showing import base_url_of
from app.http.course.forget_like import forget_like
from app.http.course.forgetting import acknowledge, remove_remains
from app.http.deps import DepsOf
from app.http.guard.auditing import note
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with
from app.http.openapi.memory_docs import FORGET_DOCS, SHAPE_DOCS
from app.memory.keys import MemoryKey
from app.memory.overview import EntryQuery, no_such_memory

MAX_LISTED = 100
MAX_WAIT_S = 60.0
_ENTRY_VERSION = re.compile(r"[1-9][0-9]{0,15}")

Wait = Annotated[
    float,
    Query(
        ge=0,
        le=MAX_WAIT_S,
        description="How long the answer may wait for jobs that run now and may have read what is forgotten.",
    ),
]
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
    page = await deps.memories.overview.list_memories(tenant_id, limit, _parse_cursor(after))
    data = [describe_memory(stats) for stats in page.memories]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return MemoriesAnswer(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


@router.get("/{memory_id}", responses=fails_with(404))
async def show_memory(memory_id: str, tenant_id: Tenant, deps: DepsOf) -> MemoryAnswer:
    """A memory as it stands."""
    return describe_memory(await deps.memories.overview.get(parse_memory(memory_id, tenant_id)))


async def read_shape_body(request: Request, _tenant: Tenant, deps: DepsOf) -> ShapeBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, ShapeBody, max_bytes=deps.settings.max_body_bytes)


@router.patch("/{memory_id}", responses=fails_with(400, 404, 409, 413, 415), openapi_extra=SHAPE_DOCS)
async def shape_memory(
    memory_id: str, tenant_id: Tenant, deps: DepsOf, body: Annotated[ShapeBody, Depends(read_shape_body)]
) -> MemoryAnswer:
    """Freeze or cap a memory, keep prompts in it, or give it another name.

    What is beyond a cap goes at once, the oldest first; its images and jobs stay for their time. Prompts that are not to be
    kept are not shown from then on, and are removed. A name that is taken is 409; under the old one nothing is found any more,
    and a job that begins from then on and names it makes a memory anew, while those that run now go on under the new one.
    """
    memory, changes = parse_memory(memory_id, tenant_id), body.changes()
    if body.name:
        note(name=body.name)
        renamed = await deps.memories.maker.rename(memory, MemoryName(body.name))
        return describe_memory(await deps.memories.overview.get(renamed))
    note(**{name: "none" if value is None else value for name, value in changes.items()})
    await deps.memories.shaper.shape(memory, changes)
    if "keep_prompts" in changes and not changes["keep_prompts"]:
        await remove_remains(memory, deps)
    return describe_memory(await deps.memories.overview.get(memory))


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
    page = await deps.memories.overview.list_entries(memory, EntryQuery(limit, order, after))
    base_url = base_url_of(request, deps)
    data = await describe_entries(tenant_id, page.entries, deps, base_url=base_url)
    ends = (data[0].version, data[-1].version) if data else (None, None)
    return EntriesAnswer(data=data, first_version=ends[0], last_version=ends[1], has_more=page.has_more)


async def read_forget_body(request: Request, _tenant: Tenant, deps: DepsOf) -> ForgetBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, ForgetBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "/{memory_id}/forget",
    responses=fails_with(400, 404, 413, 415, 429, 504),
    openapi_extra=FORGET_DOCS,
    operation_id="forget_entries",
)
async def forget(
    request: Request,
    memory_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    body: Annotated[ForgetBody, Depends(read_forget_body)],
    wait_s: Wait = 10.0,
) -> ForgottenAnswer:
    """Forget entries for good, with their images and what is known of their jobs.

    What is not there is passed over. A job whose images are not all forgotten keeps its record, with its prompt.
    """
    memory = parse_memory(memory_id, tenant_id)
    if body.versions is not None:
        forgotten = await deps.memories.forgetter.forget_versions(memory, body.versions)
    elif body.images is not None:
        forgetter = deps.memories.forgetter
        if body.everywhere:
            note(where="everywhere")
        forget_images = forgetter.forget_images_everywhere if body.everywhere else forgetter.forget_images
        forgotten = await forget_images(memory, map(ImageId, body.images))
    elif body.before is not None:
        forgotten = await deps.memories.forgetter.forget_before(memory, 1000 * body.before)
    elif body.like is not None:
        forgotten = await forget_like(request, memory, body.like, deps)
    else:
        forgotten = await deps.memories.forgetter.forget_all(memory)
    return await acknowledge(memory, forgotten, deps, act=body.act, wait_s=wait_s)


@router.delete("/{memory_id}/entries/{entry}", responses=fails_with(400, 404))
async def forget_entry(
    memory_id: str, entry: str, tenant_id: Tenant, deps: DepsOf, *, wait_s: Wait = 10.0
) -> ForgottenAnswer:
    """Forget one entry, by its version or by its image's id. A second time there is none: 404."""
    memory = parse_memory(memory_id, tenant_id)
    if _ENTRY_VERSION.fullmatch(entry):
        forgotten = await deps.memories.forgetter.forget_versions(memory, [int(entry)])
    else:
        forgotten = await deps.memories.forgetter.forget_images(memory, [_parse_image(entry)])
    if forgotten.num_entries == 0:
        raise _no_such_entry(entry)
    return await acknowledge(memory, forgotten, deps, act="entry", wait_s=wait_s)


@router.delete("/{memory_id}", responses=fails_with(400, 404))
async def delete_memory(
    memory_id: str, tenant_id: Tenant, deps: DepsOf, *, wait_s: Wait = 10.0
) -> MemoryDeletedAnswer:
    """Forget all of a memory, and the memory. What is being made is not remembered; what is asked for later makes it anew."""
    memory = parse_memory(memory_id, tenant_id)
    forgotten = await deps.memories.forgetter.delete(memory)
    answer = await acknowledge(memory, forgotten, deps, act="memory", wait_s=wait_s)
    return MemoryDeletedAnswer(**answer.model_dump())


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


def _parse_image(entry: str) -> ImageId:
    """An image's id from a path. What cannot be one names no entry."""
    try:
        parse_image_id(entry)
    except InvalidId as error:
        raise _no_such_entry(entry) from error
    return ImageId(entry)


def _no_such_entry(entry: str) -> NotFound:
    return NotFound(f"the memory has no entry {entry[:80]!r}; it was forgotten, or never was there")
