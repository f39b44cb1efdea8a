"""What a worker does with jobs: reserve some, end each one once."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import ModelId, WorkerId, parse_job_id, parse_tenant_id
from app.domain.job import JobState
from app.domain.result import Failure, GenerationResult
from app.errors import CorruptRecord, InvalidId
from app.jobs import codec, keys
from app.jobs.store import close_or_leave
from app.jobs.transitions import Ended, Expectation, JobPlace, Transitions, state_of
from app.jobs.types import Committed, JobLimits, ReservedJob
from app.jobs.workers import now_ms
from app.redis.errors import redis_errors
from app.redis.listener import Listener

_MAX_TURNS = 64  # tenants that are asked in one go, beyond the images wanted
_POLL_S = 1.0  # how often to look without having been woken
_RECHECK_ENTRIES = 1000
_RECHECK_S = 10.0  # how often to look for entries that were delivered to us but never reached us

_Entry = tuple[bytes, dict[bytes, bytes] | None]


class JobQueue:
    """The queue as one worker sees it. One task at a time calls `reserve`; the other methods may run beside it.

    As an async context manager it listens for wake-ups on a connection of its own; without, `reserve` only polls.
    """

    def __init__(self, redis: Redis, limits: JobLimits, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._redis = redis
        self._steps = Transitions(redis, limits, clock_ms)
        self._wake = asyncio.Event()
        self._listener = Listener(redis, [keys.WAKE_CHANNEL], lambda _channel, _model: self._wake.set())
        self._held: set[tuple[ModelId, str]] = set()
        self._recheck_at_s = time.monotonic() + _RECHECK_S
        self._num_looks = 0

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._listener.close()

    @redis_errors
    async def reserve(
        self, models: Sequence[ModelId], worker_id: WorkerId, max_images: int, block_ms: int
    ) -> list[ReservedJob]:
        """Starts jobs until they have `max_images` images, and returns them; waits up to `block_ms` for the first.

        The last one may have more images than there was room for; what follows it is left to other workers.
        Tenants take turns. Jobs past their deadline become EXPIRED, ended ones are skipped. Every job that is
        returned must be given to `commit`, `fail` or `give_back`. A call that was cancelled or raised loses nothing:
        what it had started is returned by a later one.
        """
        until_s = time.monotonic() + block_ms / 1000
        reserved: list[ReservedJob] = []
        try:
            while True:
                self._wake.clear()
                await self._look(models, worker_id, max_images, reserved)
                remaining_s = until_s - time.monotonic()
                if reserved or remaining_s <= 0:
                    return reserved
                await self._pause(min(remaining_s, _POLL_S))
        except BaseException:
            # What this call started is held by nobody now: the next one finds it among our pending entries.
            self._held -= {(job.job.request.model, job.stream_id) for job in reserved}
            self._recheck_at_s = 0.0
            raise

    @redis_errors
    async def commit(
        self, reserved: ReservedJob, result: GenerationResult, entries: Sequence[bytes]
    ) -> Committed | None:
        """Ends the job with its images, all or nothing: entries appended, result stored, waiters notified.

        The memory is the one that `result` names. None where the fence was lost: then nothing was written. A second
        call changes nothing and answers as the first.
        """
        place = JobPlace.of(reserved.job)
        done = await self._steps.commit(reserved, result, entries)
        if done is None:
            self._lose(reserved)
            return None
        ended, version = done
        await self._close(reserved, place, ended)
        return Committed(version)

    @redis_errors
    async def fail(self, reserved: ReservedJob, failure: Failure) -> bool:
        """Ends the job with a failure, as EXPIRED where that is the failure. False where the fence was lost."""
        place = JobPlace.of(reserved.job)
        expected = Expectation(JobState.RUNNING, reserved.fence)
        ended = await self._steps.end(place, expected, state_of(failure), failure)
        if ended is None:
            self._lose(reserved)
            return False
        await self._close(reserved, place, Ended(ended.num_waiting, reserved.stream_id))
        return True

    @redis_errors
    async def give_back(self, reserved: ReservedJob) -> bool:
        """Makes a job that was not run queued again, for another worker. False where the fence was lost."""
        model = reserved.job.request.model
        given = await self._steps.give_back(reserved)
        if not given:
            self._lose(reserved)
            return False
        await self._redis.xack(keys.stream_key(model), keys.GROUP, reserved.stream_id)
        self._held.discard((model, reserved.stream_id))
        await self._redis.publish(keys.WAKE_CHANNEL, model)
        return True

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):  # wait_for of Python 3.11 can lose a cancellation
                await self._wake.wait()

    async def _look(
        self, models: Sequence[ModelId], worker_id: WorkerId, max_images: int, reserved: list[ReservedJob]
    ) -> None:
        recheck = time.monotonic() >= self._recheck_at_s
        self._num_looks += 1
        first = self._num_looks % max(len(models), 1)
        for model in (*models[first:], *models[:first]):
            view = _View(model, worker_id, max_images, reserved)
            if recheck:
                await self._start_all(view, await self._read(view, after="0", limit=_RECHECK_ENTRIES))
            if await self._take_new(view) and await self._release(view):
                await self._take_new(view)
        if recheck:
            self._recheck_at_s = time.monotonic() + _RECHECK_S

    async def _take_new(self, view: "_View") -> bool:
        """Starts entries that nobody was given yet, one at a time; True where more are wanted than there are."""
        while view.num_wanted > 0:
            entries = await self._read(view, after=">", limit=1)
            if not entries:
                return True
            await self._start_all(view, entries)
        return False

    async def _read(self, view: "_View", *, after: str, limit: int) -> list[_Entry]:
        stream = keys.stream_key(view.model)
        for _ in range(2):
            try:
                reply: Any = await self._redis.xreadgroup(
                    keys.GROUP, view.worker_id, {stream: after}, count=limit
                )
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self._create_group(stream)
            else:
                return list(reply[0][1]) if reply else []
        return []

    async def _create_group(self, stream: str) -> None:
        try:
            await self._redis.xgroup_create(stream, keys.GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another worker was faster
                raise

    async def _release(self, view: "_View") -> bool:
        """Moves as many jobs as images are wanted, or fewer, into the stream, one for each turn; True where any was moved."""
        num_released = 0
        for _ in range(view.num_wanted + _MAX_TURNS):
            released = await self._steps.release_next(view.model)
            if released is None:
                break
            num_released += released
            if num_released == view.num_wanted:
                break
        return num_released > 0

    async def _start_all(self, view: "_View", entries: Sequence[_Entry]) -> None:
        for entry_id, fields in entries:
            stream_id = entry_id.decode()
            if (view.model, stream_id) in self._held:
                continue
            if view.num_wanted <= 0:
                self._recheck_at_s = 0.0
                return
            place = _read_place(view.model, fields)
            if place is None:
                structlog.get_logger().error("stream_entry_unreadable", model=view.model, stream_id=stream_id)
                await self._acknowledge(view.model, stream_id)
            else:
                await self._start(view, place, stream_id)

    async def _start(self, view: "_View", place: JobPlace, stream_id: str) -> None:
        outcome, *details = await self._steps.start(place, view.worker_id, stream_id)
        if outcome == b"expired":
            await close_or_leave(self._steps, place, Ended(int(details[0]), stream_id))
        elif outcome == b"over":
            await self._acknowledge(view.model, stream_id)
        elif outcome == b"started":
            fence = int(details[0])
            try:
                job = codec.decode(codec.JOB, details[1], where=f"job {place.job_id}")
            except CorruptRecord as error:
                structlog.get_logger().error("job_unreadable", job_id=place.job_id, error=error.message)
                failure = Failure(error.code, "the stored request cannot be read; send it again")
                expected = Expectation(JobState.RUNNING, fence)
                ended = await self._steps.end(place, expected, JobState.FAILED, failure)
                if ended is not None:
                    await close_or_leave(self._steps, place, ended)
                return
            self._held.add((view.model, stream_id))
            view.reserved.append(ReservedJob(job, fence, view.worker_id, stream_id))

    async def _acknowledge(self, model: ModelId, stream_id: str) -> None:
        await self._redis.xack(keys.stream_key(model), keys.GROUP, stream_id)

    async def _close(self, reserved: ReservedJob, place: JobPlace, ended: Ended) -> None:
        self._held.discard((place.model, reserved.stream_id))
        await close_or_leave(self._steps, place, ended)

    def _lose(self, reserved: ReservedJob) -> None:
        """The fence is lost: whether the entry is still ours to acknowledge shows when it is looked at again."""
        self._held.discard((reserved.job.request.model, reserved.stream_id))
        self._recheck_at_s = 0.0


@dataclass(frozen=True, slots=True)
class _View:
    """One look at one model's stream, and the jobs that the call has found so far."""

    model: ModelId
    worker_id: WorkerId
    max_images: int
    reserved: list[ReservedJob]

    @property
    def num_wanted(self) -> int:
        """Images for which there is room still."""
        return self.max_images - sum(held.job.request.num_images for held in self.reserved)


def _read_place(model: ModelId, fields: dict[bytes, bytes] | None) -> JobPlace | None:
    try:
        found = fields or {}
        return JobPlace(parse_tenant_id(found[b"t"].decode()), parse_job_id(found[b"j"].decode()), model)
    except (KeyError, ValueError, InvalidId):
        return None
