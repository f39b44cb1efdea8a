"""Brings back the jobs of workers that are silent: a lease is the time that a stream entry has lain idle in Redis."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import ModelId
from app.errors import StoreUnavailable
from app.jobs import keys
from app.jobs.place import JobPlace
from app.jobs.transitions import Requeued, Transitions
from app.jobs.types import JobLimits
from app.jobs.workers import now_ms
from app.redis.errors import redis_errors
from app.telemetry.metrics import Metrics

_MAX_ENTRIES = 1000  # in one call; what is left comes with the next


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What became of jobs whose lease had expired: to be delivered again, or ended by now."""

    num_redelivered: int = 0
    num_ended: int = 0


class JobReclaimer:
    """Takes entries from workers that did not extend their leases. Every worker calls `reclaim` on a timer.

    An entry is taken by one caller (XAUTOCLAIM, by the clock of Redis), and its old owner extends it no more. A caller
    that dies in between leaves it to the next, a lease later. After an outage of Redis nothing is taken for a lease: the
    workers could not extend what they have.
    """

    def __init__(
        self,
        redis: Redis,
        limits: JobLimits,
        *,
        lease_s: float,
        clock_ms: Callable[[], int] = now_ms,
        monotonic_s: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._monotonic_s = monotonic_s
        self._steps = Transitions(redis, limits, clock_ms, metrics=metrics)
        self._resumes_at_s = 0.0

    async def reclaim(self, model: ModelId) -> Reclaimed:
        """Every job of the model whose lease has expired is queued again, or ends where it was cancelled.

        Raises StoreUnavailable. Cost: one command, and about five for each expired lease.
        """
        if self._monotonic_s() < self._resumes_at_s:
            return Reclaimed()
        try:
            return await self._reclaim(model)
        except StoreUnavailable:
            self._resumes_at_s = self._monotonic_s() + self._lease_s
            raise

    @redis_errors
    async def _reclaim(self, model: ModelId) -> Reclaimed:
        try:
            stream_ids: Any = await self._redis.xautoclaim(
                keys.stream_key(model),
                keys.GROUP,
                keys.RECLAIMER,
                min_idle_time=int(self._lease_s * 1000),
                count=_MAX_ENTRIES,
                justid=True,
            )
        except ResponseError as error:
            if str(error).startswith("NOGROUP"):
                return Reclaimed()
            raise
        outcomes = [await self._requeue(model, stream_id.decode()) for stream_id in stream_ids]
        num_redelivered = outcomes.count(Requeued.QUEUED)
        if num_redelivered:
            await self._redis.publish(keys.WAKE_CHANNEL, model)
        num_ended = outcomes.count(Requeued.CANCELLED) + outcomes.count(Requeued.DEAD)
        return Reclaimed(num_redelivered, num_ended)

    async def _requeue(self, model: ModelId, stream_id: str) -> Requeued:
        stream, outcome = keys.stream_key(model), Requeued.OVER
        found: Any = await self._redis.xrange(stream, min=stream_id, max=stream_id)
        place = JobPlace.of_entry(model, found[0][1] if found else None)
        if place is not None:
            outcome = await self._steps.requeue(place, stream_id=stream_id)
            structlog.get_logger().warning("lease_expired", job_id=place.job_id, became=outcome.value)
        if outcome in (Requeued.QUEUED, Requeued.OVER):
            await self._redis.xack(stream, keys.GROUP, stream_id)
        return outcome
