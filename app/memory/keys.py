"""Names of every Redis key of a memory. The tenant is the hash tag, so a script may touch jobs and memory together.

What is left to do after something was forgotten is named in the tenant's remains: `image:<image id>`, `log:<latent
space>:<name>:<token>` for a discarded log, `compact:<latent space>:<name>` for a log that is to be written anew,
`prompts:<latent space>:<name>` for one whose prompts are to be taken out.
"""

from dataclasses import dataclass

from app.domain.ids import LatentSpace, MemoryId, MemoryName, TenantId, memory_id

COMMON = ("app.memory/common",)  # what stands before the scripts that take entries out of memories
MAX_RANGES = 1000
DELETED_TTL_S = 30 * 86_400
FORGETTING_KEY = "sparke:forgetting"
"""Sorted set of tenants by when they forgot something last: from before they did until an hour after all is removed."""
DATA_FORMAT_KEY = "sparke:data-format"
"""The number of the form that stored entries have, written at the first start. Lives for ever."""
MIGRATED_KEY = "sparke:data-migrated:2"
"""Set of the logs that a migration to this format has done. Lives until the migration is done."""
COUNTED_KEY = "sparke:memory-entries"  # entries by latent space as counted last, in JSON. Lives for ever
COUNT_LEASE_KEY = "sparke:memory-count"  # held while somebody counts them, and until the next count is due
REMAINS_SWEEP_KEY = "sparke:remains-sweep"  # held by whoever sweeps now; lives one interval


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
    """Hash of `version` (entries and acts of forgetting take one each), `created_at_ms`, what was forgotten last, settings.

    Those are `frozen`, `keep_prompts`, `max_entries` and `max_age_s`, where there are such. Prompts of entries up to
    `bare_version` are not shown any more, and are taken out. Lives as long as the memory; of one that was deleted the
    versions are remembered for DELETED_TTL_S. So they are under the old name of one that was renamed, with `renamed_to` and
    `renamed_version`, the version that the name had got by that; `renames` are all of that kind. And `snapshot_key`, 32 bytes,
    while workers' snapshots of it may be read. `compacted_after` is the act of forgetting after which its compaction was begun.
    """
    return f"sparke:{{t:{memory.tenant_id}}}:memory:{memory.latent_space}:{memory.name}:meta"


def index_key(tenant_id: TenantId) -> str:
    """Set of `<latent space>:<name>` of the tenant's memories, empty ones too. Lives for ever."""
    return f"sparke:{{t:{tenant_id}}}:memories"


def forgotten_key(memory: MemoryKey) -> str:
    """Sorted set of ranges `<first>-<last>` of versions, by the version that the act took. At most MAX_RANGES of them.

    Lives as long as the memory.
    """
    return f"sparke:{{t:{memory.tenant_id}}}:memory:{memory.latent_space}:{memory.name}:forgotten"


def discarded_key(memory: MemoryKey, token: str) -> str:
    """A log that was forgotten as a whole. Lives until the clean-up has read which images it names."""
    return f"sparke:{{t:{memory.tenant_id}}}:memory:{memory.latent_space}:{memory.name}:discarded:{token}"


def copy_key(memory: MemoryKey) -> str:
    """A log on its way to be written anew, without what was deleted. Lives until it takes the log's place."""
    return f"sparke:{{t:{memory.tenant_id}}}:memory:{memory.latent_space}:{memory.name}:copy"


def fork_key(tenant_id: TenantId, token: str) -> str:
    """Stream of the entries of a fork on its way. Lives an hour after its last write, or becomes a memory's log."""
    return f"sparke:{{t:{tenant_id}}}:memory-fork:{token}:log"


def rewritten_key(log: str) -> str:
    """A log on its way to be written anew with other bytes. Lives until it takes the log's place, else a day."""
    return f"{log}:rewritten"


def remains_key(tenant_id: TenantId) -> str:
    """Sorted set, all of score 0, of what is left of forgotten entries and has to be removed. Lives until it is."""
    return f"sparke:{{t:{tenant_id}}}:remains"


def index_member(memory: MemoryKey) -> str:
    """How a memory is named in its tenant's index."""
    return f"{memory.latent_space}:{memory.name}"
