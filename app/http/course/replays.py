"""Replays that cannot succeed are refused before they wait for a worker, which would refuse them too."""

from collections.abc import Sequence

from app.domain.ids import LatentSpace, TenantId
from app.domain.request import Diversity, MemoryReading, MemorySelection, ReferenceSelection
from app.http.deps import Deps
from app.memory.keys import MemoryKey


async def check_replay(tenant_id: TenantId, space: LatentSpace, diversity: Diversity, deps: Deps) -> None:
    """Raises VersionGone and InvalidRequest for a version of a memory that cannot be read now; none named costs nothing."""
    also = enumerate(diversity.memory.also)
    named: Sequence[tuple[str, MemorySelection | MemoryReading | ReferenceSelection | None]] = (
        ("diversity.memory", diversity.memory),
        *((f"diversity.memory.also.{index}", memory) for index, memory in also),
        ("diversity.novelty", diversity.novelty),
        ("diversity.context", diversity.context),
    )
    for member, selection in named:
        if selection is not None and selection.version is not None:
            memory = MemoryKey(tenant_id, space, selection.name)
            await deps.memories.versions.resolve_version(memory, selection.version, member=member)
