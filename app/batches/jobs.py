"""Many jobs of one tenant in one round trip, by ids that follow from a batch's lines."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId
from app.domain.job import JobRecord, JobState
from app.jobs.codec import decode_record
from app.jobs.keys import job_key, waiting_key
from app.redis.errors import redis_errors


@redis_errors
async def read_states(redis: Redis, tenant_id: TenantId, job_ids: Sequence[JobId]) -> list[JobState | None]:
    """The states of jobs; None where one is not known. Raises StoreUnavailable."""
    async with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hget(job_key(tenant_id, job_id), "state")
        answers: Any = await pipeline.execute()
    return [None if state is None else JobState(state.decode()) for state in answers]


@redis_errors
async def count_waiting(redis: Redis, tenant_id: TenantId, model: ModelId) -> int:
    """How many jobs of a tenant wait for a model, in both lanes. Raises StoreUnavailable."""
    return int(await redis.zcard(waiting_key(tenant_id, model)))


@redis_errors
async def read_records(redis: Redis, tenant_id: TenantId, job_ids: Sequence[JobId]) -> list[JobRecord | None]:
    """What is known of jobs; None where one is not. Raises StoreUnavailable and CorruptRecord."""
    async with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hgetall(job_key(tenant_id, job_id))
        answers: Any = await pipeline.execute()
    return [
        decode_record(found, where=f"job {job_id}") if found else None
        for job_id, found in zip(job_ids, answers, strict=True)
    ]
