"""What the API does with jobs: accept one, read one, cancel one, give one up."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import JobId, ModelId, TenantId
from app.domain.job import Job, JobRecord, JobState
from app.domain.quota import Quotas, QuotaSource, SameForAll
from app.domain.result import Failure
from app.errors import (
    IdempotencyMismatch,
    MemoryFull,
    NotFound,
    QueueFull,
    StorageFull,
    StoreUnavailable,
    TooManyMemories,
)
from app.jobs import codec, keys
from app.jobs.place import JobPlace
from app.jobs.room import NoBounds, Room
from app.jobs.transitions import Ended, Expectation, Transitions
from app.jobs.types import Accepted, DeadLetter, Idempotency, JobLimits
from app.jobs.workers import now_ms
from app.redis.errors import AWAY, redis_errors
from app.redis.replicas import Replicas, Written
from app.telemetry.metrics import Metrics


class JobStore:
    """Jobs of all tenants. All methods raise StoreUnavailable where Redis does not answer.

    Acceptances and cancels wait for replicas where those are asked for: NotReplicated, and they may yet stand.
    """

    def __init__(
        self,
        redis: Redis,
        limits: JobLimits,
        *,
        clock_ms: Callable[[], int] = now_ms,
        replicas: Replicas | None = None,
        quotas: QuotaSource | None = None,
        room: Room | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._redis = redis
        self._quotas = quotas or SameForAll(limits.quotas)
        self._room = room or NoBounds()
        self._replicas = replicas or Replicas(redis)
        self._steps = Transitions(redis, limits, clock_ms, replicas=self._replicas, metrics=metrics)

    @redis_errors
    async def accept(self, job: Job, idempotency: Idempotency | None = None) -> Accepted:
        """Makes the job durable and wakes workers; the same job again changes nothing. The job that stands for it.

        That is the first one where the idempotency key had one, however full everything is, unless that ended for want of time
        or of a worker: it has made nothing, and this one takes its place.
        Raises QueueFull, ImagesSpent, MemoryFull, TooManyMemories, StorageFull, and IdempotencyMismatch where the key stands
        for another request. After StoreUnavailable the job may have been accepted or not.
        """
        place, quotas = JobPlace.of(job), await self._quotas.of(job.tenant_id)
        try:
            await self._room.check(job, quotas)
            await self._steps.arrivals.admit(job)
        except (QueueFull, MemoryFull, TooManyMemories, StorageFull):
            known = await self._known(job, idempotency)
            if known is None or await self._is_to_make_anew(job, known, idempotency):
                raise
            num_waiting = await self.count_waiting(place.tenant_id, place.model)
            return Accepted(known, num_waiting, quotas.max_waiting_jobs)
        try:
            accepted, is_open, written = await self._accept(job, idempotency, quotas)
        except (QueueFull, IdempotencyMismatch):
            await self._redis.zrem(keys.open_key(place.model), place.member)
            raise
        if is_open:
            await self._steps.arrivals.mark(place.tenant_id, place.model, [job.lane])
        else:
            await self._redis.zrem(keys.open_key(place.model), place.member)
        written.checked()  # the job has its turn before this: it will run
        return accepted

    async def _accept(
        self, job: Job, idempotency: Idempotency | None, quotas: Quotas
    ) -> tuple[Accepted, bool, Written]:
        arrivals = self._steps.arrivals
        found = await arrivals.accept(job, idempotency, quotas=quotas)
        if not await self._is_to_make_anew(job, found[0].job_id, idempotency):
            return found
        return await arrivals.accept(job, idempotency, quotas=quotas)

    async def _is_to_make_anew(self, job: Job, first: JobId, idempotency: Idempotency | None) -> bool:
        """Whether the key's first job is another one that made nothing, for want of time or of a worker, and has the key no more."""
        if idempotency is None or first == job.job_id:
            return False
        return await self._steps.arrivals.free_key(job.tenant_id, first, idempotency)

    @redis_errors
    async def standing_for(self, tenant_id: TenantId, idempotency: Idempotency) -> JobId | None:
        """The job that the key stands for; None where it stands for none yet. Raises IdempotencyMismatch."""
        return await self._steps.arrivals.known(tenant_id, idempotency)

    async def _known(self, job: Job, idempotency: Idempotency | None) -> JobId | None:
        """The job that stands for this one already, if one does: itself, or the first one of its key."""
        if await self._redis.exists(keys.job_key(job.tenant_id, job.job_id)):
            return job.job_id
        return None if idempotency is None else await self._steps.arrivals.known(job.tenant_id, idempotency)

    @redis_errors
    async def get(self, tenant_id: TenantId, job_id: JobId) -> JobRecord:
        """What is known of a job now. Raises NotFound and CorruptRecord."""
        found: Any = await self._redis.hgetall(keys.job_key(tenant_id, job_id))
        if not found:
            raise NotFound(f"there is no job {job_id}")
        return codec.decode_record(found, where=f"job {job_id}")

    @redis_errors
    async def get_many(self, tenant_id: TenantId, job_ids: Sequence[JobId]) -> list[JobRecord | None]:
        """The same of many jobs in one round trip; None where one is not known. Raises CorruptRecord."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(keys.job_key(tenant_id, job_id))
            answers: Any = await pipeline.execute()
        return [
            codec.decode_record(found, where=f"job {job_id}") if found else None
            for job_id, found in zip(job_ids, answers, strict=True)
        ]

    @redis_errors
    async def states(self, tenant_id: TenantId, job_ids: Sequence[JobId]) -> list[JobState | None]:
        """The states of many jobs in one round trip; None where one is not known."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(keys.job_key(tenant_id, job_id), "state")
            answers: Any = await pipeline.execute()
        return [None if state is None else JobState(state.decode()) for state in answers]

    @redis_errors
    async def count_waiting(self, tenant_id: TenantId, model: ModelId) -> int:
        """How many jobs of a tenant wait for a model, in both lanes."""
        return int(await self._redis.zcard(keys.waiting_key(tenant_id, model)))

    @redis_errors
    async def settled(self, record: JobRecord) -> JobRecord:
        """The record of a job that has ended, once replicas have it; as it is on another server after a fail-over.

        Raises NotReplicated. Costs nothing where no replicas are asked for.
        """
        if not self._replicas.number:
            return record
        tenant_id, job_id = record.job.tenant_id, record.job.job_id
        found = (await self._replicas.command("HGETALL", keys.job_key(tenant_id, job_id))).checked()
        if not found:
            raise NotFound(f"there is no job {job_id}")
        return codec.decode_record(found, where=f"job {job_id}")

    @redis_errors
    async def cancel(self, tenant_id: TenantId, job_id: JobId) -> JobState:
        """Cancels a job. The state it then has; a second call changes nothing. Raises NotFound.

        CANCELLED: it has ended. RUNNING: it will end so within a step of its worker. Either way nothing of it enters a
        memory from now on. Any other state: it had ended before, and stays as it is.
        """
        model = await self._find_model(tenant_id, job_id)
        place = JobPlace(tenant_id, job_id, model)
        ended, written = await self._steps.cancel(place)
        if ended is None or ended.state is None:
            raise NotFound(f"there is no job {job_id}")
        if ended.state is JobState.CANCELLED:
            await close_or_leave(self._steps, place, ended)
        written.checked()
        return ended.state

    @redis_errors
    async def fail_if_queued(self, tenant_id: TenantId, job_id: JobId, failure: Failure) -> bool:
        """Fails a job that has not started, so it does not run later for nobody."""
        return await self._end(tenant_id, job_id, Expectation(JobState.QUEUED), failure)

    @redis_errors
    async def discard_question(self, tenant_id: TenantId, job_id: JobId) -> None:
        """Removes the record of a question that has ended and was read: it would only say what was asked."""
        await self._redis.unlink(keys.job_key(tenant_id, job_id))

    @redis_errors
    async def count_open(self, model: ModelId) -> int:
        """The number of a model's unfinished jobs."""
        return int(await self._redis.zcard(keys.open_key(model)))

    @redis_errors
    async def count_held(self, model: ModelId) -> int:
        """How many of them workers hold, or held when they fell silent."""
        try:
            groups: Any = await self._redis.xinfo_groups(keys.stream_key(model))
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            return 0
        return sum(int(group["pending"]) for group in groups)

    @redis_errors
    async def oldest_open_at_ms(self, model: ModelId) -> int | None:
        """When the oldest of a model's unfinished jobs was created, in Unix milliseconds; None where there is none."""
        found: Any = await self._redis.zrange(keys.open_key(model), 0, 0, withscores=True)
        return int(found[0][1]) if found else None

    @redis_errors
    async def count_dead_letters(self, model: ModelId) -> int:
        """How many dead letters are kept."""
        return int(await self._redis.xlen(keys.dead_key(model)))

    @redis_errors
    async def list_dead_letters(self, model: ModelId, limit: int = 100) -> list[DeadLetter]:
        """What no worker could do, the latest first."""
        found: Any = await self._redis.xrevrange(keys.dead_key(model), count=limit)
        return [codec.decode_letter(fields) for _, fields in found]

    async def _end(self, tenant_id: TenantId, job_id: JobId, expected: Expectation, failure: Failure) -> bool:
        try:
            model = await self._find_model(tenant_id, job_id)
        except NotFound:
            return False
        place = JobPlace(tenant_id, job_id, model)
        ended = await self._steps.end(place, expected, JobState.FAILED, failure)
        if ended is not None:
            await close_or_leave(self._steps, place, ended)
        return ended is not None

    async def _find_model(self, tenant_id: TenantId, job_id: JobId) -> ModelId:
        model: Any = await self._redis.hget(keys.job_key(tenant_id, job_id), "model")
        if model is None:
            raise NotFound(f"there is no job {job_id}")
        return ModelId(model.decode())


async def close_or_leave(steps: Transitions, place: JobPlace, ended: Ended) -> None:
    """Closes an ended job; where Redis is away, the end stands and the sweep will close it."""
    try:
        await steps.close(place, ended)
    except (*AWAY, StoreUnavailable) as error:
        structlog.get_logger().warning("job_left_to_sweep", job_id=place.job_id, error=str(error))
