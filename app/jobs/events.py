"""What happened to a job, told as it happens, and again to whoever comes back for what was missed."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis

from app.domain.ids import JobId, TenantId
from app.errors import InvalidId, NotFound, StoreUnavailable
from app.jobs.keys import EVENTS_CHANNEL, FINISHED_CHANNEL, events_key
from app.jobs.types import JobEvent
from app.jobs.wakeups import Wakeups
from app.redis.cancelling import wait_at_most
from app.redis.errors import redis_errors

_PAGE_EVENTS = 200
_EVENT_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
EVENT_FORM = f"^({_EVENT_ID.pattern})?$"  # as a JSON schema takes it; none is the beginning
_MAX_PART = 2**64 - 1


def parse_event_id(text: str) -> str:
    """The id of an event, or InvalidId."""
    if _EVENT_ID.fullmatch(text) is None or any(int(part) > _MAX_PART for part in text.split("-")):
        raise InvalidId(f"an event id has the form 1700000000000-0, got {text[:80]!r}")
    return text


def order_of(event_id: str) -> tuple[int, int]:
    """What event ids are ordered by."""
    at_ms, _, number = event_id.partition("-")
    return int(at_ms), int(number)


class JobEvents:
    """Follows jobs' events, over one connection for all of them. An async context manager.

    It looks every `poll_s`, and at once where it is woken. An outage of Redis of up to `outage_s` is waited for.
    """

    def __init__(self, redis: Redis, *, poll_s: float = 1.0, outage_s: float = 10.0) -> None:
        self._redis = redis
        self._poll_s = poll_s
        self._outage_s = outage_s
        self._wakeups = Wakeups(redis, [EVENTS_CHANNEL, FINISHED_CHANNEL])
        self._is_stopping = False

    async def __aenter__(self) -> Self:
        await self._wakeups.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wakeups.__aexit__(kind, error, trace)

    def stop(self) -> None:
        """Ends those who follow until the process stops: they come back to another replica, and miss nothing."""
        self._is_stopping = True
        self._wakeups.wake_all()

    @redis_errors
    async def last(self, tenant_id: TenantId, job_id: JobId) -> JobEvent:
        """The latest event. Raises NotFound where there are none, and StoreUnavailable."""
        found: Any = await self._redis.xrevrange(events_key(tenant_id, job_id), count=1)
        if not found:
            raise NotFound(f"there are no events of a job {job_id}")
        return _decode(*found[0])

    async def follow(
        self,
        tenant_id: TenantId,
        job_id: JobId,
        *,
        after: str = "0-0",
        idle_s: float = 15.0,
        until_stop: bool = False,
    ) -> AsyncGenerator[JobEvent | None]:
        """Every event later than `after`, in order and each once, until the last one; None where none came for `idle_s`.

        Ends without the last event only where the events are gone (a job is kept for its time to live), or at `stop`
        for who asked for it by `until_stop`. Raises StoreUnavailable after an outage.
        """
        told_at_s = time.monotonic()
        with self._wakeups.of(tenant_id, job_id) as news:
            while True:
                news.clear()
                events = await self._read_patiently(tenant_id, job_id, after)
                for event in events or ():
                    yield event
                    after, told_at_s = event.event_id, time.monotonic()
                    if event.is_last:
                        return
                if events is None or (until_stop and self._is_stopping):
                    return
                if not events:
                    await wait_at_most(news, self._poll_s)
                if time.monotonic() - told_at_s >= idle_s:
                    yield None
                    told_at_s = time.monotonic()

    async def _read_patiently(self, tenant_id: TenantId, job_id: JobId, after: str) -> list[JobEvent] | None:
        until_s = time.monotonic() + self._outage_s
        while True:
            try:
                return await self._read(tenant_id, job_id, after)
            except StoreUnavailable:
                if time.monotonic() + self._poll_s >= until_s:
                    raise
            await asyncio.sleep(self._poll_s)

    @redis_errors
    async def _read(self, tenant_id: TenantId, job_id: JobId, after: str) -> list[JobEvent] | None:
        """Later events; None where none can come any more."""
        name = events_key(tenant_id, job_id)
        while True:
            found: Any = await self._redis.xrange(name, min=f"({after}", count=_PAGE_EVENTS)
            if found:
                return [_decode(*entry) for entry in found]
            latest: Any = await self._redis.xrevrange(name, count=1)
            if not latest:
                return None
            last = _decode(*latest[0])
            if order_of(last.event_id) <= order_of(after):  # else it was written between the two looks
                return None if last.is_last else []


def _decode(event_id: bytes, fields: dict[bytes, bytes]) -> JobEvent:
    told = {name.decode(): value.decode() for name, value in fields.items()}
    return JobEvent(event_id.decode(), told.pop("type", ""), told)
