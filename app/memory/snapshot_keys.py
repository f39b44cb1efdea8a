"""Keys of workers' snapshots of memories. They are nowhere but here, and forgetting removes them: then no snapshot opens."""

import secrets
from typing import Any

from redis.asyncio import Redis

from app.memory.keys import MemoryKey, meta_key
from app.redis.errors import redis_errors
from app.redis.scripts import load_script

KEY_BYTES = 32


class SnapshotKeys:
    """One key a memory, from the first snapshot after an act of forgetting until the next. Raises StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = load_script(redis, "app.memory", "snapshot_key")

    @redis_errors
    async def find(self, memory: MemoryKey) -> bytes | None:
        """The key, if there is one: what it opens holds nothing that was forgotten, but by caps. Cost: one round trip."""
        found: Any = self._redis.hget(meta_key(memory), "snapshot_key")
        return _checked(await found)

    @redis_errors
    async def claim(self, memory: MemoryKey, forget_version: int) -> bytes | None:
        """The key for a snapshot that has followed all acts up to one; None where there was another since."""
        arguments: list[Any] = [forget_version, secrets.token_bytes(KEY_BYTES)]
        return _checked(await self._claim(keys=[meta_key(memory)], args=arguments))


def _checked(key: bytes | None) -> bytes | None:
    return key if key is not None and len(key) == KEY_BYTES else None
