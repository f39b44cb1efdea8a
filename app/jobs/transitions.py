"""The steps of a job's life, each one script in one slot: what `JobStore`, `JobQueue` and `JobSweeper` are made of."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId, WorkerId
from app.domain.job import Job, JobState
from app.domain.result import Failure, GenerationResult
from app.errors import QueueFull
from app.jobs import codec, keys
from app.jobs.types import JobLimits, ReservedJob
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.redis.scripts import load_script

MAX_RETRY_AFTER_S = 120  # clients give up where they are told to wait longer
EXPIRED = Failure("expired", "the job was not done by its deadline; try again, or allow it more time")


@dataclass(frozen=True, slots=True)
class JobPlace:
    """A job and the model whose stream it goes through."""

    tenant_id: TenantId
    job_id: JobId
    model: ModelId

    @classmethod
    def of(cls, job: Job) -> "JobPlace":
        """The place of a job."""
        return cls(job.tenant_id, job.job_id, job.request.model)

    @property
    def member(self) -> str:
        """The job's name outside its tenant's slot."""
        return keys.open_member(self.tenant_id, self.job_id)

    @property
    def slot_keys(self) -> list[str]:
        """The keys job, waiting and released, as most scripts take them."""
        return [
            keys.job_key(self.tenant_id, self.job_id),
            keys.waiting_key(self.tenant_id, self.model),
            keys.released_key(self.tenant_id, self.model),
        ]


@dataclass(frozen=True, slots=True)
class Ended:
    """A transition to a terminal state that counted: how many jobs the tenant has waiting, and the stream entry."""

    num_waiting: int
    stream_id: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """The state, and the fence where it is given, under which a job may be ended."""

    state: JobState
    fence: int | None = None


class Transitions:
    """One method for each script. All are idempotent, because a lost connection repeats them."""

    def __init__(self, redis: Redis, limits: JobLimits, clock_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._limits = limits
        self.clock_ms = clock_ms
        load = partial(load_script, redis, "app.jobs")
        self._admit = load("admit")
        self._accept = load("accept")
        self._mark = load("mark")
        self._take_turn = load("take_turn")
        self._release = load("release")
        self._may_release = load("may_release")
        self._note_entry = load("note_entry")
        self._start = load("start")
        self._commit = load("commit")
        self._end = load("end")
        self._give_back = load("give_back")
        self._close = load("close")
        self._trim = load("trim")
        self._drop_consumer = load("drop_consumer")

    async def admit(self, job: Job) -> None:
        """Enters the job into its model's open jobs. Raises QueueFull."""
        place = JobPlace.of(job)
        reply = await self._admit(
            [keys.open_key(place.model)], [place.member, job.created_at_ms, self._limits.max_open]
        )
        self._refuse_full(
            reply, f"the service has {self._limits.max_open} unfinished jobs for model {place.model}"
        )

    async def accept(self, job: Job) -> None:
        """Writes the record and the place in the waiting set: now the job is durable. Raises QueueFull."""
        place = JobPlace.of(job)
        limit = self._limits.max_waiting_per_tenant
        reply = await self._accept(
            place.slot_keys[:2],
            [
                job.job_id,
                codec.JOB.dump_json(job),
                place.model,
                job.created_at_ms,
                job.deadline_at_ms,
                limit,
            ],
        )
        self._refuse_full(reply, f"you have {limit} jobs waiting for model {place.model}")

    async def mark(self, tenant_id: TenantId, model: ModelId) -> None:
        """Gives the tenant a turn at the model and wakes workers."""
        await self._mark([keys.turns_key(model)], [tenant_id, keys.WAKE_CHANNEL, model])

    async def release_next(self, model: ModelId) -> bool | None:
        """Gives the next tenant its turn: True where a job went into the stream, None where no tenant has a turn."""
        tenant: Any = await self._take_turn([keys.turns_key(model)])
        if tenant is None:
            return None
        tenant_id = TenantId(tenant.decode())
        sets = [keys.waiting_key(tenant_id, model), keys.released_key(tenant_id, model)]
        limit = self._limits.max_released_per_tenant
        job_id: Any = await self._release(sets, [self.clock_ms(), limit])
        if job_id is not None:
            await self.enter(JobPlace(tenant_id, JobId(job_id.decode()), model))
            return True
        await self._redis.zrem(keys.turns_key(model), tenant_id)
        if await self.may_release(tenant_id, model):  # a job came, or one ended, in between
            await self.mark(tenant_id, model)
        return False

    async def may_release(self, tenant_id: TenantId, model: ModelId) -> bool:
        """True where the tenant has a job waiting and room among its released jobs."""
        sets = [keys.waiting_key(tenant_id, model), keys.released_key(tenant_id, model)]
        return bool(await self._may_release(sets, [self._limits.max_released_per_tenant]))

    async def enter(self, place: JobPlace) -> None:
        """Writes the stream entry of a released job. A second one does no harm: only one of them starts the job."""
        fields: Any = {"t": place.tenant_id, "j": place.job_id}
        stream_id: Any = await self._redis.xadd(keys.stream_key(place.model), fields)
        await self._note_entry(place.slot_keys[:1], [stream_id])

    async def start(self, place: JobPlace, worker_id: WorkerId, stream_id: str) -> list[Any]:
        """What `start.lua` says of a delivered entry."""
        arguments: list[Any] = [place.job_id, worker_id, stream_id, self.clock_ms(), self._ttl_ms]
        expired = codec.FAILURE.dump_json(EXPIRED)
        return list(
            await self._start(place.slot_keys, [*arguments, expired, keys.FINISHED_CHANNEL, place.member])
        )

    async def commit(
        self, reserved: ReservedJob, result: GenerationResult, entries: Sequence[bytes]
    ) -> tuple[Ended, int | None] | None:
        """Ends the job with its images; also the memory's version after it. None where the fence is lost."""
        place = JobPlace.of(reserved.job)
        memory = MemoryKey(place.tenant_id, result.latent_space, result.memory_name)
        memory_keys = [meta_key(memory), log_key(memory), index_key(place.tenant_id)]
        arguments: list[Any] = [
            place.job_id,
            reserved.fence,
            self.clock_ms(),
            self._ttl_ms,
            codec.encode_result(result),
        ]
        channel = [keys.FINISHED_CHANNEL, place.member]
        reply: Any = await self._commit(
            [*place.slot_keys, *memory_keys], [*arguments, *channel, index_member(memory), *entries]
        )
        if not reply[0]:
            return None
        return Ended(int(reply[1]), reserved.stream_id), int(reply[2]) if reply[2] else None

    async def end(
        self, place: JobPlace, expected: Expectation, state: JobState, failure: Failure
    ) -> Ended | None:
        """Ends the job without images. None where it is not as expected."""
        fence = "" if expected.fence is None else expected.fence
        arguments: list[Any] = [place.job_id, expected.state, fence, state, codec.FAILURE.dump_json(failure)]
        reply: Any = await self._end(
            place.slot_keys,
            [*arguments, self.clock_ms(), self._ttl_ms, keys.FINISHED_CHANNEL, place.member],
        )
        return Ended(int(reply[1]), reply[2].decode()) if reply[0] else None

    async def give_back(self, reserved: ReservedJob) -> bool:
        """Makes a running job queued again, under a new stream entry. False where the fence is lost."""
        place = JobPlace.of(reserved.job)
        if not await self._give_back(place.slot_keys[:1], [reserved.fence]):
            return False
        await self.enter(place)
        return True

    async def close(self, place: JobPlace, ended: Ended) -> None:
        """What follows an end outside the tenant's slot; the sweep does it where this worker cannot."""
        await self._close(
            [keys.stream_key(place.model), keys.open_key(place.model)],
            [keys.GROUP, ended.stream_id, place.member],
        )
        if ended.num_waiting:
            await self.mark(place.tenant_id, place.model)

    async def trim(self, model: ModelId) -> None:
        """Trims the model's stream below everything that is pending or undelivered."""
        await self._trim([keys.stream_key(model)], [keys.GROUP])

    async def drop_consumer(self, model: ModelId, worker_id: WorkerId) -> None:
        """Removes a dead worker's consumer, if it has nothing pending."""
        await self._drop_consumer([keys.stream_key(model)], [keys.GROUP, worker_id])

    @property
    def _ttl_ms(self) -> int:
        return self._limits.job_ttl_s * 1000

    def _refuse_full(self, reply: Any, what: str) -> None:
        if reply[0]:
            return
        num_jobs, oldest_at_ms = int(reply[1]), float(reply[2])
        retry_after_s = estimate_retry_s(self.clock_ms() - oldest_at_ms, num_jobs)
        raise QueueFull(
            f"{what}, which is the most; try again in {retry_after_s} s", retry_after_s=retry_after_s
        )


def state_of(failure: Failure) -> JobState:
    """The terminal state of a job that ended with this failure."""
    return JobState.EXPIRED if failure.code == EXPIRED.code else JobState.FAILED


def estimate_retry_s(oldest_age_ms: float, num_jobs: int) -> int:
    """Seconds until a place is free, if jobs leave as fast as the oldest one's age suggests; 1..120."""
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(oldest_age_ms / 1000 / max(num_jobs, 1))))
