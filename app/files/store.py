"""What is known of tenants' files: add a record, read one, list them, remove one."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from redis.asyncio import Redis

from app.domain.file import StoredFile
from app.domain.ids import FileId, TenantId
from app.errors import CorruptRecord, NotFound, StorageFull, TooManyFiles
from app.files import codec, keys
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script

_MAX_READ_AT_ONCE = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FileQuery:
    """Which files to list: at most `limit` of a purpose (None: any), from the one after `after` in their order.

    The purpose may be one that no file of ours has.
    """

    limit: int
    order: Literal["asc", "desc"] = "desc"
    after: FileId | None = None
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class FilePage:
    """Some files in order of creation, and whether there are more."""

    files: tuple[StoredFile, ...]
    has_more: bool


class FileStore:
    """Records of the files of all tenants. All methods raise StoreUnavailable where Redis does not answer.

    What is added or removed waits for replicas where those are asked for: NotReplicated, and it may yet stand.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        max_files: int,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
        most_bytes: Callable[[TenantId], Awaitable[int | None]] | None = None,
    ) -> None:
        """`most_bytes` says how many bytes all files of a tenant may have; None: any number."""
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._most_bytes = most_bytes
        self._max_files = max_files
        self._clock_ms = clock_ms
        self._add = load_script(redis, "app.files", "add")
        self._remove = load_script(redis, "app.files", "remove")

    @redis_errors
    async def check_room(self, tenant_id: TenantId) -> None:
        """Raises TooManyFiles or StorageFull where any further file would be refused now."""
        living = await self._redis.zcount(keys.expiries_key(tenant_id), f"({self._clock_ms()}", "+inf")
        if living >= self._max_files:
            raise self._full()
        most_bytes = await self._find_most_bytes(tenant_id)
        if most_bytes is not None and await self.stored_bytes(tenant_id) >= most_bytes:
            raise _no_room(most_bytes)

    @redis_errors
    async def stored_bytes(self, tenant_id: TenantId) -> int:
        """Bytes of all files that are there. Files from before sizes were kept count as none."""
        ids: Any = await self._redis.zrangebyscore(
            keys.expiries_key(tenant_id), f"({self._clock_ms()}", "+inf"
        )
        sizes: Any = await self._redis.hmget(keys.sizes_key(tenant_id), ids) if ids else []
        return sum(int(size or 0) for size in sizes)

    @redis_errors
    async def add(self, file: StoredFile) -> None:
        """Writes the record: now the file is there. The same one again changes nothing. Raises TooManyFiles and StorageFull.

        After StoreUnavailable the record may be there or not, so the bytes must be left where they are.
        """
        most_bytes = await self._find_most_bytes(file.tenant_id)
        written = await self._replicas.run(
            self._add,
            _slot_keys(file.tenant_id, file.file_id),
            [
                file.file_id,
                codec.encode_file(file),
                self._clock_ms(),
                file.expires_at_ms,
                self._max_files,
                file.size_bytes,
                "" if most_bytes is None else most_bytes,
            ],
        )
        added = written.checked()
        if added == 2:
            raise _no_room(most_bytes or 0)
        if not added:
            raise self._full()

    @redis_errors
    async def get(self, tenant_id: TenantId, file_id: FileId) -> StoredFile:
        """What is known of a file. Raises NotFound, also once it has expired, and CorruptRecord."""
        data: Any = await self._redis.get(keys.file_key(tenant_id, file_id))
        file = None if data is None else codec.decode_file(data, where=f"file {file_id}")
        if file is None or self._is_over(file):
            raise no_such_file(file_id)
        return file

    @redis_errors
    async def list_files(self, tenant_id: TenantId, query: FileQuery) -> FilePage:
        """The files of a query. A cursor names a place, so its own file need not be there any more.

        A record that cannot be read is left out and logged: it must not hide the others.
        """
        found: list[StoredFile] = []
        after, step = query.after, min(query.limit + 1, _MAX_READ_AT_ONCE)
        while len(found) <= query.limit:
            ids = await self._ids_after(tenant_id, after, query.order, num=step)
            if not ids:
                break
            after = ids[-1]
            found += [
                file for file in await self._read(tenant_id, ids) if query.purpose in (None, file.purpose)
            ]
        return FilePage(tuple(found[: query.limit]), len(found) > query.limit)

    @redis_errors
    async def remove(self, tenant_id: TenantId, file_id: FileId) -> None:
        """Removes the record: now the file is not there. Raises NotFound, also the second time.

        Where the connection breaks in between, the repetition finds nothing: the file is gone and NotFound is raised.
        """
        arguments = [file_id, self._clock_ms()]
        removed = await self._replicas.run(self._remove, _slot_keys(tenant_id, file_id), arguments)
        if not removed.checked():
            raise no_such_file(file_id)

    @redis_errors
    async def without_record(self, tenant_id: TenantId, file_ids: Sequence[FileId]) -> list[FileId]:
        """Those of some ids that name no file."""
        records: Any = await self._redis.mget([keys.file_key(tenant_id, file_id) for file_id in file_ids])
        return [file_id for file_id, record in zip(file_ids, records, strict=True) if record is None]

    async def _ids_after(
        self, tenant_id: TenantId, after: FileId | None, order: str, *, num: int
    ) -> list[FileId]:
        index = keys.index_key(tenant_id)
        if order == "asc":
            found: Any = await self._redis.zrangebylex(index, f"({after}" if after else "-", "+", 0, num)
        else:
            found = await self._redis.zrevrangebylex(index, f"({after}" if after else "+", "-", 0, num)
        return [FileId(file_id.decode()) for file_id in found]

    async def _read(self, tenant_id: TenantId, file_ids: Sequence[FileId]) -> list[StoredFile]:
        records: Any = await self._redis.mget([keys.file_key(tenant_id, file_id) for file_id in file_ids])
        files = []
        for file_id, data in zip(file_ids, records, strict=True):
            try:
                file = None if data is None else codec.decode_file(data, where=f"file {file_id}")
            except CorruptRecord as error:
                _log.warning("file_record_skipped", file_id=file_id, error=error.message)
                continue
            if file is not None and not self._is_over(file):
                files.append(file)
        return files

    async def _find_most_bytes(self, tenant_id: TenantId) -> int | None:
        return None if self._most_bytes is None else await self._most_bytes(tenant_id)

    def _is_over(self, file: StoredFile) -> bool:
        return self._clock_ms() >= file.expires_at_ms

    def _full(self) -> TooManyFiles:
        return TooManyFiles(
            f"you keep {self._max_files} files, which is the most; delete some, or wait until some expire",
            param="file",
        )


def no_such_file(file_id: str) -> NotFound:
    """The error for an id that names no file of the tenant."""
    return NotFound(f"there is no file {file_id[:80]!r}; it was deleted, has expired, or never was yours")


def _slot_keys(tenant_id: TenantId, file_id: FileId) -> list[str]:
    of_all = [make(tenant_id) for make in (keys.index_key, keys.expiries_key, keys.sizes_key)]
    return [keys.file_key(tenant_id, file_id), *of_all]


def _no_room(most_bytes: int) -> StorageFull:
    return StorageFull(
        f"your files may have {max(0, most_bytes)} bytes beside your images; delete some, or wait until some expire",
        param="file",
    )
