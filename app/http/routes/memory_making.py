"""Memories that a tenant makes: new ones that hold nothing, and forks of those that are there."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Request

from app.domain.ids import MemoryName
from app.errors import MemoryFull
from app.http.bodies.json_body import read_json
from app.http.bodies.memory_answers import MemoryAnswer, describe_memory
from app.http.bodies.memory_bodies import CreateBody, ForkBody
from app.http.deps import Deps, DepsOf
from app.http.guard.auditing import note
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with
from app.http.openapi.memory_docs import CREATE_DOCS, FORK_DOCS
from app.http.routes.memories import parse_memory
from app.memory.keys import MemoryKey

router = APIRouter(prefix="/v1/memories", tags=["memories"])
_log = structlog.get_logger(__name__)


async def read_create_body(request: Request, _tenant: Tenant, deps: DepsOf) -> CreateBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, CreateBody, max_bytes=deps.settings.max_body_bytes)


@router.post("", status_code=201, responses=fails_with(400, 404, 409, 413, 415), openapi_extra=CREATE_DOCS)
async def create_memory(
    tenant_id: Tenant, deps: DepsOf, body: Annotated[CreateBody, Depends(read_create_body)]
) -> MemoryAnswer:
    """Make a memory that holds nothing, with its settings.

    A request that names one which is not there makes it too, without any. Where the name is taken: 409. Under the name of one
    that was deleted, within 30 days, it goes on with its versions.
    """
    memory = MemoryKey(tenant_id, body.space_in(deps.catalogue), MemoryName(body.name))
    note(memory=memory.memory_id)
    await deps.memories.maker.create(memory, body.settings())
    return describe_memory(await deps.memories.overview.get(memory))


async def read_fork_body(request: Request, _tenant: Tenant, deps: DepsOf) -> ForkBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, ForkBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "/{memory_id}/fork",
    status_code=201,
    responses=fails_with(400, 404, 409, 413, 415, 429),
    openapi_extra=FORK_DOCS,
)
async def fork_memory(
    memory_id: str, tenant_id: Tenant, deps: DepsOf, body: Annotated[ForkBody, Depends(read_fork_body)]
) -> MemoryAnswer:
    """Make a memory of what this one holds, or held at a version. It is there once all of its entries are, and not before.

    Versions and settings stay; it is not frozen. A replay of a version up to the one it is of gives the same images from
    either. From then on each goes its own way: what is forgotten in one stays in the other, unless that is asked for; but the
    images are the same, and go with whichever entry is forgotten first.
    """
    source = parse_memory(memory_id, tenant_id)
    target = MemoryKey(tenant_id, source.latent_space, MemoryName(body.name))
    note(fork=target.memory_id)
    with deps.transfers.hold(tenant_id):
        most = (await deps.desk.quotas.of(tenant_id)).max_memory_entries
        await _check_room(most, source, deps, version=body.version)
        await deps.memories.forker.fork(source, target, body.version, most_entries=most)
    stats = await deps.memories.overview.get(target)
    _log.info("memory_forked", memory=str(source), fork=str(target), num_entries=stats.num_entries)
    return describe_memory(stats)


async def _check_room(most: int | None, source: MemoryKey, deps: Deps, *, version: int | None) -> None:
    """Raises NotFound, InvalidRequest, and MemoryFull where a quota has no room for the fork's entries: before it is made."""
    header = (await deps.memories.exporter.begin(source, version)).header
    num_held = 0 if most is None else await deps.memories.overview.count_entries(source.tenant_id)
    if most is not None and num_held + header.num_entries > most:
        raise MemoryFull(
            f"your memories hold {num_held} entries of {most}, and this fork would add {header.num_entries}; forget some,"
            " or fork an earlier version"
        )
