"""Listens to channels on a connection of its own. Messages are hints: who waits must also look from time to time."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import structlog
from redis.asyncio import Redis

from app.redis.cancelling import end_task
from app.redis.errors import AWAY, redis_errors

_RECONNECT_PAUSE_S = 0.5
_READ_TIMEOUT_S = 5.0


class Listener:
    """An async context manager that calls `on_message(channel, data)` in the event loop for each message.

    It connects again by itself; messages sent meanwhile are lost. Entering raises StoreUnavailable.
    """

    def __init__(
        self, redis: Redis, channels: Sequence[str], on_message: Callable[[bytes, bytes], None]
    ) -> None:
        self._pubsub: Any = redis.pubsub(ignore_subscribe_messages=True)
        self._channels = tuple(channels)
        self._on_message = on_message
        self._task: asyncio.Task[None] | None = None

    @redis_errors
    async def __aenter__(self) -> Self:
        await self._pubsub.subscribe(*self._channels)
        self._task = asyncio.create_task(self._listen(), name="redis-listener")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops listening; a second time does nothing."""
        task, self._task = self._task, None
        if task is not None:
            await end_task(task)
        await self._pubsub.aclose()

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._pubsub.get_message(timeout=_READ_TIMEOUT_S)
            except AWAY as error:
                structlog.get_logger().warning("redis_listener_lost", error=str(error))
                await asyncio.sleep(_RECONNECT_PAUSE_S)
                continue
            if message is not None and message["type"] == "message":
                self._on_message(message["channel"], message["data"])
