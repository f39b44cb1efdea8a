"""A tenant's jobs in a list, the newest first."""

from collections.abc import Sequence
from typing import Any

import structlog
from redis.asyncio import Redis

from app.domain.ids import JobId, TenantId
from app.domain.job import JobRecord
from app.errors import CorruptRecord
from app.jobs import codec, keys
from app.jobs.types import JobPage, JobQuery
from app.redis.errors import redis_errors

_PAGE_JOBS = 100
_MOST_LOOKS = 50  # pages that one call looks through for the few that a filter lets pass


class JobLister:
    """Reads the list of a tenant's interactive jobs. Methods raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @redis_errors
    async def list_jobs(self, tenant_id: TenantId, query: JobQuery) -> JobPage:
        """At most `limit` jobs, the newest first. A page may hold fewer, even none, while there are more.

        Cost: one command and one pipeline for each 100 jobs looked at, at most 5,000.
        """
        found: list[JobRecord] = []
        after = query.after
        for _ in range(_MOST_LOOKS):
            job_ids = await self._older(tenant_id, after)
            for job_id, record in zip(job_ids, await self._read(tenant_id, job_ids), strict=True):
                after = job_id
                if record is not None and _fits(record, query):
                    found.append(record)
                    if len(found) == query.limit:
                        return JobPage(tuple(found), after if await self._older(tenant_id, after) else None)
            if len(job_ids) < _PAGE_JOBS:
                return JobPage(tuple(found), None)
        return JobPage(tuple(found), after)

    @redis_errors
    async def read(self, tenant_id: TenantId, job_ids: Sequence[JobId]) -> list[JobRecord | None]:
        """The records of some jobs of any lane; None for one that is gone, cannot be read, or is a question. Cost: one pipeline."""
        return await self._read(tenant_id, list(job_ids))

    async def _older(self, tenant_id: TenantId, after: JobId | None) -> list[JobId]:
        newest = "+" if after is None else f"({after}"
        names: Any = await self._redis.zrevrangebylex(
            keys.jobs_key(tenant_id), newest, "-", start=0, num=_PAGE_JOBS
        )
        return [JobId(name.decode()) for name in names]

    async def _read(self, tenant_id: TenantId, job_ids: list[JobId]) -> list[JobRecord | None]:
        """The records; None for one that is gone or cannot be read. Those that are gone leave the list."""
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hgetall(keys.job_key(tenant_id, job_id))
        found: Any = await pipeline.execute() if job_ids else []
        gone = [job_id for job_id, fields in zip(job_ids, found, strict=True) if not fields]
        if gone:
            await self._redis.zrem(keys.jobs_key(tenant_id), *gone)
        return [_decode(job_id, fields) for job_id, fields in zip(job_ids, found, strict=True)]


def _decode(job_id: JobId, fields: dict[bytes, bytes]) -> JobRecord | None:
    try:
        record = codec.decode_record(fields, where=f"job {job_id}") if fields else None
    except CorruptRecord as error:
        structlog.get_logger().error("job_unreadable", job_id=job_id, error=error.message)
        return None
    return None if record is not None and record.job.kind.is_question else record


def _fits(record: JobRecord, query: JobQuery) -> bool:
    is_of_model = query.model is None or record.job.model == query.model
    return is_of_model and (query.state is None or record.state is query.state)
