"""How jobs come in: accepted, given their tenant's turn, released into a model's stream."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId, WorkerId, make_job_id
from app.domain.job import Job, Lane
from app.domain.quota import Quotas, Remaining, day_of, next_day_s
from app.domain.result import Failure
from app.errors import ImagesSpent, QueueFull
from app.jobs import codec, keys
from app.jobs.place import JobPlace
from app.jobs.types import Accepted, Idempotency, JobLimits
from app.redis.replicas import Replicas, Written
from app.redis.scripts import load_script
from app.tenants.names import usage_key

MAX_RETRY_AFTER_S = 120  # clients give up where they are told to wait longer
NO_WORKER = Failure("no_worker", "no worker serves this model now; try again later")
_BATCH_FIRST = 8  # one turn in so many asks the batch lane first, so that it moves under any load


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """An entry of a model's stream, given to this worker."""

    stream_id: str
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Turn:
    """A tenant that may have a job of one lane released now."""

    tenant_id: TenantId
    lane: Lane


@dataclass(frozen=True, slots=True)
class Released:
    """What came of a turn: a job, or '' where there was none to release; whether the next one could follow at once."""

    turn: Turn
    job_id: JobId
    has_more: bool


class Arrivals:
    """One method for each script. All are idempotent, because a lost connection repeats them."""

    def __init__(
        self, redis: Redis, limits: JobLimits, clock_ms: Callable[[], int], *, replicas: Replicas
    ) -> None:
        self._redis = redis
        self._replicas = replicas
        self._limits = limits
        self._most_released = limits.max_released_per_tenant or ""
        self._clock_ms = clock_ms
        self._num_turns = 0
        load = partial(load_script, redis, "app.jobs", after=keys.COMMON)
        self._admit = load("admit")
        self._accept = load("accept")
        self._mark = load("mark")
        self._take = load("take")
        self._release = load("release")
        self._may_release = load("may_release")
        self._note_entry = load("note_entry")
        self._free_key = load_script(redis, "app.jobs", "free_key")

    async def admit(self, job: Job) -> None:
        """Enters the job into its model's open jobs. Raises QueueFull."""
        place = JobPlace.of(job)
        limit = self._limits.max_open
        is_in, *found = await self._admit(
            [keys.open_key(place.model)], [place.member, job.created_at_ms, limit]
        )
        if not is_in:
            raise self._full(found, f"the service has {limit} unfinished jobs for model {place.model}")

    async def accept(
        self, job: Job, idempotency: Idempotency | None = None, *, quotas: Quotas | None = None
    ) -> tuple[Accepted, bool, Written]:
        """Writes the record and the place in the waiting set: now the job is durable. The job that stands for it.

        That is another one where the idempotency key had one. Also whether the job itself is open, which it is not then,
        nor where it was accepted before and has ended; and which replicas have it. Raises QueueFull, ImagesSpent and
        IdempotencyMismatch.
        """
        place, limits, now_ms = JobPlace.of(job), self._limits, self._clock_ms()
        quotas = quotas or limits.quotas
        job_path, waiting, _, events = place.slot_keys
        touched = [job_path, waiting, events, keys.jobs_key(place.tenant_id), usage_key(place.tenant_id)]
        listed_since = make_job_id(max(0, now_ms - 1000 * limits.job_list_ttl_s), bytes(8))
        arguments: list[Any] = [
            job.job_id,
            codec.encode_job(job),
            place.model,
            job.created_at_ms,
            job.deadline_at_ms,
            quotas.max_waiting_jobs,
            job.lane,
            keys.place_of(job.created_at_ms, job.lane),
            listed_since,
            1000 * limits.job_list_ttl_s,
            job.num_images,
            "" if quotas.images_per_day is None else quotas.images_per_day,
            day_of(now_ms),
            1000 * limits.usage_ttl_s,
            "1" if job.kind.is_quiet else "",
        ]
        if idempotency is not None:
            touched.append(keys.idempotency_key(place.tenant_id, idempotency.key))
            arguments += [idempotency.fingerprint, 1000 * limits.idempotency_ttl_s]
        written = await self._replicas.run(self._accept, touched, arguments)
        outcome, *found = written.reply
        if outcome == b"full":
            what = f"you have {quotas.max_waiting_jobs} jobs waiting for model {place.model}"
            raise self._full(found, what, limit=quotas.max_waiting_jobs)
        if outcome == b"spent":
            raise _spent(job, quotas, num_used=int(found[0]), now_ms=now_ms)
        if outcome == b"other" and idempotency is not None:
            raise idempotency.mismatch
        stands_for = JobId(found[2].decode()) if outcome == b"known" else job.job_id
        images = _images_left(quotas, num_used=int(found[1]), now_ms=now_ms)
        accepted = Accepted(stands_for, int(found[0]), quotas.max_waiting_jobs, images)
        return accepted, outcome == b"accepted", written

    async def known(self, tenant_id: TenantId, idempotency: Idempotency) -> JobId | None:
        """The job that the key stands for; None where it stands for none. Raises IdempotencyMismatch."""
        name = keys.idempotency_key(tenant_id, idempotency.key)
        found: Any = await self._redis.hmget(name, ["job_id", "fingerprint"])
        job_id, fingerprint = found
        if fingerprint is not None and fingerprint != idempotency.fingerprint.encode():
            raise idempotency.mismatch
        return None if job_id is None else JobId(job_id.decode())

    async def free_key(self, tenant_id: TenantId, job_id: JobId, idempotency: Idempotency) -> bool:
        """Frees the key of a job that ended for want of time or of a worker; whether it stands for that job no more."""
        touched = [keys.job_key(tenant_id, job_id), keys.idempotency_key(tenant_id, idempotency.key)]
        return bool(await self._free_key(touched, [job_id, NO_WORKER.code]))

    async def mark(self, tenant_id: TenantId, model: ModelId, lanes: Collection[Lane]) -> None:
        """Gives the tenant a turn at the model in each of the lanes, and wakes workers."""
        turns = [keys.turns_key(model, lane) for lane in lanes]
        await self._mark(turns, [tenant_id, keys.WAKE_CHANNEL, model])

    async def take(
        self, model: ModelId, worker_id: WorkerId, released: "Released | None" = None
    ) -> "StreamEntry | Turn | None":
        """What the worker shall do next: start an entry, else release a job of the tenant whose turn it is; None: nothing.

        `released` is what came of the last turn: its job is entered into the stream in the same step. Batches have turns
        where nothing else has, except that one turn in eight asks them first. Cost: one command, and one more where the
        turn is over, or where another entry came before the job's.
        """
        lanes = list(Lane) if (self._num_turns + 1) % _BATCH_FIRST else list(reversed(Lane))
        touched = [keys.stream_key(model), *(keys.turns_key(model, lane) for lane in lanes)]
        arguments: list[Any] = [keys.GROUP, worker_id]
        if released is not None:
            place = "" if released.has_more else lanes.index(released.turn.lane) + 2
            arguments += [released.turn.tenant_id, released.job_id or "", place]
        outcome, *found = await self._take(touched, arguments)
        if released is not None and not released.has_more:
            await self._look_behind(model, released.turn)
        if outcome == b"entry":
            entry_id, fields, made_id = found
            if released is not None and made_id not in (b"", entry_id):
                await self._note(JobPlace(released.turn.tenant_id, released.job_id, model), made_id)
            return StreamEntry(entry_id.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
        self._num_turns += 1
        return Turn(TenantId(found[1].decode()), lanes[found[0] - 2]) if found else None

    async def release(self, model: ModelId, turn: "Turn") -> "Released":
        """Moves a job of the tenant from its waiting ones to its released ones, for `take` to enter."""
        sets = [keys.waiting_key(turn.tenant_id, model), keys.released_key(turn.tenant_id, model)]
        arguments: list[Any] = [keys.place_of(self._clock_ms(), turn.lane), self._most_released]
        job_id, has_more = await self._release(sets, [*arguments, *keys.lane_range(turn.lane)])
        return Released(turn, JobId(job_id.decode()), bool(has_more))

    async def may_release(self, tenant_id: TenantId, model: ModelId, lane: Lane) -> bool:
        """True where the tenant has a job waiting in the lane and room among its released jobs of it."""
        sets = [keys.waiting_key(tenant_id, model), keys.released_key(tenant_id, model)]
        return bool(await self._may_release(sets, [self._most_released, *keys.lane_range(lane)]))

    async def enter(self, place: JobPlace) -> None:
        """Writes the stream entry of a released job. A second one does no harm: only one of them starts the job."""
        fields: Any = {"t": place.tenant_id, "j": place.job_id}
        stream_id: Any = await self._redis.xadd(keys.stream_key(place.model), fields)
        await self._note(place, stream_id)

    async def _note(self, place: JobPlace, stream_id: bytes) -> None:
        await self._note_entry(place.slot_keys[:1], [stream_id])

    async def _look_behind(self, model: ModelId, turn: "Turn") -> None:
        """The turn is over. Where a job came, or one ended, in between, the tenant gets another one."""
        if await self.may_release(turn.tenant_id, model, turn.lane):
            await self.mark(turn.tenant_id, model, [turn.lane])

    def _full(self, found: list[Any], what: str, *, limit: int | None = None) -> QueueFull:
        num_jobs, oldest_at_ms = int(found[0]), keys.time_of(float(found[1]))
        oldest_age_ms = self._clock_ms() - oldest_at_ms
        retry_after_s = estimate_retry_s(oldest_age_ms, num_jobs)
        return QueueFull(
            f"{what}, which is the most; try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
            limit=limit,
            reset_after_s=max(1, math.ceil(oldest_age_ms / 1000)),
        )


def estimate_retry_s(oldest_age_ms: float, num_jobs: int) -> int:
    """Seconds until a place is free, if jobs leave as fast as the oldest one's age suggests; 1..120."""
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(oldest_age_ms / 1000 / max(num_jobs, 1))))


def _images_left(quotas: Quotas, *, num_used: int, now_ms: int) -> Remaining | None:
    if quotas.images_per_day is None:
        return None
    return Remaining(quotas.images_per_day, max(0, quotas.images_per_day - num_used), next_day_s(now_ms))


def _spent(job: Job, quotas: Quotas, *, num_used: int, now_ms: int) -> ImagesSpent:
    most, next_s = quotas.images_per_day or 0, next_day_s(now_ms)
    num_left = max(0, most - num_used)
    return ImagesSpent(
        f"you may ask for {most} images a day, of which {num_left} are left, and this asks for"
        f" {job.num_images}; the next day of UTC begins in {next_s} s",
        retry_after_s=next_s,
        limit=most,
        reset_after_s=next_s,
        num_left=num_left,
    )
