"""The steps of a job's life, each one script in one slot: what `JobStore`, `JobQueue` and `JobSweeper` are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import MemoryName, ModelId, WorkerId
from app.domain.job import JobResult, JobState, Lane
from app.domain.result import Failure
from app.errors import CorruptRecord
from app.jobs import codec, keys
from app.jobs.arrivals import Arrivals
from app.jobs.end_names import EndNames
from app.jobs.place import JobPlace
from app.jobs.types import JobLimits, Progress, ReservedJob, Standing
from app.memory.codec import without_prompt
from app.memory.keys import COMMON as MEMORY_COMMON
from app.memory.keys import MemoryKey, forgotten_key, index_key, index_member, log_key, meta_key
from app.redis.records import decode
from app.redis.replicas import Replicas, Written
from app.redis.scripts import load_script
from app.telemetry.metrics import Metrics

_MAX_RENAMES = 100  # while one job runs

EXPIRED = Failure("expired", "the job was not done by its deadline; try again, or allow it more time")
CANCELLED = Failure("cancelled", "the job was cancelled")
POISON = Failure(
    "poison",
    "every worker that began this job ended before it had done it; do not send the request again",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A terminal state that counted: in which lanes the tenant has jobs waiting, the stream entry, whether a dead letter is due."""

    waiting: frozenset[Lane]
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

    def __init__(
        self,
        redis: Redis,
        limits: JobLimits,
        clock_ms: Callable[[], int],
        *,
        replicas: Replicas | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`metrics`: where the ends that these steps bring about are counted."""
        self._redis = redis
        self._metrics = metrics
        self._names = EndNames()
        self._replicas = replicas or Replicas(redis)
        self._limits = limits
        self.clock_ms = clock_ms
        self.arrivals = Arrivals(redis, limits, clock_ms, replicas=self._replicas)
        load = partial(load_script, redis, "app.jobs", after=keys.COMMON)
        self._start = load("start")
        self._commit = load_script(redis, "app.jobs", "commit", after=(*keys.COMMON, *MEMORY_COMMON))
        self._end = load("end")
        self._begin = load("begin")
        self._cancel = load("cancel")
        self._requeue = load("requeue")
        self._progress = load("progress")
        self._show = load("show")
        self._close = load("close")
        self._bury = load("bury")
        self._extend = load("extend")
        self._trim = load("trim")
        self._drop_consumer = load("drop_consumer")

    async def start(self, place: JobPlace, worker_id: WorkerId, stream_id: str) -> list[Any]:
        """What `start.lua` says of a delivered entry."""
        arguments: list[Any] = [
            place.job_id,
            worker_id,
            stream_id,
            self.clock_ms(),
            self._ttl_ms(place),
            _EXPIRED_JSON,
        ]
        limits: list[Any] = [self._limits.max_attempts, _POISON_JSON]
        name = self._names.ask(place)
        outcome, *details = await self._start(
            place.end_keys, [*arguments, *_channels(place), *limits, keys.EVENTS_CHANNEL, name]
        )
        is_over = outcome in (b"expired", b"dead")
        if is_over and details[1] and self._names.is_to_count(place, name):
            is_late = outcome == b"expired"
            self._count(
                place, JobState.EXPIRED if is_late else JobState.FAILED, EXPIRED if is_late else POISON
            )
        return [outcome, _LANES[details[0]]] if is_over else [outcome, *details]

    async def begin(self, reserved: ReservedJob) -> Standing:
        """Counts that the worker begins to run a job that it has started, unless it is to end or is not its own."""
        answer: Any = await self._begin(JobPlace.of(reserved.job).slot_keys[:1], [reserved.fence])
        return Standing(answer.decode())

    async def cancel(self, place: JobPlace) -> tuple[Ended | None, Written]:
        """Cancels a job, or asks for it where it runs; the state after that, None where the job is unknown."""
        arguments: list[Any] = [place.job_id, _CANCELLED_JSON, self.clock_ms(), self._ttl_ms(place)]
        name = self._names.ask(place)
        arguments += [*_channels(place), keys.EVENTS_CHANNEL, name]
        written = await self._replicas.run(self._cancel, place.end_keys, arguments)
        if not written.reply:
            return None, written
        state, waiting, stream_id, is_ours = written.reply
        after = JobState(state.decode())
        if after is JobState.CANCELLED and is_ours and self._names.is_to_count(place, name):
            self._count_cancel(place)
        return Ended(_LANES[waiting], stream_id.decode(), after), written

    async def commit(
        self,
        reserved: ReservedJob,
        result: JobResult,
        entries: Sequence[bytes],
        *,
        seen_version: int | None = None,
    ) -> tuple[Ended, int | None] | None:
        """Ends the job with its result; also the memory's version after it. None where the fence is lost.

        Prompts of entries are remembered only where the memory keeps them when this is done. One that was renamed since the
        job had read it is the result's under its new name.
        """
        place = JobPlace.of(reserved.job)
        bare = [without_prompt(entry) for entry in entries]
        either = [*entries, *bare] if bare != list(entries) else entries
        seen, name = "" if seen_version is None else seen_version, self._names.ask(place)
        for _ in range(_MAX_RENAMES):
            memory = MemoryKey(place.tenant_id, result.latent_space, result.memory_name)
            touched = [
                *place.end_keys,
                *(make(memory) for make in (meta_key, log_key)),
                index_key(place.tenant_id),
                forgotten_key(memory),
            ]
            arguments: list[Any] = [place.job_id, reserved.fence, self.clock_ms(), self._ttl_ms(place)]
            arguments += [codec.encode_result(result), *_channels(place), _CANCELLED_JSON]
            arguments += [index_member(memory), seen, name, len(entries)]
            reply: Any = await self._commit(touched, [*arguments, *either])
            if reply[0] != b"renamed":
                break
            result = replace(result, memory_name=MemoryName(reply[1].decode()))
        else:
            raise CorruptRecord(
                f"memory {result.memory_name!r} was renamed {_MAX_RENAMES} times or in a circle"
            )
        if reply[0] == b"lost":
            return None
        state = JobState(reply[0].decode())
        if reply[3] and self._names.is_to_count(place, name):
            self._count(place, state, CANCELLED)
        return Ended(_LANES[reply[1]], reserved.stream_id, state), int(reply[2]) if reply[2] else None

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
        times, name = [self.clock_ms(), self._ttl_ms(place)], self._names.ask(place)
        reply: Any = await self._end(
            place.end_keys,
            [*arguments, *times, *_channels(place), _CANCELLED_JSON, "1" if is_dead else "", name],
        )
        if not reply[0]:
            return None
        became = JobState(reply[3].decode())
        if reply[5] and self._names.is_to_count(place, name):
            self._count(place, became, failure)
        return Ended(_LANES[reply[1]], reply[2].decode(), became, is_dead=bool(reply[4]))

    async def requeue(
        self, place: JobPlace, *, fence: int | None = None, stream_id: str = "", is_forgiven: bool = False
    ) -> Requeued:
        """Makes a job queued again that runs under the fence or the entry, under a new entry, and closes it where it ended.

        `is_forgiven`: the attempt does not count. The old entry is left to the caller, except where the job has ended.
        """
        conditions: list[Any] = ["" if fence is None else fence, stream_id, "1" if is_forgiven else ""]
        times, name = [self.clock_ms(), self._ttl_ms(place)], self._names.ask(place)
        arguments = [place.job_id, *conditions, _CANCELLED_JSON, *times, *_channels(place)]
        reply: Any = await self._requeue(place.end_keys, [*arguments, keys.EVENTS_CHANNEL, name])
        outcome = Requeued(reply[0].decode())
        if outcome is Requeued.CANCELLED and self._names.is_to_count(place, name):
            self._count(place, JobState.CANCELLED, CANCELLED)
        if outcome is Requeued.QUEUED:
            await self.arrivals.enter(place)
        elif outcome is not Requeued.OVER:
            await self.close(place, Ended(_LANES[reply[1]], stream_id, is_dead=outcome is Requeued.DEAD))
        return outcome

    async def progress(self, reserved: ReservedJob, progress: Progress) -> Standing:
        """Tells how far a running job is, unless it is to end or is not its worker's own."""
        place = JobPlace.of(reserved.job)
        told: list[Any] = [reserved.fence, progress.step, progress.num_steps]
        answer: Any = await self._progress(
            [place.slot_keys[0], place.slot_keys[3]], [*told, keys.EVENTS_CHANNEL, place.member]
        )
        return Standing(answer.decode())

    async def show(self, reserved: ReservedJob, index: int, number: int, storage_key: str) -> bool:
        """Tells of a preview of a running job; False where the job is its worker's no more."""
        place = JobPlace.of(reserved.job)
        told: list[Any] = [reserved.fence, index, number, storage_key, keys.EVENTS_CHANNEL, place.member]
        return bool(await self._show([place.slot_keys[0], place.slot_keys[3]], told))

    async def close(self, place: JobPlace, ended: Ended) -> None:
        """What follows an end outside the tenant's slot; the sweep does it where this worker cannot."""
        model_keys = [keys.stream_key(place.model), keys.open_key(place.model)]
        turns = [keys.turns_key(place.model, lane) for lane in ended.waiting]
        arguments: list[Any] = [keys.GROUP, ended.stream_id, place.member]
        arguments += [place.tenant_id, keys.WAKE_CHANNEL, place.model]
        if ended.is_dead:
            letter = await self._write_letter(place)
            limit = self._limits.max_dead_letters
            await self._bury([*model_keys, keys.dead_key(place.model), *turns], [*arguments, limit, *letter])
        else:
            await self._close([*model_keys, *turns], arguments)

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
        reason = decode(codec.FAILURE, failure, where=f"job {place.job_id}").code if failure else "unknown"
        who = ["t", place.tenant_id, "j", place.job_id, "worker", worker_id or last_worker_id]
        return [*who, "reason", reason, "attempts", attempts or b"0", "at_ms", self.clock_ms()]

    def _count(self, place: JobPlace, state: JobState, failure: Failure) -> None:
        """Counts an end; the failure counts where it is one. Questions are told elsewhere how they ended."""
        if self._metrics is None:
            return
        if not place.is_question:
            self._metrics.jobs_finished.labels(place.model_id, state).inc()
        if state in (JobState.FAILED, JobState.EXPIRED):
            self._metrics.count_failure(place.model_id, failure.code)

    def _count_cancel(self, place: JobPlace) -> None:
        if self._metrics is not None and not place.is_question:
            self._metrics.jobs_cancelled.inc()

    def _ttl_ms(self, place: JobPlace) -> int:
        """How long the record of the job is kept once it has ended."""
        ttl_s = self._limits.question_ttl_s if place.is_question else self._limits.job_ttl_s
        return ttl_s * 1000


_LANES = (
    frozenset[Lane](),
    frozenset({Lane.INTERACTIVE}),
    frozenset({Lane.BATCH}),
    frozenset(Lane),
)  # as lanes_waiting of common.lua numbers them
_EXPIRED_JSON = codec.FAILURE.dump_json(EXPIRED)
_CANCELLED_JSON = codec.FAILURE.dump_json(CANCELLED)
_POISON_JSON = codec.FAILURE.dump_json(POISON)


def _channels(place: JobPlace) -> list[str]:
    """Where an end is told, and the message."""
    return [keys.FINISHED_CHANNEL, place.member]


def state_of(failure: Failure) -> JobState:
    """The terminal state of a job that ended with this failure."""
    states = {EXPIRED.code: JobState.EXPIRED, CANCELLED.code: JobState.CANCELLED}
    return states.get(failure.code, JobState.FAILED)
