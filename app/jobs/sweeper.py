"""Finds what a crash left between two slots, and ends or repeats it. Every step is idempotent."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import ModelId, TenantId, WorkerId, parse_job_id
from app.domain.job import JobState, Lane
from app.errors import InvalidId
from app.jobs import keys
from app.jobs.place import JobPlace
from app.jobs.transitions import EXPIRED, Ended, Expectation, Requeued, Transitions
from app.jobs.types import JobLimits
from app.jobs.workers import WorkerRegistry, now_ms
from app.redis.errors import redis_errors
from app.redis.members import parse_member
from app.telemetry.metrics import Metrics

_PAGE_JOBS = 500
_ACCEPT_GRACE_MS = 60_000  # an admitted job without a record: its acceptance may still be on the way
_ENTRY_GRACE_MS = 5_000  # a released job without a stream entry: the entry may still be on the way
_CLOSE_GRACE_MS = 5_000  # an ended job among the open ones: its worker may be about to close it
_NAMES = (
    "state",
    "fence",
    "worker_id",
    "stream_id",
    "deadline_at_ms",
    "dead",
    "lane",
    "finished_at_ms",
)  # of the record's fields, in the order in which `_record` takes them
_RUN_GRACE_MS = 600_000  # a job that runs long past its deadline: its worker lives and has forgotten it


@dataclass(frozen=True, slots=True)
class SweepReport:
    """How many jobs a sweep looked at, and how many it ended or brought back on their way."""

    num_open: int = 0
    num_repaired: int = 0


@dataclass(frozen=True, slots=True)
class _Record:
    """What the sweep reads of a job."""

    place: JobPlace
    created_at_ms: float
    state: str | None
    fence: int
    worker_id: WorkerId
    stream_id: str
    deadline_at_ms: int
    finished_at_ms: int
    released_at_ms: float | None
    is_dead: bool
    lane: Lane


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one sweep of a model knows already: who lives, and whose turns of which lane it has looked after."""

    alive: Collection[WorkerId]
    turns: set[tuple[TenantId, Lane]] = field(default_factory=set)


class JobSweeper:
    """Looks through the open jobs of models. Workers call `sweep` on a timer; one of them at a time does the work."""

    def __init__(
        self,
        redis: Redis,
        limits: JobLimits,
        registry: WorkerRegistry,
        *,
        interval_s: float = 5.0,
        clock_ms: Callable[[], int] = now_ms,
        metrics: Metrics | None = None,
    ) -> None:
        self._redis = redis
        self._registry = registry
        self._interval_ms = int(interval_s * 1000)
        self._steps = Transitions(redis, limits, clock_ms, metrics=metrics)

    @redis_errors
    async def sweep(self, models: Sequence[ModelId]) -> SweepReport:
        """Sweeps each model, unless a worker did so within the interval. Raises StoreUnavailable.

        Cost: two commands for each open job, in one round trip for each page of 500; and one for each tenant and lane in which
        jobs wait, or for what was left by a crash.
        """
        num_open = num_repaired = 0
        alive = {info.worker_id for info in await self._registry.list_workers()}
        for model in models:
            if not await self._claim(model):
                continue
            seen = _Seen(alive)
            async for record in self._list_open(model):
                num_open += 1
                num_repaired += await self._repair(record, seen)
            await self._sweep_consumers(model, alive)
        if num_repaired:
            structlog.get_logger().warning("sweep_repaired", num_repaired=num_repaired, num_open=num_open)
        return SweepReport(num_open, num_repaired)

    async def _claim(self, model: ModelId) -> bool:
        """True where no worker swept the model within the interval, and this one does now; always for interval 0."""
        if self._interval_ms == 0:
            return True
        # Slightly shorter than the interval, so that a worker's own timer is not refused by its last turn.
        hold_ms = max(1, self._interval_ms * 9 // 10)
        return bool(await self._redis.set(keys.sweep_key(model), b"1", nx=True, px=hold_ms))

    async def _list_open(self, model: ModelId) -> AsyncIterator[_Record]:
        """The open jobs, read by pages; those that end meanwhile may be missed or seen twice, without harm."""
        cursor: Any = 0
        page: Any
        while True:
            cursor, page = await self._redis.zscan(keys.open_key(model), cursor, count=_PAGE_JOBS)
            found: list[tuple[JobPlace, float]] = []
            for member, created_at_ms in page:
                try:
                    tenant_id, job_id = parse_member(member, parse_job_id)
                except InvalidId:
                    await self._redis.zrem(keys.open_key(model), member)
                    continue
                found.append((JobPlace(tenant_id, job_id, model), created_at_ms))
            for record in await self._read(found):
                yield record
            if cursor == 0:
                return

    async def _read(self, found: Sequence[tuple[JobPlace, float]]) -> list[_Record]:
        """What is known of jobs and of their creation, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for place, _ in found:
                job, _, released, _ = place.slot_keys
                pipeline.hmget(job, list(_NAMES))
                pipeline.zscore(released, place.job_id)
            answers: Any = await pipeline.execute() if found else []
        return [
            _record(place, created_at_ms, *answer)
            for (place, created_at_ms), *answer in zip(found, answers[::2], answers[1::2], strict=True)
        ]

    async def _repair(self, record: _Record, seen: "_Seen") -> bool:
        """Ends the job or brings it back on its way; False where it is on its way."""
        now, place = self._steps.clock_ms(), record.place
        if record.state is None:
            if now - record.created_at_ms < _ACCEPT_GRACE_MS:
                return False
            await self._steps.close(place, Ended(frozenset(), ""))
            return True
        state = JobState(record.state)
        if state.is_terminal and now - record.finished_at_ms < _CLOSE_GRACE_MS:
            return False
        if state.is_terminal:
            waiting = frozenset(Lane if await self._has_waiting(place) else ())
            await self._steps.close(place, Ended(waiting, record.stream_id, is_dead=record.is_dead))
            return True
        if state is JobState.RUNNING:
            return await self._repair_running(record, now, seen)
        return await self._repair_queued(record, now, seen)

    async def _repair_running(self, record: _Record, now: int, seen: "_Seen") -> bool:
        """A job whose entry is pending has a lease, which is looked after elsewhere; one without is not stranded."""
        if now >= record.deadline_at_ms + _RUN_GRACE_MS:
            return await self._expire(record.place, Expectation(JobState.RUNNING, record.fence))
        if record.worker_id in seen.alive or await self._registry.is_alive(record.worker_id):
            return False
        if await self._is_pending(record):
            return False
        return await self._steps.requeue(record.place, fence=record.fence) is not Requeued.OVER

    async def _repair_queued(self, record: _Record, now: int, seen: "_Seen") -> bool:
        place = record.place
        if now >= record.deadline_at_ms:
            return await self._expire(place, Expectation(JobState.QUEUED, record.fence))
        if record.released_at_ms is None:
            turn = (place.tenant_id, record.lane)
            if turn in seen.turns:
                return False
            seen.turns.add(turn)
            return await self._ensure_turn(place, record.lane)
        if now - record.released_at_ms < _ENTRY_GRACE_MS or await self._has_entry(record):
            return False
        await self._steps.arrivals.enter(place)
        await self._redis.publish(keys.WAKE_CHANNEL, place.model)
        return True

    async def _expire(self, place: JobPlace, expected: Expectation) -> bool:
        ended = await self._steps.end(place, expected, JobState.EXPIRED, EXPIRED)
        if ended is not None:
            await self._steps.close(place, ended)
        return ended is not None

    async def _ensure_turn(self, place: JobPlace, lane: Lane) -> bool:
        """Marks the tenant, if it may release in the lane and has no turn."""
        if await self._redis.zscore(keys.turns_key(place.model, lane), place.tenant_id) is not None:
            return False
        if not await self._steps.arrivals.may_release(place.tenant_id, place.model, lane):
            return False
        await self._steps.arrivals.mark(place.tenant_id, place.model, [lane])
        return True

    async def _has_entry(self, record: _Record) -> bool:
        if not record.stream_id:
            return False
        stream = keys.stream_key(record.place.model)
        return bool(await self._redis.xrange(stream, min=record.stream_id, max=record.stream_id))

    async def _is_pending(self, record: _Record) -> bool:
        stream, entry = keys.stream_key(record.place.model), record.stream_id
        try:
            found: Any = await self._redis.xpending_range(stream, keys.GROUP, entry, entry, 1)
        except ResponseError as error:
            if str(error).startswith("NOGROUP"):
                return False
            raise
        return bool(found)

    async def _has_waiting(self, place: JobPlace) -> bool:
        return bool(await self._redis.exists(keys.waiting_key(place.tenant_id, place.model)))

    async def _sweep_consumers(self, model: ModelId, alive: Iterable[WorkerId]) -> None:
        try:
            consumers: Any = await self._redis.xinfo_consumers(keys.stream_key(model), keys.GROUP)
        except ResponseError:  # no stream or no group yet
            return
        for consumer in consumers:
            worker_id = WorkerId(consumer["name"].decode())
            if worker_id not in alive and not await self._registry.is_alive(worker_id):
                await self._steps.drop_consumer(model, worker_id)
        await self._steps.trim(model)


def _record(
    place: JobPlace, created_at_ms: float, values: Sequence[bytes | None], released_at: float | None
) -> _Record:
    state, fence, worker_id, stream_id, deadline_at_ms, dead, lane, finished_at_ms = (
        (value or b"").decode() for value in values
    )
    return _Record(
        place=place,
        created_at_ms=created_at_ms,
        state=state or None,
        fence=int(fence or 0),
        worker_id=WorkerId(worker_id),
        stream_id=stream_id,
        deadline_at_ms=int(deadline_at_ms or 0),
        finished_at_ms=int(finished_at_ms or 0),
        released_at_ms=None if released_at is None else keys.time_of(released_at),
        is_dead=bool(dead),
        lane=Lane(lane or Lane.INTERACTIVE),
    )
