"""Names of the Redis keys of imports: memories on their way in, which nobody reads yet. In the slot of their tenant."""

from app.domain.ids import ImportId, TenantId


def import_key(tenant_id: TenantId, import_id: ImportId) -> str:
    """Hash of an import: `record`, `offset` of the archive's bytes that are written, `memory` once that is there.

    Lives for the time to live of imports after its last write.
    """
    return f"sparke:{{t:{tenant_id}}}:memory-import:{import_id}"


def staging_key(tenant_id: TenantId, import_id: ImportId) -> str:
    """Stream of the entries that have come, as a memory's log has them. Lives as the hash, or becomes that log."""
    return f"sparke:{{t:{tenant_id}}}:memory-import:{import_id}:log"


def imports_key(tenant_id: TenantId) -> str:
    """Sorted set of the tenant's unfinished imports by when they expire. Lives as long as the last of them."""
    return f"sparke:{{t:{tenant_id}}}:memory-imports"
