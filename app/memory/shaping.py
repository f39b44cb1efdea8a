"""Settings of memories: frozen, capped by count and by age, with or without prompts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from redis.asyncio import Redis

from app.memory import keys
from app.memory.keys import MemoryKey
from app.memory.overview import no_such_memory
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script

Setting = Literal["frozen", "max_entries", "max_age_s", "keep_prompts"]


class MemoryShaper:
    """Changes settings, which the commit of every job keeps to. Raises NotFound and StoreUnavailable.

    Entries beyond a cap go, the oldest first, as if they had been forgotten; their images and jobs stay for their own
    time. By age they go with the next commit that writes. Prompts that are not to be kept any more are in the tenant's
    remains from then on, and shown to nobody.
    """

    def __init__(
        self, redis: Redis, *, clock_ms: Callable[[], int], replicas: Replicas | None = None
    ) -> None:
        self._redis = redis
        self._clock_ms = clock_ms
        self._replicas = replicas or Replicas(redis)
        load = partial(load_script, redis, "app.memory", after=keys.COMMON)
        self._shape = load("shape")
        self._cap = load("cap")

    @redis_errors
    async def shape(self, memory: MemoryKey, changes: Mapping[Setting, int | None]) -> None:
        """Sets each setting that is named, None takes it away; then keeps to the caps."""
        if (
            "keep_prompts" in changes
        ):  # listed before, as for forgetting, so that a crash leaves nothing that nobody finds
            await self._redis.zadd(keys.FORGETTING_KEY, {memory.tenant_id: self._clock_ms()})
        tenant_id, member = memory.tenant_id, keys.index_member(memory)
        touched = [keys.meta_key(memory), keys.index_key(tenant_id), keys.remains_key(tenant_id)]
        fields: list[Any] = [
            part for name, value in changes.items() for part in (name, "" if value is None else value)
        ]
        done = await self._replicas.run(self._shape, touched, [member, f"prompts:{member}", *fields])
        if not done.checked():
            raise no_such_memory(memory.memory_id)
        await self.keep_caps(memory)

    @redis_errors
    async def keep_caps(self, memory: MemoryKey) -> None:
        """Takes out what is beyond the memory's caps, if it has any. Cost: 64 entries a script."""
        touched = [keys.meta_key(memory), keys.log_key(memory), keys.forgotten_key(memory)]
        while (await self._replicas.run(self._cap, touched, [self._clock_ms()])).checked():
            continue
