"""Which workers live, and what they serve: heartbeat keys that vanish with their worker."""

import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio import Redis

from app.domain.ids import ModelId, WorkerId
from app.errors import CorruptRecord
from app.jobs.codec import WORKER
from app.jobs.keys import worker_index_key, worker_key
from app.jobs.types import WorkerInfo
from app.redis.errors import redis_errors
from app.redis.records import decode


def now_ms() -> int:
    """The wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def make_worker_id() -> WorkerId:
    """An id for this start of this process; a restarted worker is another one."""
    return WorkerId(f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")


class WorkerRegistry:
    """The live workers. All methods raise StoreUnavailable where Redis does not answer."""

    def __init__(self, redis: Redis, *, ttl_s: float = 15.0, clock_ms: Callable[[], int] = now_ms) -> None:
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1000)
        self._clock_ms = clock_ms

    @redis_errors
    async def beat(self, info: WorkerInfo) -> None:
        """Says that the worker lives, for one time to live. The first beat comes before the first reserve."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(worker_key(info.worker_id), WORKER.dump_json(info), px=self._ttl_ms)
            pipe.zadd(worker_index_key(), {info.worker_id: self._clock_ms()})
            await pipe.execute()

    @redis_errors
    async def remove(self, worker_id: WorkerId) -> None:
        """Says that the worker has ended; what it still holds counts as lost at once."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(worker_key(worker_id))
            pipe.zrem(worker_index_key(), worker_id)
            await pipe.execute()

    @redis_errors
    async def list_workers(self) -> list[WorkerInfo]:
        """The live workers, the one with the oldest heartbeat first. Drops the dead from the index.

        One whose heartbeat cannot be read, as of another release, is left out, and logged.
        """
        found: Any = await self._redis.zrange(worker_index_key(), 0, -1)
        ids = [WorkerId(member.decode()) for member in found]
        if not ids:
            return []
        beats: Any = await self._redis.mget([worker_key(worker_id) for worker_id in ids])
        pairs = list(zip(ids, beats, strict=True))
        dead = [worker_id for worker_id, beat in pairs if beat is None]
        if dead:
            await self._redis.zrem(worker_index_key(), *dead)
        read = (_read_worker(worker_id, beat) for worker_id, beat in pairs if beat is not None)
        return [info for info in read if info is not None]

    async def serving(self, model: ModelId) -> bool:
        """True where a live worker has the model, or is loading it."""
        return any(model in info.models and info.phase != "draining" for info in await self.list_workers())

    @redis_errors
    async def is_alive(self, worker_id: WorkerId) -> bool:
        """True while the worker's heartbeat is there."""
        return bool(await self._redis.exists(worker_key(worker_id)))


def _read_worker(worker_id: WorkerId, beat: bytes) -> WorkerInfo | None:
    try:
        return decode(WORKER, beat, where=f"worker {worker_id}")
    except CorruptRecord as error:
        structlog.get_logger().warning("worker_unreadable", worker_id=worker_id, error=error.message)
        return None
