"""A tenant's file: what is known of it. Its bytes lie in the object store."""

from dataclasses import dataclass
from enum import StrEnum

from app.domain.ids import FileId, TenantId

MIN_FILE_TTL_S = 3600
MAX_FILE_TTL_S = 30 * 86_400


class FilePurpose(StrEnum):
    """What a file is for, in the words of the OpenAI API."""

    BATCH = "batch"  # lines of requests, uploaded
    BATCH_OUTPUT = "batch_output"  # lines of answers or errors, made by a batch


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is there. Created when its upload began; times are Unix milliseconds."""

    tenant_id: TenantId
    file_id: FileId
    filename: str
    purpose: FilePurpose
    size_bytes: int
    created_at_ms: int
    expires_at_ms: int


def expiry_ms(created_at_ms: int, ttl_s: int) -> int:
    """When a file ends: so many seconds after the second in which it was created, as both are told."""
    return (created_at_ms // 1000 + ttl_s) * 1000
