"""Wakes those who wait for news of a job, for all of an API process, over one connection."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from app.domain.ids import JobId, TenantId
from app.redis.listener import Listener
from app.redis.members import member_of


class Wakeups:
    """An async context manager that listens to channels whose messages are `<tenant>/<job>`.

    A message may be lost: who waits must look from time to time too.
    """

    def __init__(self, redis: Redis, channels: Sequence[str]) -> None:
        self._waiting: defaultdict[bytes, set[asyncio.Event]] = defaultdict(set)
        self._listener = Listener(redis, channels, self._wake)

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._listener.close()

    @contextmanager
    def of(self, tenant_id: TenantId, job_id: JobId) -> Iterator[asyncio.Event]:
        """An event that is set by each message of the job; who waits for it clears it before looking."""
        name, news = member_of(tenant_id, job_id).encode(), asyncio.Event()
        self._waiting[name].add(news)
        try:
            yield news
        finally:
            self._waiting[name].discard(news)
            if not self._waiting[name]:
                del self._waiting[name]

    def wake_all(self) -> None:
        """Sets every event, so that all who wait look at what has changed beside Redis."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    def _wake(self, _channel: bytes, name: bytes) -> None:
        for event in self._waiting.get(name, ()):
            event.set()
