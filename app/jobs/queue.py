"""What a worker does with jobs: reserve some, end each one once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import ModelId, WorkerId
from app.domain.job import JobResult, JobState, Lane
from app.domain.result import Failure
from app.errors import CorruptRecord
from app.jobs import codec, keys
from app.jobs.arrivals import Released, StreamEntry
from app.jobs.place import JobPlace
from app.jobs.store import close_or_leave
from app.jobs.transitions import Ended, Expectation, Requeued, Transitions, state_of
from app.jobs.types import Cancelled, Committed, JobLimits, Progress, ReservedJob, Standing
from app.jobs.workers import now_ms
from app.redis.cancelling import wait_at_most
from app.redis.errors import redis_errors
from app.redis.listener import Listener
from app.telemetry.metrics import Metrics

_MAX_TURNS = 64  # turns in vain that one look takes
_RECHECK_ENTRIES = 1000
_RECHECK_POLLS = 10  # how often, in looks, to look for entries that were delivered to us but never reached us


class JobQueue:
    """The queue as one worker sees it. One task at a time calls `reserve`; the other methods may run beside it.

    As an async context manager it listens for wake-ups on a connection of its own; without, `reserve` only polls. It looks
    every `poll_s` without having been woken.
    """

    def __init__(
        self,
        redis: Redis,
        limits: JobLimits,
        *,
        clock_ms: Callable[[], int] = now_ms,
        metrics: Metrics | None = None,
        poll_s: float = 1.0,
    ) -> None:
        self._redis = redis
        self._poll_s = poll_s
        self._steps = Transitions(redis, limits, clock_ms, metrics=metrics)
        self._wake = asyncio.Event()
        self._listener = Listener(redis, [keys.WAKE_CHANNEL], lambda _channel, _model: self._wake.set())
        self._held: set[tuple[ModelId, str]] = set()
        self._recheck_at_s = time.monotonic() + _RECHECK_POLLS * self._poll_s
        self._look_again_at_s = 0.0
        self._num_looks = 0
        self._is_listening = False

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        self._is_listening = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_listening = False
        await self._listener.close()

    @redis_errors
    async def reserve(
        self, models: Sequence[ModelId], worker_id: WorkerId, max_images: int, block_ms: int
    ) -> list[ReservedJob]:
        """Starts jobs until they have `max_images` images, and returns them; waits up to `block_ms` for the first.

        `models` are names of queues, as `app.jobs.place` has them; a question counts as one image.
        The last one may have more images than there was room for; what follows it is left to other workers.
        Tenants take turns. Jobs past their deadline become EXPIRED, ended ones are skipped. Every job that
        is returned must be given to `commit`, `fail` or `give_back`, and its lease extended meanwhile. A call that was
        cancelled, or raised, loses nothing: what it had started is returned by a later one.
        """
        until_s = time.monotonic() + block_ms / 1000
        reserved: list[ReservedJob] = []
        try:
            while True:
                if self._is_due():
                    self._wake.clear()
                    await self._look(models, worker_id, max_images, reserved)
                remaining_s = until_s - time.monotonic()
                if reserved or remaining_s <= 0:
                    return reserved
                await wait_at_most(self._wake, min(remaining_s, self._poll_s))
        except BaseException:
            # What this call started is held by nobody now: the next one finds it among our pending entries.
            self._held -= {(JobPlace.of(job.job).model, job.stream_id) for job in reserved}
            self._recheck_at_s = 0.0
            raise

    def _is_due(self) -> bool:
        """False where the last look left nothing to find, and no message says that there is more by now."""
        now_s = time.monotonic()
        is_time = now_s >= min(self._look_again_at_s, self._recheck_at_s)
        return is_time or not self._is_listening or self._wake.is_set()

    @redis_errors
    async def begin(self, reserved: ReservedJob) -> Standing:
        """Says that the job is about to run: what happens from now on may be its own doing. Once for each start.

        Raises StoreUnavailable; to be repeated then.
        """
        return await self._steps.begin(reserved)

    @redis_errors
    async def standing(self, reserved: ReservedJob, progress: Progress | None = None) -> Standing:
        """How a job stands while it runs; how far it is, where given, is told in its events. Cost: one command."""
        if progress is not None and reserved.job.lane is Lane.INTERACTIVE:
            return await self._steps.progress(reserved, progress)
        place, names = JobPlace.of(reserved.job), ["state", "fence", "cancel_requested_at_ms"]
        state, fence, cancel = await self._redis.hmget(place.slot_keys[0], names)
        if state != JobState.RUNNING.encode() or fence is None or int(fence) != reserved.fence:
            return Standing.LOST
        return Standing.OURS if cancel is None else Standing.CANCELLED

    @redis_errors
    async def show(self, reserved: ReservedJob, index: int, number: int, storage_key: str) -> bool:
        """Tells in the job's events of preview `number` of its image `index`; False where the job is no more ours."""
        return await self._steps.show(reserved, index, number, storage_key)

    @redis_errors
    async def commit(
        self,
        reserved: ReservedJob,
        result: JobResult,
        entries: Sequence[bytes],
        *,
        seen_version: int | None = None,
    ) -> Committed | Cancelled | None:
        """Ends the job with its images, all or nothing: entries appended, result stored, waiters notified.

        The memory is the one that `result` names. Where all of it was forgotten since it was at `seen_version`, the job
        ends with its images and nothing is remembered. Cancelled where the job was, None where the fence was lost: then
        nothing was written. A second call changes nothing and answers as the first.
        """
        place = JobPlace.of(reserved.job)
        done = await self._steps.commit(reserved, result, entries, seen_version=seen_version)
        if done is None:
            self._lose(reserved)
            return None
        ended, version = done
        await self._close(reserved, place, ended)
        return Committed(version) if ended.state is JobState.SUCCEEDED else Cancelled()

    @redis_errors
    async def fail(self, reserved: ReservedJob, failure: Failure) -> JobState | None:
        """Ends the job with a failure; the state it then has. None where the fence was lost.

        That is EXPIRED or CANCELLED where that is the failure, and CANCELLED where a cancel was asked for before.
        """
        place = JobPlace.of(reserved.job)
        expected = Expectation(JobState.RUNNING, reserved.fence)
        ended = await self._steps.end(place, expected, state_of(failure), failure)
        if ended is None:
            self._lose(reserved)
            return None
        await self._close(reserved, place, replace(ended, stream_id=reserved.stream_id))
        return ended.state

    @redis_errors
    async def give_back(self, reserved: ReservedJob, *, is_forgiven: bool = True) -> bool:
        """Makes a job that was not done queued again, for another worker. False where it had ended or was not ours.

        `is_forgiven` False: it was begun, and what then went wrong may be its own doing.
        """
        place = JobPlace.of(reserved.job)
        given = await self._steps.requeue(place, fence=reserved.fence, is_forgiven=is_forgiven)
        if given is Requeued.OVER:
            self._lose(reserved)
            return False
        await self._redis.xack(keys.stream_key(place.model), keys.GROUP, reserved.stream_id)
        self._held.discard((place.model, reserved.stream_id))
        await self._redis.publish(keys.WAKE_CHANNEL, place.model)
        return given is Requeued.QUEUED

    @redis_errors
    async def extend_leases(self, worker_id: WorkerId) -> int:
        """Extends the lease of every job that is held here. How many had been lost: others have or will have those.

        To be called at intervals well below the lease. Cost: one command for each model that jobs are held of.
        """
        held: defaultdict[ModelId, list[str]] = defaultdict(list)
        for model, stream_id in self._held:
            held[model].append(stream_id)
        num_lost = 0
        for model, stream_ids in held.items():
            gone = await self._steps.extend(model, worker_id, stream_ids)
            lost = self._held & {
                (model, stream_id) for stream_id in gone
            }  # others have ended in the meantime
            self._held -= lost
            num_lost += len(lost)
        return num_lost

    async def _look(
        self, models: Sequence[ModelId], worker_id: WorkerId, max_images: int, reserved: list[ReservedJob]
    ) -> None:
        recheck = time.monotonic() >= self._recheck_at_s
        self._num_looks += 1
        self._look_again_at_s = 0.0
        first, is_exhausted = self._num_looks % max(len(models), 1), True
        for model in (*models[first:], *models[:first]):
            view = _View(model, worker_id, max_images, reserved)
            if recheck:
                await self._start_all(view, await self._read_pending(view))
            is_exhausted = await self._take_all(view) and is_exhausted
        if recheck:
            self._recheck_at_s = time.monotonic() + _RECHECK_POLLS * self._poll_s
        if is_exhausted:
            self._look_again_at_s = time.monotonic() + self._poll_s

    async def _take_all(self, view: "_View") -> bool:
        """Starts entries that nobody was given yet, and where there are none releases jobs, one for each turn.

        True where more images are wanted than there are.
        """
        released: Released | None = None
        num_in_vain = 0
        while view.num_wanted > 0 and num_in_vain < _MAX_TURNS:
            step = await self._steps.arrivals.take(view.model, view.worker_id, released)
            released = None
            if step is None:
                return True
            if isinstance(step, StreamEntry):
                await self._start_all(view, [step])
            else:
                released = await self._steps.arrivals.release(view.model, step)
                num_in_vain += not released.job_id
        return False

    async def _read_pending(self, view: "_View") -> list[StreamEntry]:
        """Entries that this worker was given and has not acknowledged."""
        stream = keys.stream_key(view.model)
        try:
            reply: Any = await self._redis.xreadgroup(
                keys.GROUP, view.worker_id, {stream: "0"}, count=_RECHECK_ENTRIES
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            return []
        entries = reply[0][1] if reply else []
        return [StreamEntry(entry_id.decode(), fields or {}) for entry_id, fields in entries]

    async def _start_all(self, view: "_View", entries: Sequence[StreamEntry]) -> None:
        for entry in entries:
            stream_id = entry.stream_id
            if (view.model, stream_id) in self._held:
                continue
            if view.num_wanted <= 0:
                self._recheck_at_s = 0.0
                return
            place = JobPlace.of_entry(view.model, entry.fields)
            if place is None:
                structlog.get_logger().error("stream_entry_unreadable", model=view.model, stream_id=stream_id)
                await self._acknowledge(view.model, stream_id)
            else:
                await self._start(view, place, stream_id)

    async def _start(self, view: "_View", place: JobPlace, stream_id: str) -> None:
        outcome, *details = await self._steps.start(place, view.worker_id, stream_id)
        if outcome in (b"expired", b"dead"):
            ended = Ended(details[0], stream_id, is_dead=outcome == b"dead")
            await close_or_leave(self._steps, place, ended)
        elif outcome == b"over":
            await self._acknowledge(view.model, stream_id)
        elif outcome == b"started":
            fence = int(details[0])
            try:
                job = codec.decode_job(details[1], where=f"job {place.job_id}")
            except CorruptRecord as error:
                await self._bury(place, fence, error)
            else:
                self._held.add((view.model, stream_id))
                view.reserved.append(ReservedJob(job, fence, view.worker_id, stream_id, int(details[2])))

    async def _bury(self, place: JobPlace, fence: int, error: CorruptRecord) -> None:
        """Ends a job whose record cannot be read, with a dead letter."""
        structlog.get_logger().error("job_unreadable", job_id=place.job_id, error=error.message)
        failure = Failure(error.code, "the stored request cannot be read; send it again")
        expected = Expectation(JobState.RUNNING, fence)
        ended = await self._steps.end(place, expected, JobState.FAILED, failure, is_dead=True)
        if ended is not None:
            await close_or_leave(self._steps, place, ended)

    async def _acknowledge(self, model: ModelId, stream_id: str) -> None:
        await self._redis.xack(keys.stream_key(model), keys.GROUP, stream_id)

    async def _close(self, reserved: ReservedJob, place: JobPlace, ended: Ended) -> None:
        self._held.discard((place.model, reserved.stream_id))
        await close_or_leave(self._steps, place, ended)

    def _lose(self, reserved: ReservedJob) -> None:
        """The fence is lost: whether the entry is still ours to acknowledge shows when it is looked at again."""
        self._held.discard((JobPlace.of(reserved.job).model, reserved.stream_id))
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
        return self.max_images - sum(max(1, held.job.num_images) for held in self.reserved)
