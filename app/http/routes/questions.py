"""What of a memory only a model can tell: asked of a worker, and waited for."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.domain.job import JobKind
from app.domain.question import SearchResult
from app.http.asking import ask, choose_model
from app.http.auth import Tenant
from app.http.deps import DepsOf
from app.http.error_docs import fails_with
from app.http.json_body import read_json
from app.http.memory_answers import describe_entries
from app.http.openapi import SEARCH_DOCS
from app.http.question_answers import FoundAnswer, FoundEntriesAnswer, SearchBody
from app.http.routes.memories import parse_memory
from app.http.showing import base_url_of

router = APIRouter(prefix="/v1/memories", tags=["memories"])


async def read_search_body(request: Request, _tenant: Tenant, deps: DepsOf) -> SearchBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, SearchBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "/{memory_id}/search",
    responses=fails_with(400, 404, 409, 410, 413, 415, 504),
    openapi_extra=SEARCH_DOCS,
)
async def search(
    request: Request,
    memory_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    body: Annotated[SearchBody, Depends(read_search_body)],
) -> FoundEntriesAnswer:
    """The entries whose prompts are nearest to this one, as a model understands them.

    It waits for the batch of images that a worker is at, since the prompt goes through the model.
    """
    memory = parse_memory(memory_id, tenant_id)
    await deps.memories.overview.check_there(memory)
    spec = await choose_model(body.model, memory.latent_space, deps)
    if body.version is not None:
        await deps.memories.versions.resolve_version(memory, body.version, member="")
    question = body.to_request(memory.name, spec)
    record = await ask(request, tenant_id, question, kind=JobKind.SEARCH, deps=deps)
    if not isinstance(record.result, SearchResult):
        raise TypeError(f"expected what was found, got {type(record.result).__name__}")
    similarity = {one.version: one.similarity for one in record.result.found}
    there = await deps.memories.overview.read_entries(memory, list(similarity))
    found = [(version, there[version]) for version in similarity if version in there]
    described = await describe_entries(tenant_id, found, deps, base_url=base_url_of(request, deps))
    return FoundEntriesAnswer(
        data=[FoundAnswer(**entry.model_dump(), similarity=similarity[entry.version]) for entry in described],
        model=spec.model_id,
        memory_version=record.result.memory_version,
    )
