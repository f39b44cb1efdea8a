"""Forgetting: entries leave a memory for good, and every copy of it hears of that at its next read."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import ImageId, parse_image_id
from app.errors import NotFound
from app.memory import keys
from app.memory.codec import read_image_id, read_time_ms
from app.memory.keys import MemoryKey
from app.memory.overview import no_such_memory
from app.memory.store import MemoryStore, version_of
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script

PAGE_ENTRIES = 512
CLOCK_SLACK_MS = 3_600_000  # entries are in order of their commits; workers' clocks differ by less than this


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many entries were forgotten, and the memory's version after it."""

    num_entries: int
    version: int


class MemoryForgetter:
    """Forgets entries of all tenants' memories. All methods raise StoreUnavailable and NotFound: no such memory.

    Once one returns, no read of the memory that begins finds the entries. What else tells of them is noted in the
    tenant's remains, by the same script. After StoreUnavailable something may have been forgotten: ask again. So after
    NotReplicated, where replicas are asked for and do not have it yet.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        clock_ms: Callable[[], int],
        max_ranges: int = keys.MAX_RANGES,
        replicas: Replicas | None = None,
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._clock_ms = clock_ms
        self._max_ranges = max_ranges
        load = partial(load_script, redis, "app.memory", after=keys.COMMON)
        self._forget = load("forget")
        self._clear = load("clear")

    @redis_errors
    async def forget_versions(self, memory: MemoryKey, versions: Iterable[int]) -> Forgotten:
        """Forgets the entries of some versions; those that are not there are passed over."""
        await self._begin(memory)
        wanted = sorted(set(versions))
        pages = [wanted[start : start + PAGE_ENTRIES] for start in range(0, len(wanted), PAGE_ENTRIES)]
        return await self._forget_pages(memory, pages)

    @redis_errors
    async def forget_images(self, memory: MemoryKey, image_ids: Iterable[ImageId]) -> Forgotten:
        """Forgets the entries of some images; those that are not there are passed over.

        Cost: the log is read backwards from its end to where the oldest of the images can be.
        """
        await self._begin(memory)
        wanted = set(image_ids)
        return await self._forget_pages(memory, [await self._find(memory, wanted)])

    async def forget_images_everywhere(self, memory: MemoryKey, image_ids: Iterable[ImageId]) -> Forgotten:
        """The same in every memory of the tenant, forks among them; the version is that of the memory named.

        One that is forked or renamed meanwhile is found under its new name.
        """
        wanted, done = list(image_ids), {memory}
        forgotten = await self.forget_images(memory, wanted)
        num_entries, store = forgotten.num_entries, MemoryStore(self._redis)
        while others := set(await store.list_memories(memory.tenant_id)) - done:
            for other in others:
                with suppress(NotFound):
                    num_entries += (await self.forget_images(other, wanted)).num_entries
            done |= others
        return Forgotten(num_entries, forgotten.version)

    @redis_errors
    async def forget_before(self, memory: MemoryKey, at_ms: int) -> Forgotten:
        """Forgets all entries that are older than a Unix time. Cost: what is forgotten is read, 512 at a time."""
        await self._begin(memory)
        num_entries, last, after = 0, Forgotten(0, 0), 0
        while page := await self._page(memory, after):
            times = {version: read_time_ms(data) for version, data in page}
            after = page[-1][0]
            old = [version for version, made_at_ms in times.items() if made_at_ms < at_ms]
            last = await self._forget_once(memory, old)
            num_entries += last.num_entries
            if min(times.values()) >= at_ms + CLOCK_SLACK_MS:
                break
        return await self._sum(memory, num_entries, last)

    @redis_errors
    async def forget_all(self, memory: MemoryKey) -> Forgotten:
        """Forgets everything at once. Jobs that had read the memory before add nothing to it any more."""
        return await self._clear_once(memory, is_deleted=False)

    @redis_errors
    async def delete(self, memory: MemoryKey) -> Forgotten:
        """The same, and the memory itself is there no more. One that is made later under its name goes on with its versions."""
        return await self._clear_once(memory, is_deleted=True)

    async def _begin(self, memory: MemoryKey) -> None:
        """The tenant is listed before anything is done, so that a crash leaves nothing that nobody finds."""
        await self._check_there(memory)
        await self._redis.zadd(keys.FORGETTING_KEY, {memory.tenant_id: self._clock_ms()})

    async def _check_there(self, memory: MemoryKey) -> None:
        index, member = keys.index_key(memory.tenant_id), keys.index_member(memory)
        is_there: Any = self._redis.sismember(index, member)
        if not await is_there:
            raise no_such_memory(memory.memory_id)

    async def _forget_pages(self, memory: MemoryKey, pages: Sequence[Sequence[int]]) -> Forgotten:
        num_entries, last = 0, Forgotten(0, 0)
        for page in pages:
            last = await self._forget_once(memory, page)
            num_entries += last.num_entries
        return await self._sum(memory, num_entries, last)

    async def _forget_once(self, memory: MemoryKey, versions: Sequence[int]) -> Forgotten:
        if not versions:
            return Forgotten(0, 0)
        touched = [
            keys.meta_key(memory),
            keys.log_key(memory),
            keys.forgotten_key(memory),
            keys.remains_key(memory.tenant_id),
        ]
        noted = f"compact:{keys.index_member(memory)}"
        arguments: list[Any] = [secrets.token_hex(8), self._max_ranges, noted]
        written = await self._replicas.run(self._forget, touched, [*arguments, *versions])
        num_entries, version = written.checked()
        return Forgotten(int(num_entries), int(version))

    async def _clear_once(self, memory: MemoryKey, *, is_deleted: bool) -> Forgotten:
        await self._begin(memory)
        token, member = secrets.token_hex(8), keys.index_member(memory)
        touched = [
            keys.meta_key(memory),
            keys.log_key(memory),
            keys.forgotten_key(memory),
            keys.remains_key(memory.tenant_id),
            keys.index_key(memory.tenant_id),
            keys.discarded_key(memory, token),
        ]
        noted = f"log:{member}:{token}"
        arguments: list[Any] = [token, noted, member, "1" if is_deleted else ""]
        written = await self._replicas.run(self._clear, touched, [*arguments, 1000 * keys.DELETED_TTL_S])
        reply = written.checked()
        if reply[0] == -1:
            raise no_such_memory(memory.memory_id)
        return Forgotten(int(reply[0]), int(reply[1]))

    async def _sum(self, memory: MemoryKey, num_entries: int, last: Forgotten) -> Forgotten:
        """Raises NotFound where the memory was renamed, or deleted, on the way: then not all that was asked for may be done."""
        await self._check_there(memory)
        if last.version:
            return Forgotten(num_entries, last.version)
        now: Any = self._redis.hget(keys.meta_key(memory), "version")
        return Forgotten(num_entries, int(await now or 0))

    async def _page(self, memory: MemoryKey, after: int) -> list[tuple[int, bytes]]:
        page: Any = await self._redis.xrange(keys.log_key(memory), min=f"({after}-0", count=PAGE_ENTRIES)
        return [(version_of(entry_id), fields.get(b"e", b"")) for entry_id, fields in page]

    async def _find(self, memory: MemoryKey, wanted: set[ImageId]) -> list[int]:
        oldest_ms = min((_asked_at_ms(image_id) for image_id in wanted), default=0)
        found: dict[ImageId, int] = {}
        newest = "+"
        while len(found) < len(wanted):
            page: Any = await self._redis.xrevrange(keys.log_key(memory), max=newest, count=PAGE_ENTRIES)
            for entry_id, fields in page:
                image_id = read_image_id(fields.get(b"e", b""))
                if image_id in wanted:
                    found[image_id] = version_of(entry_id)
            if len(page) < PAGE_ENTRIES:
                break
            newest = f"({version_of(page[-1][0])}-0"
            if read_time_ms(page[-1][1].get(b"e", b"")) < oldest_ms - CLOCK_SLACK_MS:
                break
        return sorted(found.values())


def _asked_at_ms(image_id: ImageId) -> int:
    """When the image's job was made: its id begins with it."""
    job_id, _ = parse_image_id(image_id)
    return int(job_id.removeprefix("job_")[:12], 16)
