"""Writes a log anew with other bytes under the same versions: in a copy beside it, which takes its place all at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.memory.codec import read_prompt_bytes, without_prompt
from app.memory.keys import (
    COMMON,
    MemoryKey,
    copy_key,
    index_member,
    log_key,
    meta_key,
    remains_key,
    rewritten_key,
)
from app.memory.store import version_of
from app.redis.errors import redis_errors
from app.redis.scripts import load_script

PAGE_ENTRIES = 200
_TTL_MS = 86_400_000

Change = Callable[[int, bytes], bytes]
"""What becomes of the entry of a version. It must be the same whenever it is asked."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log to be written anew, with the keys beside it that its copy must agree with: compacted copy, meta and remains.

    Logs that are no memory's have none. `noted` is the remains' member to strike off.
    """

    name: str
    beside: tuple[str, str, str] | None = None
    noted: str = ""

    @classmethod
    def of(cls, memory: MemoryKey, *, noted: str = "") -> "Log":
        """A memory's log."""
        beside = (copy_key(memory), meta_key(memory), remains_key(memory.tenant_id))
        return cls(log_key(memory), beside, noted)


class LogRewriter:
    """Each step may be done again, by another process too; a process that dies leaves a copy that the next goes on with.

    Raises StoreUnavailable. What is added or forgotten meanwhile is added and forgotten in the copy. Costs the log's bytes
    once more in Redis until it is done.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._write = load_script(redis, "app.memory", "rewrite_write")
        self._publish = load_script(redis, "app.memory", "rewrite_publish", after=COMMON)
        self._strike = load_script(redis, "app.memory", "rewrite_strike")

    @redis_errors
    async def take_prompts_out(self, memory: MemoryKey) -> None:
        """Writes the memory's log without the prompts that are not to be kept; where there are none, nothing."""
        log = Log.of(memory, noted=f"prompts:{index_member(memory)}")
        touched = [meta_key(memory), remains_key(memory.tenant_id)]
        while True:
            guard = await self._guard(log)
            last = int(guard or 0)

            def change(version: int, data: bytes, last: int = last) -> bytes:
                return without_prompt(data) if version <= last else data

            if not await self._has_prompts(log.name, last):
                await self._strike(touched, [guard, log.noted])
            elif not await self._rewrite_once(log, change, guard):
                continue
            if await self._guard(log) == guard:
                return

    @redis_errors
    async def rewrite(self, log: Log, change: Change) -> None:
        """Writes a log anew, whatever it is of. Once this returns, all entries that were there are as `change` makes them."""
        while not await self._rewrite_once(log, change, await self._guard(log)):
            continue

    async def _guard(self, log: Log) -> str:
        if log.beside is None:
            return ""
        found: Any = await self._redis.hget(log.beside[1], "bare_version")
        return "" if found is None else found.decode()

    async def _rewrite_once(self, log: Log, change: Change, guard: str) -> bool:
        """Copies what the copy lacks, and tries to publish it; False where it has to be looked at again."""
        copy = rewritten_key(log.name)
        while True:
            newest: Any = await self._redis.xrevrange(copy, count=1)
            last = newest[0][0].decode() if newest else ""
            page: Any = await self._redis.xrange(
                log.name, min=f"({last}" if last else "-", count=PAGE_ENTRIES
            )
            if not page:
                break
            arguments: list[Any] = [last, _TTL_MS]
            for entry_id, fields in page:
                arguments += (entry_id, change(version_of(entry_id), fields.get(b"e", b"")))
            await self._write([copy], arguments)
        touched = [log.name, copy, *(log.beside or ())]
        return bool(await self._publish(touched, [guard, log.noted]))

    async def _has_prompts(self, log: str, last: int) -> bool:
        after = 0
        while page := await self._page(log, after, last):
            if any(read_prompt_bytes(fields.get(b"e", b"")) for _, fields in page):
                return True
            after = version_of(page[-1][0])
        return False

    async def _page(self, log: str, after: int, last: int) -> Any:
        if after >= last:
            return []
        return await self._redis.xrange(log, min=f"({after}-0", max=f"{last}-0", count=PAGE_ENTRIES)
