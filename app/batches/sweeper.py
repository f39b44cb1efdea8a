"""Removes copies of inputs that no open batch reads: a process was killed, or woke up late, as it made one."""

from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from app.batches import keys
from app.batches.inputs import BatchInputs
from app.domain.batch import BatchState
from app.redis.errors import redis_errors
from app.redis.turns import take_turn

SLACK_S = 600.0  # for clocks that differ


class InputSweeper:
    """One rule: a copy whose batch has ended, or is not known, goes."""

    INTERVAL_S = 3600.0

    def __init__(self, redis: Redis, inputs: BatchInputs, *, clock_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._inputs = inputs
        self._clock_ms = clock_ms

    async def sweep(self) -> int:
        """The number of objects removed; 0 where somebody swept within the interval. Raises StoreUnavailable.

        Cost: one listing of the store's folder, and one round trip for each 100 objects.
        """
        if not await take_turn(self._redis, keys.SWEEP_KEY, interval_s=self.INTERVAL_S):
            return 0
        before_s = self._clock_ms() / 1000 - SLACK_S
        num_removed = await self._inputs.delete_partial_before(before_s)
        async for found in self._inputs.list_before(before_s):
            for key in await self._left_over(found):
                await self._inputs.delete(key)
                num_removed += 1
        return num_removed

    @redis_errors
    async def _left_over(self, found: Sequence[str]) -> list[str]:
        places = [(key, place) for key in found if (place := keys.parse_input_key(key)) is not None]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for _, (tenant_id, batch_id) in places:
                pipeline.hget(keys.batch_key(tenant_id, batch_id), "state")
            states: Any = await pipeline.execute()
        return [
            key
            for (key, _), state in zip(places, states, strict=True)
            if state is None or BatchState(state.decode()).is_ended
        ]
