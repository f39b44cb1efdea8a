"""What of a memory only a model can tell: asked of a worker, and waited for."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.domain.job import JobKind
from app.domain.question import PreviewResult, SearchResult, StatsRequest, StatsResult
from app.http.bodies.json_body import read_json
from app.http.bodies.memory_answers import EntryAnswer, describe_entries
from app.http.bodies.question_answers import (
    MAX_SAMPLE,
    FoundAnswer,
    FoundEntriesAnswer,
    GrowthAnswer,
    GuidingAnswer,
    MemoryStatsAnswer,
    PreviewAnswer,
    PreviewBody,
    ScoresAnswer,
    SearchBody,
)
from app.http.bodies.showing import base_url_of
from app.http.course.asking import ask, choose_model
from app.http.course.replays import check_replay
from app.http.deps import Deps, DepsOf
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with
from app.http.openapi.memory_docs import PREVIEW_DOCS, SEARCH_DOCS
from app.http.routes.memories import parse_memory
from app.memory.keys import MemoryKey

MAX_POINTS = 64

router = APIRouter(prefix="/v1/memories", tags=["memories"])


async def read_search_body(request: Request, _tenant: Tenant, deps: DepsOf) -> SearchBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, SearchBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "/{memory_id}/search",
    responses=fails_with(400, 404, 409, 410, 413, 415, 504),
    openapi_extra=SEARCH_DOCS,
    operation_id="search_memory",
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
    described = await _entries(request, memory, list(similarity), deps)
    if not described:  # it may have been deleted, or renamed, since
        await deps.memories.overview.check_there(memory)
    return FoundEntriesAnswer(
        data=[FoundAnswer(**entry.model_dump(), similarity=similarity[entry.version]) for entry in described],
        model=spec.model_id,
        memory_version=record.result.memory_version,
    )


async def read_preview_body(request: Request, _tenant: Tenant, deps: DepsOf) -> PreviewBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, PreviewBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "/{memory_id}/preview",
    responses=fails_with(400, 404, 409, 410, 413, 415, 504),
    openapi_extra=PREVIEW_DOCS,
    operation_id="preview_guidance",
)
async def preview(
    request: Request,
    memory_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    body: Annotated[PreviewBody, Depends(read_preview_body)],
) -> PreviewAnswer:
    """What would guide images of a prompt now, and about how far it would push them, without making any.

    The neighbours are those that a request would have which reads the memory at this version.
    """
    memory = parse_memory(memory_id, tenant_id)
    await deps.memories.overview.check_there(memory)
    spec = await choose_model(body.model, memory.latent_space, deps)
    question = body.to_request(memory.name, spec)
    await check_replay(tenant_id, memory.latent_space, question.diversity, deps)
    result = (await ask(request, tenant_id, question, kind=JobKind.PREVIEW, deps=deps)).result
    if not isinstance(result, PreviewResult):
        raise TypeError(f"expected what would guide, got {type(result).__name__}")
    named = {one.version: one for one in result.neighbours}
    there = await _entries(request, memory, list(named), deps)
    return PreviewAnswer(
        model=spec.model_id,
        memory_version=result.memory_version,
        num_qualified=result.num_qualified,
        num_neighbours=result.num_neighbours,
        expected_push=result.expected_push,
        novelty_version=result.novelty_version,
        context_version=result.context_version,
        neighbours=[
            GuidingAnswer(
                **entry.model_dump(),
                similarity=named[entry.version].similarity,
                prompt_kernel=named[entry.version].prompt_kernel,
                weight=named[entry.version].weight,
            )
            for entry in there
        ],
    )


@router.get("/{memory_id}/stats", responses=fails_with(400, 404, 409, 504))
async def show_stats(  # noqa: PLR0917 - the members of the query
    request: Request,
    memory_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    sample: Annotated[
        int,
        Query(
            ge=0,
            le=MAX_SAMPLE,
            description="Scores of at most so many entries; 0: none, and no worker is asked.",
        ),
    ] = 1000,
    model: Annotated[
        str | None,
        Query(max_length=200, description="Whose kernels to use; a model that a worker has if absent."),
    ] = None,
) -> MemoryStatsAnswer:
    """How large a memory is, how it has grown, and how diverse it is. The sample of a version is always the same."""
    memory = parse_memory(memory_id, tenant_id)
    stats = await deps.memories.overview.get(memory)
    growth = await deps.memories.overview.read_growth(memory, stats.version, MAX_POINTS)
    return MemoryStatsAnswer(
        id=memory.memory_id,
        version=stats.version,
        num_entries=stats.num_entries,
        bytes=stats.size_bytes,
        growth=[GrowthAnswer(at=at_ms // 1000, version=version) for version, at_ms in growth],
        scores=await _score(request, memory, model, sample=sample, deps=deps) if sample else None,
    )


async def _score(
    request: Request, memory: MemoryKey, model: str | None, *, sample: int, deps: Deps
) -> ScoresAnswer:
    spec = await choose_model(model, memory.latent_space, deps)
    question = StatsRequest(spec.model_id, memory.name, sample)
    result = (await ask(request, memory.tenant_id, question, kind=JobKind.STATS, deps=deps)).result
    if not isinstance(result, StatsResult):
        raise TypeError(f"expected scores, got {type(result).__name__}")
    return ScoresAnswer.of(spec.model_id, result)


async def _entries(
    request: Request, memory: MemoryKey, versions: Sequence[int], deps: Deps
) -> list[EntryAnswer]:
    """The entries of some versions, in this order, as they are shown; those that were forgotten by now are not."""
    there = await deps.memories.overview.read_entries(memory, versions)
    found = [(version, there[version]) for version in versions if version in there]
    return await describe_entries(memory.tenant_id, found, deps, base_url=base_url_of(request, deps))
