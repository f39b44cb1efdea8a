"""Forgetting by a prompt: a worker finds which entries have prompts like it, and they are forgotten as any."""

from fastapi import Request

from app.domain.job import JobKind
from app.domain.question import SearchRequest, SearchResult
from app.http.bodies.memory_answers import MAX_FORGOTTEN, LikeBody
from app.http.course.asking import ask, choose_model
from app.http.deps import Deps
from app.memory.forgetting import Forgotten
from app.memory.keys import MemoryKey


async def forget_like(request: Request, memory: MemoryKey, like: LikeBody, deps: Deps) -> Forgotten:
    """Forgets all that a search for the prompt finds, a thousand at a time, until it finds no more.

    Raises as a search and as `MemoryForgetter` do; what was found by then is forgotten.
    """
    await deps.memories.overview.check_there(memory)
    spec = await choose_model(like.model, memory.latent_space, deps)
    question = SearchRequest(
        model=spec.model_id,
        memory=memory.name,
        prompt=like.prompt,
        limit=MAX_FORGOTTEN,
        min_similarity=like.min_similarity,
    )
    num_entries = 0
    while True:
        record = await ask(request, memory.tenant_id, question, kind=JobKind.SEARCH, deps=deps)
        if not isinstance(record.result, SearchResult):
            raise TypeError(f"expected what was found, got {type(record.result).__name__}")
        versions = [one.version for one in record.result.found]
        if not versions:
            return Forgotten(num_entries, await deps.memories.versions.version(memory))
        forgotten = await deps.memories.forgetter.forget_versions(memory, versions)
        num_entries += forgotten.num_entries
        if len(versions) < MAX_FORGOTTEN:
            return Forgotten(num_entries, forgotten.version)
