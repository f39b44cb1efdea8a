"""Tenants' memories: a worker's copies, bounds of their number and of their archives."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field


class Memories(BaseModel):
    """Memories."""

    READ_BY: ClassVar[Mapping[str, str]] = {
        "": "API",
        "memory_cache_bytes": "workers",
        "memory_snapshots_dir": "workers",
        "memory_snapshots_bytes": "workers",
        "memory_snapshots_interval_s": "workers",
    }

    memory_cache_bytes: int = Field(
        2 * 2**30, ge=1, description="Host memory of a worker for its copies of tenants' memories."
    )
    memory_snapshots_dir: Path | None = Field(
        None,
        description="Folder for a worker's encrypted snapshots of large memories, to start from. None: none are kept,"
        " but by `sparke serve` in `snapshots` of data_dir.",
    )
    memory_snapshots_bytes: int = Field(
        8 * 2**30, ge=0, description="Most bytes of snapshots; those used least recently go. 0 keeps none."
    )
    memory_snapshots_interval_s: float = Field(
        600.0, ge=1, le=86_400, description="How often a worker looks which snapshots to write."
    )
    max_memories_per_tenant: int = Field(
        1000, ge=1, le=100_000, description="Memories that one tenant may have at a time."
    )
    max_transfers_per_tenant: int = Field(
        4,
        ge=1,
        le=1000,
        description="Exports, imports and forks of memories that one tenant may have under way at one API process.",
    )
    max_import_bytes: int = Field(
        2 * 2**30,
        ge=1,
        description="Largest archive of a memory that is taken; Redis has to hold its entries.",
    )
    max_imports_per_tenant: int = Field(
        4, ge=1, le=1000, description="Imports of one tenant that may be unfinished."
    )
    import_ttl_s: int = Field(
        3600,
        ge=60,
        le=604_800,
        description="How long an import that broke off waits to be gone on with, and how long one that ended can be read.",
    )
