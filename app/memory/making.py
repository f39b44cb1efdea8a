"""Makes memories, new ones that hold nothing, and gives them other names."""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import MemoryName
from app.errors import MemoryExists, TooManyMemories
from app.memory import keys
from app.memory.keys import MemoryKey
from app.memory.overview import no_such_memory
from app.memory.shaping import Setting
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script


class MemoryMaker:
    """Creates and renames memories. All methods raise StoreUnavailable, and NotReplicated where replicas are asked for."""

    def __init__(
        self,
        redis: Redis,
        *,
        max_memories: int,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
    ) -> None:
        self._redis = redis
        self._max_memories = max_memories
        self._clock_ms = clock_ms
        self._replicas = replicas or Replicas(redis)
        load = partial(load_script, redis, "app.memory", after=keys.COMMON)
        self._create = load("create")
        self._rename = load("rename")

    @redis_errors
    async def check_room(self, memory: MemoryKey) -> None:
        """Raises TooManyMemories where a memory is not there and the tenant has as many as it may. Cost: one round trip."""
        index = keys.index_key(memory.tenant_id)
        async with self._redis.pipeline(transaction=False) as opened:
            pipeline: Any = opened
            pipeline.sismember(index, keys.index_member(memory))
            pipeline.scard(index)
            is_there, num_memories = await pipeline.execute()
        if not is_there and num_memories >= self._max_memories:
            raise too_many_memories(self._max_memories)

    @redis_errors
    async def create(self, memory: MemoryKey, settings: Mapping[Setting, int | None]) -> None:
        """Makes a memory that holds nothing. Raises MemoryExists and TooManyMemories."""
        fields: list[Any] = [part for pair in settings.items() if pair[1] is not None for part in pair]
        touched = [keys.meta_key(memory), keys.index_key(memory.tenant_id)]
        arguments: list[Any] = [keys.index_member(memory), secrets.token_hex(8), self._clock_ms()]
        written = await self._replicas.run(self._create, touched, [*arguments, self._max_memories, *fields])
        check_made(written.checked(), memory, self._max_memories)

    @redis_errors
    async def rename(self, memory: MemoryKey, name: MemoryName) -> MemoryKey:
        """Gives a memory another name; the memory under it. Raises NotFound and MemoryExists.

        Versions stay. Jobs that had read it under the old name go on under the new one; what names the old one from now on
        makes a memory anew.
        """
        renamed = MemoryKey(memory.tenant_id, memory.latent_space, name)
        touched = [
            *(make(memory) for make in (keys.meta_key, keys.log_key, keys.forgotten_key, keys.copy_key)),
            keys.rewritten_key(keys.log_key(memory)),
            *(make(renamed) for make in (keys.meta_key, keys.log_key, keys.forgotten_key)),
            keys.index_key(memory.tenant_id),
            keys.remains_key(memory.tenant_id),
        ]
        arguments: list[Any] = [keys.index_member(memory), keys.index_member(renamed), memory.name, name]
        call = [*arguments, secrets.token_hex(8), 1000 * keys.DELETED_TTL_S]
        answer = (await self._replicas.run(self._rename, touched, call)).checked()
        if answer == b"gone":
            raise no_such_memory(memory.memory_id)
        check_made(answer, renamed, self._max_memories)
        return renamed


def check_made(answer: bytes, memory: MemoryKey, max_memories: int) -> None:
    """Raises MemoryExists and TooManyMemories where a script says so."""
    if answer == b"exists":
        raise MemoryExists(
            f"the name {memory.name!r} is taken in latent space {memory.latent_space!r}: by a memory of yours, or by versions of"
            f" one that had it within the last {keys.DELETED_TTL_S // 86_400} days; give another name",
            param="name",
        )
    if answer == b"full":
        raise too_many_memories(max_memories)


def too_many_memories(max_memories: int) -> TooManyMemories:
    """The error for one memory more than a tenant may have."""
    return TooManyMemories(
        f"you have as many memories as you may, {max_memories}; delete one, or use one that is there"
    )
