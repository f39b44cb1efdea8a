"""The steps of a job's life, each one script in one slot: what `JobStore`, `JobQueue` and `JobSweeper` are made of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId, WorkerId, parse_job_id, parse_tenant_id
from app.domain.job import Job, JobState
from app.domain.result import Failure, GenerationResult
from app.errors import InvalidId, QueueFull
from app.jobs import codec, keys
from app.jobs.types import JobLimits, ReservedJob, Standing
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.redis.scripts import load_script

MAX_RETRY_AFTER_S = 120  # clients give up where they are told to wait longer
EXPIRED = Failure("expired", "the job was not done by its deadline; try again, or allow it more time")
CANCELLED = Failure("cancelled", "the job was cancelled")
POISON = Failure(
    "poison",
    "every worker that began to make these images ended before it had; do not send the request again",
)


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

    @classmethod
    def of_entry(cls, model: ModelId, fields: Mapping[bytes, bytes] | None) -> "JobPlace | None":
        """The place that a stream entry names; None where it is not of ours."""
        try:
            found = fields or {}
            return cls(parse_tenant_id(found[b"t"].decode()), parse_job_id(found[b"j"].decode()), model)
        except (KeyError, ValueError, InvalidId):
            return None

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
    """A terminal state that counted: how many jobs the tenant has waiting, the stream entry, whether a dead letter is due."""

    num_waiting: int
    stream_id: str
    state: JobState | None = None
    is_dead: bool = False


class Requeued(StrEnum):
    """What became of a running job that its worker has no more."""

    QUEUED = "queued"
    CANCELLED = "cancelled"
    DEAD = "dead"
    OVER = "over"


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
        self._begin = load("begin")
        self._cancel = load("cancel")
        self._requeue = load("requeue")
        self._close = load("close")
        self._bury = load("bury")
        self._extend = load("extend")
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
        arguments: list[Any] = [
            place.job_id,
            worker_id,
            stream_id,
            self.clock_ms(),
            self._ttl_ms,
            _EXPIRED_JSON,
        ]
        channel = [keys.FINISHED_CHANNEL, place.member]
        limits: list[Any] = [self._limits.max_attempts, _POISON_JSON]
        return list(await self._start(place.slot_keys, [*arguments, *channel, *limits]))

    async def begin(self, reserved: ReservedJob) -> Standing:
        """Counts that the worker begins to run a job that it has started, unless it is to end or is not its own."""
        answer: Any = await self._begin(JobPlace.of(reserved.job).slot_keys[:1], [reserved.fence])
        return Standing(answer.decode())

    async def cancel(self, place: JobPlace) -> Ended | None:
        """Cancels a job, or asks for it where it runs; the state after that. None where the job is unknown."""
        arguments: list[Any] = [place.job_id, _CANCELLED_JSON, self.clock_ms(), self._ttl_ms]
        reply: Any = await self._cancel(place.slot_keys, [*arguments, keys.FINISHED_CHANNEL, place.member])
        return Ended(int(reply[1]), reply[2].decode(), JobState(reply[0].decode())) if reply else None

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
            [*place.slot_keys, *memory_keys],
            [*arguments, *channel, _CANCELLED_JSON, index_member(memory), *entries],
        )
        if reply[0] == b"lost":
            return None
        ended = Ended(int(reply[1]), reserved.stream_id, JobState(reply[0].decode()))
        return ended, int(reply[2]) if len(reply) > 2 and reply[2] else None

    async def end(
        self,
        place: JobPlace,
        expected: Expectation,
        state: JobState,
        failure: Failure,
        *,
        is_dead: bool = False,
    ) -> Ended | None:
        """Ends the job without images, as cancelled where that was asked for. None where it is not as expected.

        `is_dead` asks for a dead letter, which closing it writes.
        """
        fence = "" if expected.fence is None else expected.fence
        arguments: list[Any] = [place.job_id, expected.state, fence, state, codec.FAILURE.dump_json(failure)]
        times = [self.clock_ms(), self._ttl_ms]
        channel = [keys.FINISHED_CHANNEL, place.member]
        reply: Any = await self._end(
            place.slot_keys,
            [*arguments, *times, *channel, _CANCELLED_JSON, "1" if is_dead else ""],
        )
        if not reply[0]:
            return None
        return Ended(int(reply[1]), reply[2].decode(), JobState(reply[3].decode()), is_dead=bool(reply[4]))

    async def requeue(
        self, place: JobPlace, *, fence: int | None = None, stream_id: str = "", is_forgiven: bool = False
    ) -> Requeued:
        """Makes a job queued again that runs under the fence or the entry, under a new entry, and closes it where it ended.

        `is_forgiven`: the attempt does not count. The old entry is left to the caller, except where the job has ended.
        """
        conditions: list[Any] = ["" if fence is None else fence, stream_id, "1" if is_forgiven else ""]
        times = [self.clock_ms(), self._ttl_ms]
        reply: Any = await self._requeue(
            place.slot_keys,
            [place.job_id, *conditions, _CANCELLED_JSON, *times, keys.FINISHED_CHANNEL, place.member],
        )
        outcome = Requeued(reply[0].decode())
        if outcome is Requeued.QUEUED:
            await self.enter(place)
        elif outcome is not Requeued.OVER:
            await self.close(place, Ended(int(reply[1]), stream_id, is_dead=outcome is Requeued.DEAD))
        return outcome

    async def close(self, place: JobPlace, ended: Ended) -> None:
        """What follows an end outside the tenant's slot; the sweep does it where this worker cannot."""
        model_keys = [keys.stream_key(place.model), keys.open_key(place.model)]
        arguments = [keys.GROUP, ended.stream_id, place.member]
        if ended.is_dead:
            letter = await self._write_letter(place)
            limit = self._limits.max_dead_letters
            await self._bury([*model_keys, keys.dead_key(place.model)], [*arguments, limit, *letter])
        else:
            await self._close(model_keys, arguments)
        if ended.num_waiting:
            await self.mark(place.tenant_id, place.model)

    async def extend(self, model: ModelId, worker_id: WorkerId, stream_ids: Sequence[str]) -> list[str]:
        """Extends the leases of entries that the worker has; which of them it has no more."""
        lost: Any = await self._extend([keys.stream_key(model)], [keys.GROUP, worker_id, *stream_ids])
        return [stream_id.decode() for stream_id in lost]

    async def trim(self, model: ModelId) -> None:
        """Trims the model's stream below everything that is pending or undelivered."""
        await self._trim([keys.stream_key(model)], [keys.GROUP])

    async def drop_consumer(self, model: ModelId, worker_id: WorkerId) -> None:
        """Removes a dead worker's consumer, if it has nothing pending."""
        await self._drop_consumer([keys.stream_key(model)], [keys.GROUP, worker_id])

    async def _write_letter(self, place: JobPlace) -> list[Any]:
        names = ["failure", "attempts", "worker_id", "last_worker_id"]
        found: Any = await self._redis.hmget(place.slot_keys[0], names)
        failure, attempts, worker_id, last_worker_id = (value or b"" for value in found)
        reason = (
            codec.decode(codec.FAILURE, failure, where=f"job {place.job_id}").code if failure else "unknown"
        )
        who = ["t", place.tenant_id, "j", place.job_id, "worker", worker_id or last_worker_id]
        return [*who, "reason", reason, "attempts", attempts or b"0", "at_ms", self.clock_ms()]

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


_EXPIRED_JSON = codec.FAILURE.dump_json(EXPIRED)
_CANCELLED_JSON = codec.FAILURE.dump_json(CANCELLED)
_POISON_JSON = codec.FAILURE.dump_json(POISON)


def state_of(failure: Failure) -> JobState:
    """The terminal state of a job that ended with this failure."""
    states = {EXPIRED.code: JobState.EXPIRED, CANCELLED.code: JobState.CANCELLED}
    return states.get(failure.code, JobState.FAILED)


def estimate_retry_s(oldest_age_ms: float, num_jobs: int) -> int:
    """Seconds until a place is free, if jobs leave as fast as the oldest one's age suggests; 1..120."""
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(oldest_age_ms / 1000 / max(num_jobs, 1))))
