"""Forks: a new memory with the entries of another one, up to a version. Nobody sees any of it before all of it is there."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.errors import InvalidRequest, StoreUnavailable
from app.memory import keys
from app.memory.keys import MemoryKey
from app.memory.making import check_made
from app.memory.overview import no_such_memory
from app.memory.room import ROOM, EntryRoom, run_where_room
from app.memory.store import MemoryStore
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script

PAGE_ENTRIES = 200
_TTL_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class _Fork:
    """A fork on its way: what it is of, which version, under which key, and up to which act of forgetting it has followed.

    And up to which version prompts were out of what it copies; empty where they were not.
    """

    source: MemoryKey
    target: MemoryKey
    version: int
    token: str
    forget_version: int
    bare_version: str

    @property
    def log(self) -> str:
        return keys.fork_key(self.source.tenant_id, self.token)


class MemoryForker:
    """Forks memories, 200 entries a script. What dies on the way goes by itself within an hour.

    All methods raise StoreUnavailable, and NotReplicated where replicas are asked for.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        max_memories: int,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
    ) -> None:
        self._redis = redis
        self._store = MemoryStore(redis)
        self._max_memories = max_memories
        self._clock_ms = clock_ms
        self._replicas = replicas or Replicas(redis)
        load = partial(load_script, redis, "app.memory")
        self._copy = load("fork_copy")
        self._drop = load("fork_drop")
        self._publish = load("fork_publish", after=(*keys.COMMON, *ROOM))

    @redis_errors
    async def fork(
        self,
        source: MemoryKey,
        target: MemoryKey,
        version: int | None = None,
        *,
        most_entries: int | None = None,
    ) -> None:
        """Makes `target` of all that `source` held at a version; None is the current one.

        What is forgotten of the source before this returns is not in the fork. Raises NotFound, InvalidRequest where the
        memory has not come that far, MemoryExists, TooManyMemories, MemoryFull where the tenant's memories would hold more
        than `most_entries`.
        """
        fork, room = await self._begin(source, target, version), EntryRoom(source.tenant_id, most_entries)
        try:
            await self._fill(fork)
            while (answer := await self._try_publish(fork, room)) in (b"changed", b"expired"):
                fork = await self._follow(fork, is_lost=answer == b"expired")
            self._check(answer, fork)
        except BaseException:
            with suppress(StoreUnavailable):
                await self._discard(fork)
            raise

    def _check(self, answer: bytes, fork: _Fork) -> None:
        if answer == b"gone":
            raise no_such_memory(fork.source.memory_id)
        check_made(answer, fork.target, self._max_memories)

    async def _begin(self, source: MemoryKey, target: MemoryKey, version: int | None) -> _Fork:
        async with self._redis.pipeline(transaction=True) as opened:
            pipeline: Any = opened
            pipeline.sismember(keys.index_key(source.tenant_id), keys.index_member(source))
            pipeline.hmget(keys.meta_key(source), ["version", "forget_version", "bare_version"])
            pipeline.sismember(keys.index_key(source.tenant_id), keys.index_member(target))
            pipeline.zscore(keys.remains_key(source.tenant_id), f"prompts:{keys.index_member(source)}")
            is_there, (current, forget_version, bare_version), is_taken, pending = await pipeline.execute()
        if not is_there:
            raise no_such_memory(source.memory_id)
        if is_taken:
            check_made(b"exists", target, self._max_memories)
        newest = int(current or 0)
        if version is not None and version > newest:
            raise InvalidRequest(
                f"version {version} is outside 0..{newest}: memory {source.name!r} is at version {newest} now",
                param="version",
            )
        # Listed before anything is done: prompts may have to be taken out of the fork.
        await self._redis.zadd(keys.FORGETTING_KEY, {source.tenant_id: self._clock_ms()})
        until = newest if version is None else version
        is_bare = (
            bare_version is not None and pending is None
        )  # else prompts that are to go may be copied yet
        bare = bare_version.decode() if is_bare else ""
        return _Fork(source, target, until, secrets.token_hex(8), int(forget_version or 0), bare)

    async def _fill(self, fork: _Fork) -> None:
        touched = [keys.log_key(fork.source), fork.log]
        while await self._copy(touched, [fork.version, PAGE_ENTRIES, _TTL_MS]):
            continue

    async def _follow(self, fork: _Fork, *, is_lost: bool) -> _Fork:
        """Takes out what was forgotten since; where that cannot be told, all, and begins anew."""
        forgotten = await self._store.read_forgotten(fork.source, fork.forget_version)
        followed = _Fork(
            fork.source, fork.target, fork.version, fork.token, forgotten.version, fork.bare_version
        )
        if is_lost or fork.forget_version < forgotten.floor:
            await self._redis.unlink(fork.log)
            await self._fill(followed)
            return followed
        for first, last in forgotten.ranges:
            while await self._drop([fork.log], [first, last, PAGE_ENTRIES]):
                continue
        return followed

    async def _try_publish(self, fork: _Fork, room: EntryRoom) -> Any:
        source, target = fork.source, fork.target
        touched = [
            fork.log,
            *(make(source) for make in (keys.meta_key, keys.log_key, keys.forgotten_key)),
            *(make(target) for make in (keys.meta_key, keys.log_key, keys.forgotten_key)),
            keys.index_key(source.tenant_id),
            keys.remains_key(source.tenant_id),
        ]
        arguments: list[Any] = [keys.index_member(source), keys.index_member(target), fork.token]
        arguments += [fork.version, fork.forget_version, fork.bare_version]
        arguments += [self._clock_ms(), self._max_memories]
        written = await run_where_room(self._publish, touched, arguments, room=room, replicas=self._replicas)
        return written.checked()

    @redis_errors
    async def _discard(self, fork: _Fork) -> None:
        await self._redis.unlink(fork.log)
