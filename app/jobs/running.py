"""Which of a tenant's jobs run now, and when those have ended."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId
from app.domain.job import JobState
from app.jobs.keys import job_key, released_key
from app.jobs.place import queues_of
from app.redis.errors import redis_errors

_POLL_S = 0.1


class RunningJobs:
    """Looks at the tenant's released jobs, of which there are few at a time. Methods raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @redis_errors
    async def of(self, tenant_id: TenantId, models: Iterable[ModelId]) -> dict[JobId, int]:
        """The jobs that run now for some models, questions too, each with its fence. Cost: two pipelines."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for queue in queues_of(models):
                pipeline.zrange(released_key(tenant_id, queue), 0, -1)
            found: Any = await pipeline.execute()
        job_ids = [JobId(job_id.decode()) for released in found for job_id in released]
        return await self._still_running(tenant_id, job_ids)

    async def wait_ended(self, tenant_id: TenantId, running: Mapping[JobId, int], wait_s: float) -> int:
        """Returns once none of the jobs runs under the fence that it had, or after `wait_s`; how many still do then."""
        left = dict(running)
        until_s = time.monotonic() + wait_s
        while left:
            now = await self._read(tenant_id, left)
            left = {job_id: fence for job_id, fence in left.items() if now.get(job_id) == fence}
            remaining_s = until_s - time.monotonic()
            if not left or remaining_s <= 0:
                break
            await asyncio.sleep(min(_POLL_S, remaining_s))
        return len(left)

    @redis_errors
    async def _read(self, tenant_id: TenantId, job_ids: Iterable[JobId]) -> dict[JobId, int]:
        return await self._still_running(tenant_id, list(job_ids))

    async def _still_running(self, tenant_id: TenantId, job_ids: list[JobId]) -> dict[JobId, int]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(job_key(tenant_id, job_id), "state", "fence")
            found: Any = await pipeline.execute()
        records = zip(job_ids, found, strict=True)
        return {
            job_id: int(fence) for job_id, (state, fence) in records if state == JobState.RUNNING.encode()
        }
