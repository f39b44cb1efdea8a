"""How full a Redis is. What it stores is never evicted, so once it is full it takes no writes."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.redis.errors import redis_errors


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that are used, and that may be: `maxmemory`, or what the machine has where that is not set; 0 where neither is told."""

    used_bytes: int
    limit_bytes: int


class RedisRoom:
    """Asks one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @redis_errors
    async def read(self) -> Room:
        """How full it is. Raises StoreUnavailable. Cost: one command."""
        told: Any = await self._redis.info("memory")
        limit = int(told.get("maxmemory", 0)) or int(told.get("total_system_memory", 0))
        return Room(int(told["used_memory"]), limit)
