"""Replays that cannot succeed are refused before they wait for a worker, which would refuse them too."""

from app.domain.ids import TenantId
from app.domain.request import GenerationRequest
from app.http.deps import Deps
from app.memory.keys import MemoryKey


async def check_replay(tenant_id: TenantId, request: GenerationRequest, deps: Deps) -> None:
    """Raises VersionGone and InvalidRequest for a version of a memory that cannot be read now; none named costs nothing."""
    diversity = request.diversity
    named = (
        ("diversity.memory", diversity.memory),
        ("diversity.novelty", diversity.novelty),
        ("diversity.context", diversity.context),
    )
    space = deps.catalogue[request.model].latent_space
    for member, selection in named:
        if selection is not None and selection.version is not None:
            memory = MemoryKey(tenant_id, space, selection.name)
            await deps.memories.versions.resolve_version(memory, selection.version, member=member)
