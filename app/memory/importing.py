"""Takes archives: entries lie under a key of the import's own, which no reader knows, until all have come and were right."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import Redis

from app.domain.ids import ImportId, MemoryName, TenantId
from app.errors import ImportConflict, MemoryExists, MemoryFrozen, NotFound, TooManyTransfers
from app.memory.archive import ArchiveEnd, ArchiveHeader, Entry, Progress
from app.memory.import_keys import import_key, imports_key, staging_key
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.making import too_many_memories
from app.memory.room import ROOM, EntryRoom, run_where_room
from app.redis.errors import redis_errors
from app.redis.records import decode
from app.redis.replicas import Replicas
from app.redis.scripts import load_script
from app.settings import Settings

_FULL_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """An import: how far it has come and into which name it goes. `is_done` once that memory is there."""

    import_id: ImportId
    name: MemoryName
    header: ArchiveHeader
    progress: Progress
    is_done: bool = False
    version: int = 0

    def memory_of(self, tenant_id: TenantId) -> MemoryKey:
        """The memory that it becomes."""
        return MemoryKey(tenant_id, self.header.latent_space, self.name)


@dataclass(frozen=True, slots=True)
class ImportLimits:
    """For how long an import lives after its last write, how many of a tenant may be unfinished, how many memories it may have."""

    ttl_s: int
    max_open: int
    max_memories: int = 1000

    @classmethod
    def of(cls, settings: Settings) -> "ImportLimits":
        """As the settings say."""
        return cls(settings.import_ttl_s, settings.max_imports_per_tenant, settings.max_memories_per_tenant)


_RECORD: TypeAdapter[ImportRecord] = TypeAdapter(ImportRecord)


class MemoryImporter:
    """Imports of all tenants. All methods raise StoreUnavailable where Redis does not answer; each may be repeated.

    What is not finished within the time to live after its last write goes by itself. That it is done waits for replicas
    where those are asked for: NotReplicated, and it may yet stand.
    """

    def __init__(
        self,
        redis: Redis,
        limits: ImportLimits,
        *,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._ttl_ms = 1000 * limits.ttl_s
        self._max_open = limits.max_open
        self._max_memories = limits.max_memories
        self._clock_ms = clock_ms
        self._begin = load_script(redis, "app.memory", "import_begin")
        self._write = load_script(redis, "app.memory", "import_write")
        self._publish = load_script(redis, "app.memory", "import_publish", after=ROOM)
        self._discard = load_script(redis, "app.memory", "import_discard")

    @redis_errors
    async def get(self, tenant_id: TenantId, import_id: ImportId) -> ImportRecord:
        """How an import stands. Raises NotFound, also once it has expired, and CorruptRecord."""
        found: Any = await self._redis.hget(import_key(tenant_id, import_id), "record")
        if found is None:
            raise no_such_import(import_id)
        return decode(_RECORD, found, where=f"import {import_id}")

    @redis_errors
    async def check_name(self, memory: MemoryKey) -> None:
        """Raises MemoryExists where an import would be refused now."""
        version: Any = await self._redis.hget(meta_key(memory), "version")
        if int(version or 0):
            raise _exists(memory)

    @redis_errors
    async def begin(self, tenant_id: TenantId, record: ImportRecord) -> None:
        """Begins an import whose header has come. Raises MemoryExists, MemoryFrozen, TooManyMemories, TooManyTransfers and ImportConflict."""
        memory = record.memory_of(tenant_id)
        keys = [
            import_key(tenant_id, record.import_id),
            imports_key(tenant_id),
            meta_key(memory),
            log_key(memory),
            index_key(tenant_id),
        ]
        arguments: list[Any] = [record.import_id, _RECORD.dump_json(record), record.progress.offset_bytes]
        arguments += [self._clock_ms(), self._ttl_ms, self._max_open]
        answer = await self._begin(keys, [*arguments, index_member(memory), self._max_memories])
        if answer == b"crowded":
            raise too_many_memories(self._max_memories)
        if answer == b"full":
            raise TooManyTransfers(
                f"you have {self._max_open} imports that are not finished, which is the most; finish one, or wait until"
                f" one expires, {self._ttl_ms // 1000} s after its last byte",
                retry_after_s=_FULL_RETRY_S,
            )
        self._check(answer, tenant_id, record)

    @redis_errors
    async def write(
        self, tenant_id: TenantId, record: ImportRecord, entries: tuple[Entry, ...], progress: Progress
    ) -> ImportRecord:
        """Adds a block; the import as it then is. Raises ImportConflict where it is no longer as `record` says."""
        later = replace(record, progress=progress)
        arguments: list[Any] = [
            record.import_id,
            record.progress.offset_bytes,
            progress.offset_bytes,
            _RECORD.dump_json(later),
            self._clock_ms(),
            self._ttl_ms,
        ]
        for version, data in entries:
            arguments += (version, data)
        answer = await self._write(_keys(tenant_id, record.import_id), arguments)
        self._check(answer, tenant_id, record)
        return later

    @redis_errors
    async def publish(
        self,
        tenant_id: TenantId,
        record: ImportRecord,
        end: ArchiveEnd,
        progress: Progress,
        *,
        most_entries: int | None = None,
    ) -> ImportRecord:
        """Makes the memory be there: one script. Raises MemoryExists, MemoryFrozen and ImportConflict; then nothing is there.

        So it is with MemoryFull, where the tenant's memories would hold more than `most_entries`. Where something was forgotten, versions from the first gap up to that act cannot be read as they were.
        """
        memory, is_forgotten = record.memory_of(tenant_id), end.forget_version > 0
        version = max(record.header.version, end.forget_version)
        first_gone = progress.first_gap or progress.last_version + 1
        later = replace(record, progress=progress, is_done=True, version=version)
        keys = [
            *_keys(tenant_id, record.import_id),
            meta_key(memory),
            log_key(memory),
            index_key(tenant_id),
        ]
        arguments: list[Any] = [
            record.import_id,
            record.progress.offset_bytes,
            progress.offset_bytes,
            _RECORD.dump_json(later),
            self._ttl_ms,
            progress.num_entries,
            version,
            record.header.created_at_ms,
            first_gone if is_forgotten else "",
            end.forget_version,
            index_member(memory),
        ]
        room = EntryRoom(tenant_id, most_entries)
        written = await run_where_room(self._publish, keys, arguments, room=room, replicas=self._replicas)
        self._check(written.reply, tenant_id, record)
        written.checked()
        return later

    @redis_errors
    async def discard(self, tenant_id: TenantId, import_id: ImportId) -> None:
        """Removes what an import has received; one that is done, or not there, stays as it is."""
        await self._discard(_keys(tenant_id, import_id), [import_id])

    def _check(self, answer: Any, tenant_id: TenantId, record: ImportRecord) -> None:
        if answer == b"exists":
            raise _exists(record.memory_of(tenant_id))
        if answer == b"frozen":
            raise MemoryFrozen(
                f"memory {record.memory_of(tenant_id).memory_id} is frozen, so nothing goes into it; PATCH it with frozen false,"
                " or give another name",
                param="name",
            )
        if answer in (b"moved", b"there"):
            raise ImportConflict(
                f"import {record.import_id} was at byte {record.progress.offset_bytes} and has gone on since: somebody"
                " else sends it too; ask how it stands"
            )
        if answer == b"gone":
            raise ImportConflict(f"import {record.import_id} has expired while it was sent; begin anew")


def no_such_import(import_id: str) -> NotFound:
    """The error for an id that names no import of the tenant."""
    return NotFound(f"there is no import {import_id[:80]!r}; it has expired, was wrong, or never was yours")


def _exists(memory: MemoryKey) -> MemoryExists:
    return MemoryExists(
        f"memory {memory.memory_id} has versions already, which those of an archive would get mixed up with; give another"
        " name",
        param="name",
    )


def _keys(tenant_id: TenantId, import_id: ImportId) -> list[str]:
    return [import_key(tenant_id, import_id), staging_key(tenant_id, import_id), imports_key(tenant_id)]
