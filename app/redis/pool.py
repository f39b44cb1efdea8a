"""Connections that are shared: who finds all of them in use waits for one, in the order of coming."""

import asyncio
import sys
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError


class PatientPool(ConnectionPool):
    """At most `max_connections`; what wants one more waits up to `timeout_s`, then ConnectionError.

    In place of redis-py's BlockingConnectionPool. That waits on an asyncio.Condition, and on Python 3.11 a waiter that is
    cancelled as it is woken takes the wake-up along: the next one sleeps beside a free connection. A semaphore hands it on.
    """

    def __init__(self, *, max_connections: int, timeout_s: float, **connection: Any) -> None:
        super().__init__(max_connections=sys.maxsize, **connection)  # the semaphore is the bound
        self._free = asyncio.Semaphore(max_connections)
        self._timeout_s = timeout_s

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection that is ready for a command."""
        try:
            async with asyncio.timeout(self._timeout_s if self._free.locked() else None):
                await self._free.acquire()  # at once, where one is free: no timer is made for that
        except TimeoutError as error:
            raise RedisConnectionError(f"no connection was free within {self._timeout_s:g} s") from error
        connection: Any = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Gives a connection back; who has waited longest gets it."""
        try:
            await super().release(connection)
        finally:
            self._free.release()
