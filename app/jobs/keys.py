"""Names and times to live of every Redis key of jobs and workers, and of the channels.

A key is tagged with its tenant `{t:…}`, its model `{m:…}` or `{workers}`: each tag is one slot of a Redis Cluster, and
a script touches one slot. Tenant ids have no slash or colon, so members and channels need no quoting.
"""

from app.domain.ids import JobId, ModelId, TenantId, WorkerId, parse_job_id, parse_tenant_id

GROUP = "workers"  # the consumer group of every model's stream
RECLAIMER = (
    "reclaimer"  # the consumer that holds entries whose lease has expired, while a worker sees to them
)
FINISHED_CHANNEL = "sparke:finished"  # messages `<tenant>/<job>`: the job is in a terminal state
WAKE_CHANNEL = "sparke:wake"  # messages `<model>`: its workers may find jobs


def job_key(tenant_id: TenantId, job_id: JobId) -> str:
    """Hash: the job's record. Lives until it is terminal, then `job_ttl_s`."""
    return f"sparke:{{t:{tenant_id}}}:job:{job_id}"


def waiting_key(tenant_id: TenantId, model: ModelId) -> str:
    """Sorted set of job ids by time of creation: accepted, not yet released. Bounded by max_waiting_per_tenant."""
    return f"sparke:{{t:{tenant_id}}}:waiting:{model}"


def released_key(tenant_id: TenantId, model: ModelId) -> str:
    """Sorted set of job ids by time of release: released, not yet terminal. Bounded by max_released_per_tenant."""
    return f"sparke:{{t:{tenant_id}}}:released:{model}"


def stream_key(model: ModelId) -> str:
    """Stream of released jobs, fields `t` and `j`. Trimmed below the oldest pending entry."""
    return f"sparke:{{m:{model}}}:stream"


def turns_key(model: ModelId) -> str:
    """Sorted set of tenants that have something waiting; the lowest score has the next turn."""
    return f"sparke:{{m:{model}}}:turns"


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


def open_member(tenant_id: TenantId, job_id: JobId) -> str:
    """How a job is named outside its tenant's slot."""
    return f"{tenant_id}/{job_id}"


def parse_open_member(member: bytes) -> tuple[TenantId, JobId]:
    """The tenant and job of an `open_member`. Raises InvalidId."""
    tenant_id, _, job_id = member.decode(errors="replace").partition("/")
    return parse_tenant_id(tenant_id), parse_job_id(job_id)
