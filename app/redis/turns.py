"""Who does now what one process of many does once in a while."""

from redis.asyncio import Redis

from app.redis.errors import redis_errors


@redis_errors
async def take_turn(redis: Redis, key: str, *, interval_s: float) -> bool:
    """True for whoever asks first in an interval; the key lives about that long. Raises StoreUnavailable.

    Slightly shorter than the interval, so that a process' own timer is not refused by its last turn.
    """
    return bool(await redis.set(key, b"1", nx=True, px=max(1, int(interval_s * 900))))
