"""Names and times to live of every Redis key of jobs and workers, and of the channels.

A key is tagged with its tenant `{t:…}`, its model `{m:…}` or `{workers}`: each tag is one slot of a Redis Cluster, and
a script touches one slot. Tenant ids have no slash or colon, so members and channels need no quoting. Where a key takes a
model, it takes the name of a queue: `app.jobs.place` says which there are.
"""

import hashlib

from app.domain.ids import JobId, ModelId, TenantId, WorkerId
from app.domain.job import Lane
from app.webhooks.keys import TELL

COMMON = (TELL, "app.jobs/common")  # what stands before every script of a job's life
GROUP = "workers"  # the consumer group of every model's stream
RECLAIMER = (
    "reclaimer"  # the consumer that holds entries whose lease has expired, while a worker sees to them
)
BATCH_FROM = (
    10**13
)  # places of the batch lane begin here, where milliseconds reach the year 2286; as in common.lua
FINISHED_CHANNEL = "sparke:finished"  # messages `<tenant>/<job>`: the job is in a terminal state
EVENTS_CHANNEL = "sparke:events"  # messages `<tenant>/<job>`: something but its end was told of the job
WAKE_CHANNEL = "sparke:wake"  # messages `<model>`: its workers may find jobs


def job_key(tenant_id: TenantId, job_id: JobId) -> str:
    """Hash: the job's record. Lives until it is terminal, then `job_ttl_s`; that of a question `question_ttl_s`.

    Its field `ended_by` is the name under which the end was asked for, see `app.jobs.end_names`.
    """
    return f"sparke:{{t:{tenant_id}}}:job:{job_id}"


def waiting_key(tenant_id: TenantId, model: ModelId) -> str:
    """Sorted set of job ids by `place_of` their creation: accepted, not yet released. Bounded by max_waiting_per_tenant."""
    return f"sparke:{{t:{tenant_id}}}:waiting:{model}"


def released_key(tenant_id: TenantId, model: ModelId) -> str:
    """Sorted set of job ids by `place_of` their release: released, not yet terminal.

    What workers hold, since they release what they take; in each lane bounded by max_released_per_tenant, where that is set.
    """
    return f"sparke:{{t:{tenant_id}}}:released:{model}"


def stream_key(model: ModelId) -> str:
    """Stream of released jobs, fields `t` and `j`. Trimmed below the oldest pending entry."""
    return f"sparke:{{m:{model}}}:stream"


def events_key(tenant_id: TenantId, job_id: JobId) -> str:
    """Stream of what happened to a job, of its interactive lane only. Lives as long as the record."""
    return f"sparke:{{t:{tenant_id}}}:job:{job_id}:events"


def jobs_key(tenant_id: TenantId) -> str:
    """Sorted set of a tenant's interactive jobs, in order of their ids; some of them may have no record any more.

    Lives `job_list_ttl_s` after the last acceptance, and each name in it about as long.
    """
    return f"sparke:{{t:{tenant_id}}}:jobs"


def idempotency_key(tenant_id: TenantId, given: str) -> str:
    """Hash: the first job of an idempotency key, and the fingerprint of its request. Lives `idempotency_ttl_s`."""
    digest = hashlib.sha256(given.encode()).hexdigest()
    return f"sparke:{{t:{tenant_id}}}:idempotency:{digest}"


def turns_key(model: ModelId, lane: Lane = Lane.INTERACTIVE) -> str:
    """Sorted set of tenants that have something waiting in the lane; the lowest score has the next turn."""
    return f"sparke:{{m:{model}}}:turns:{lane}"


def lane_range(lane: Lane) -> tuple[int, int]:
    """The scores of a lane in the tenant's sorted sets: from the first, below the second."""
    return (0, BATCH_FROM) if lane is Lane.INTERACTIVE else (BATCH_FROM, 2 * BATCH_FROM)


def place_of(at_ms: int, lane: Lane) -> int:
    """The score of a job in the tenant's sorted sets, by a time within its lane."""
    return lane_range(lane)[0] + at_ms


def time_of(place: float) -> float:
    """The time, in Unix milliseconds, that a place was made of."""
    return place % BATCH_FROM


def open_key(model: ModelId) -> str:
    """Sorted set of `<tenant>/<job>` by time of creation: every job from before its acceptance until its end.

    The total bound, the backlog, and where the sweep looks. Bounded by max_open.
    """
    return f"sparke:{{m:{model}}}:open"


def dead_key(model: ModelId) -> str:
    """Stream of dead letters, fields as in `DeadLetter`. Trimmed to about max_dead_letters."""
    return f"sparke:{{m:{model}}}:dead"


def sweep_key(model: ModelId) -> str:
    """Held by the worker that sweeps now. Lives one sweep interval."""
    return f"sparke:{{m:{model}}}:sweep"


def worker_key(worker_id: WorkerId) -> str:
    """What a live worker says of itself, JSON. Lives one heartbeat TTL; gone means dead."""
    return f"sparke:{{workers}}:{worker_id}"


def worker_index_key() -> str:
    """Sorted set of worker ids by last heartbeat; the dead are dropped when it is read."""
    return "sparke:{workers}"
