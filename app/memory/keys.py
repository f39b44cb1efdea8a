"""Names of every Redis key of a memory. The tenant is the hash tag, so a script may touch jobs and memory together."""

from dataclasses import dataclass

from app.domain.ids import LatentSpace, MemoryId, MemoryName, TenantId, memory_id


@dataclass(frozen=True, slots=True)
class MemoryKey:
    """Which memory: entries of different latent spaces are never compared, so the space is part of the name."""

    tenant_id: TenantId
    latent_space: LatentSpace
    name: MemoryName

    @property
    def memory_id(self) -> MemoryId:
        """The memory's id among its tenant's."""
        return memory_id(self.latent_space, self.name)

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.latent_space}/{self.name}"


def log_key(memory: MemoryKey) -> str:
    """Stream of entries with ids `<version>-0` and one field `e`. Lives for ever."""
    return f"sparke:{{t:{memory.tenant_id}}}:memory:{memory.latent_space}:{memory.name}:log"


def meta_key(memory: MemoryKey) -> str:
    """Hash of `version` (the number of entries ever appended) and `created_at_ms`. Lives for ever."""
    return f"sparke:{{t:{memory.tenant_id}}}:memory:{memory.latent_space}:{memory.name}:meta"


def index_key(tenant_id: TenantId) -> str:
    """Set of `<latent space>:<name>` of the tenant's memories that hold something. Lives for ever."""
    return f"sparke:{{t:{tenant_id}}}:memories"


def index_member(memory: MemoryKey) -> str:
    """How a memory is named in its tenant's index."""
    return f"{memory.latent_space}:{memory.name}"
