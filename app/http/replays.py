"""Replays that cannot succeed are refused before they wait for a worker, which would refuse them too."""

from app.domain.ids import LatentSpace, TenantId
from app.domain.request import Diversity
from app.http.deps import Deps
from app.memory.keys import MemoryKey


async def check_replay(tenant_id: TenantId, space: LatentSpace, diversity: Diversity, deps: Deps) -> None:
    """Raises VersionGone and InvalidRequest for a version of a memory that cannot be read now; none named costs nothing."""
    named = (
        ("diversity.memory", diversity.memory),
        ("diversity.novelty", diversity.novelty),
        ("diversity.context", diversity.context),
    )
    for member, selection in named:
        if selection is not None and selection.version is not None:
            memory = MemoryKey(tenant_id, space, selection.name)
            await deps.memories.versions.resolve_version(memory, selection.version, member=member)
