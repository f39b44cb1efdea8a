"""Names and times to live of every Redis key of batches, where their inputs lie, and the ids made of a batch's own.

A key is tagged with its tenant `{t:…}`: one slot of a Redis Cluster. Only the set of all open batches is in another.
"""

import hashlib

from app.domain.batch import Batch
from app.domain.ids import (
    BatchId,
    FileId,
    JobId,
    TenantId,
    make_file_id,
    make_job_id,
    parse_batch_id,
)
from app.errors import InvalidId
from app.redis.members import member_of, parse_member

FOLDER = "batches"  # of the object store
SWEEP_KEY = "sparke:batch-sweep"  # held by whoever sweeps copies of inputs now; lives one interval
OPEN_KEY = "sparke:batches"
"""Sorted set of `<tenant>/<batch>` by time of creation: every batch from before it is written until after it ended."""


def batch_key(tenant_id: TenantId, batch_id: BatchId) -> str:
    """Hash: the batch's record. Lives until the batch has ended, then as long as files do."""
    return f"sparke:{{t:{tenant_id}}}:batch:{batch_id}"


def lease_key(tenant_id: TenantId, batch_id: BatchId) -> str:
    """The token of the process that drives the batch now. Lives one lease, and is extended."""
    return f"sparke:{{t:{tenant_id}}}:batch-lease:{batch_id}"


def flight_key(tenant_id: TenantId, batch_id: BatchId) -> str:
    """Set of the numbers of lines that are jobs and not counted yet. Bounded; lives until the batch has ended."""
    return f"sparke:{{t:{tenant_id}}}:batch-flight:{batch_id}"


def bad_key(tenant_id: TenantId, batch_id: BatchId) -> str:
    """Bitmap of lines with a fault, by number: 6 KB for 50,000. Lives until the batch has ended, a few days at most."""
    return f"sparke:{{t:{tenant_id}}}:batch-bad:{batch_id}"


def refused_key(tenant_id: TenantId, batch_id: BatchId) -> str:
    """Hash of the lines that were refused when they were to become jobs, JSON by number. Lives until the batch has ended.

    Bounded by max_held_back, but for those that never fit, of which there may be as many as lines.
    """
    return f"sparke:{{t:{tenant_id}}}:batch-refused:{batch_id}"


def index_key(tenant_id: TenantId) -> str:
    """Sorted set of batch ids, all of score 0: ids sort by creation. Emptied as batches expire."""
    return f"sparke:{{t:{tenant_id}}}:batches"


def open_ids_key(tenant_id: TenantId) -> str:
    """Set of the ids of a tenant's batches that have not ended. Bounded by max_open_batches_per_tenant."""
    return f"sparke:{{t:{tenant_id}}}:batches-open"


def expiries_key(tenant_id: TenantId) -> str:
    """Sorted set of the ids of ended batches by when their records go."""
    return f"sparke:{{t:{tenant_id}}}:batch-expiries"


def input_key(tenant_id: TenantId, batch_id: BatchId) -> str:
    """Where a batch's own copy of its input lies in the object store."""
    return f"{FOLDER}/{member_of(tenant_id, batch_id)}"


def parse_input_key(key: str) -> tuple[TenantId, BatchId] | None:
    """The tenant and batch of an `input_key`; None for what is not ours."""
    folder, _, member = key.partition("/")
    try:
        return parse_member(member.encode(), parse_batch_id) if folder == FOLDER else None
    except InvalidId:
        return None


def line_job_id(batch: Batch, line: int) -> JobId:
    """The job of a line. It follows from batch and line, so the line cannot become two jobs."""
    return make_job_id(batch.created_at_ms, _derive(batch, f"line {line}", num_bytes=8))


def line_seed_bytes(batch: Batch, line: int, num_bytes: int) -> bytes:
    """Randomness of a line that names no seed: the same whenever the line is read."""
    return _derive(batch, f"seed of line {line}", num_bytes=num_bytes)


def made_file_id(batch: Batch, what: str, at_ms: int) -> FileId:
    """The id of a file that the batch makes: the same each time it is made."""
    return make_file_id(at_ms, _derive(batch, what, num_bytes=12))


def _derive(batch: Batch, what: str, *, num_bytes: int) -> bytes:
    return hashlib.sha256(f"{batch.batch_id}/{what}".encode()).digest()[:num_bytes]
