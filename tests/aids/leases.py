"""Leases that are as old as a test wants them, whatever the time: a lease is how long a stream entry has lain idle."""

from redis.asyncio import Redis

from app.domain.ids import ModelId
from app.jobs.keys import GROUP, stream_key


async def leave_idle(redis: Redis, model: str, *, idle_s: float) -> None:
    """Every lease of a model is as it would be after a time in which nobody extended it."""
    stream = stream_key(ModelId(model))
    for entry in await redis.xpending_range(stream, GROUP, "-", "+", 1000):
        await redis.xclaim(
            *(stream, GROUP, entry["consumer"], 0, [entry["message_id"]]),
            idle=int(1000 * idle_s),
            justid=True,
        )


async def is_extended(redis: Redis, model: str, *, within_s: float) -> bool:
    """Whether every lease of a model was extended a moment ago."""
    entries = await redis.xpending_range(stream_key(ModelId(model)), GROUP, "-", "+", 1000)
    return all(entry["time_since_delivered"] < 1000 * within_s for entry in entries)
