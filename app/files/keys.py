"""Names and times to live of every Redis key of files, and where the bytes of one lie.

A key is tagged with its tenant `{t:…}`, as all that belongs to it: one slot of a Redis Cluster.
"""

from app.domain.ids import FileId, TenantId, parse_file_id, parse_tenant_id
from app.errors import InvalidId

FOLDER = "files"  # of the object store
SWEEP_KEY = "sparke:file-sweep"  # held by whoever sweeps now; lives one interval


def file_key(tenant_id: TenantId, file_id: FileId) -> str:
    """JSON: the file's record. Lives until the file expires."""
    return f"sparke:{{t:{tenant_id}}}:file:{file_id}"


def index_key(tenant_id: TenantId) -> str:
    """Sorted set of file ids, all of score 0: ids sort by creation. Bounded; lives as long as its last file."""
    return f"sparke:{{t:{tenant_id}}}:files"


def expiries_key(tenant_id: TenantId) -> str:
    """Sorted set of the same ids by when they expire. Lives as long as its last file."""
    return f"sparke:{{t:{tenant_id}}}:file-expiries"


def sizes_key(tenant_id: TenantId) -> str:
    """Hash of file id → bytes, of the same files. Lives as long as its last file."""
    return f"sparke:{{t:{tenant_id}}}:file-sizes"


def content_key(tenant_id: TenantId, file_id: FileId) -> str:
    """Where a file's bytes lie in the object store."""
    return f"{FOLDER}/{tenant_id}/{file_id}"


def parse_content_key(key: str) -> tuple[TenantId, FileId] | None:
    """The tenant and file of a `content_key`; None for what is not ours."""
    folder, _, place = key.partition("/")
    tenant_id, _, file_id = place.partition("/")
    try:
        return (parse_tenant_id(tenant_id), parse_file_id(file_id)) if folder == FOLDER else None
    except InvalidId:
        return None
