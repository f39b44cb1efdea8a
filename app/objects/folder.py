"""Objects by key in one folder of an object store: a local folder, S3, or what else `obstore` knows by URL."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from app.errors import ConfigurationError, NotFound, StoreUnavailable
from app.objects.refusals import explain_refusal, is_missing_bucket, reason_of

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import RetryConfig

_LIST_CHUNK = 100
_READ_CHUNK_BYTES = 1024 * 1024
_LOCAL_PART_BYTES = 1024 * 1024
_REMOTE_PART_BYTES = 5 * 1024 * 1024  # the least that S3 takes as a part
_PARTS_AT_ONCE = 2
_MAX_RETRIES = 3
_RETRIES_S = 10.0  # the service has patience of its own, and clients are told
_PARTIAL = "*#[0-9]*"  # how a local store names what is not yet whole; it lists no such name

_log = structlog.get_logger(__name__)


def flush_to_disk(path: Path) -> None:
    """Returns when a power loss takes neither the contents of a file nor the name of a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ObjectFolder:
    """Objects of one kind. A subclass says in which folder of the store they lie and what one is called.

    `local` is where a local store keeps its files: `obstore` writes and renames them there, but leaves it to the
    system when they reach the disk. A record must not point to nothing, so a write ends when they have.
    """

    FOLDER: ClassVar[str]
    WHAT: ClassVar[str]

    def __init__(
        self, store: ObjectStore, local: Path | None = None, *, flush: Callable[[Path], None] = flush_to_disk
    ) -> None:
        self._store = store
        self._local = local
        self._flush = flush

    @classmethod
    def open(cls, url: str, *, flush: Callable[[Path], None] = flush_to_disk) -> Self:
        """The store that a URL names; a local folder is made where it is missing. Raises ConfigurationError."""
        parts = urlsplit(url)
        try:
            if parts.scheme == "file":
                local = Path(unquote(parts.path))
                local.mkdir(parents=True, exist_ok=True)
                return cls(LocalStore(local, automatic_cleanup=True), local, flush=flush)
            if parts.scheme == "memory":
                return cls(from_url(url))
            retries: RetryConfig = {
                "max_retries": _MAX_RETRIES,
                "retry_timeout": timedelta(seconds=_RETRIES_S),
            }
            return cls(from_url(url, retry_config=retries))
        except (BaseError, OSError, ValueError) as error:
            said = str(error).partition("\n")[0]
            raise ConfigurationError(
                f"the {cls.WHAT} store {url} cannot be opened: {said}; give SPARKE_IMAGE_URL a folder that can be written"
                " (file:///…) or a store that there is (s3://bucket/prefix)"
            ) from error

    @classmethod
    async def reach(cls, url: str) -> Self:
        """The same for a main: a store that refuses us is told before anything is done. Raises ConfigurationError."""
        store = cls.open(url)
        await store.check()
        return store

    async def check(self) -> None:
        """Raises ConfigurationError where the store refuses us for good: wrong credentials, a bucket that is not there.

        One that is away passes with a warning in the log: what needs it waits or is refused.
        """
        if self._local is not None:
            return
        try:
            async for _ in obstore.list(self._store, f"{self.FOLDER}/sparke-start/", chunk_size=1):
                return
        except (BaseError, OSError) as error:
            refusal = explain_refusal(error, self.WHAT)
            if refusal is not None:
                raise refusal from error
            _log.warning("object_store_away", store=self.WHAT, reason=reason_of(error))

    async def put(self, key: str, data: bytes) -> None:
        """Writes an object, whole or not at all, and for good. Raises StoreUnavailable."""
        with self.mapped_errors(key, "written"):
            await self._store.put_async(key, data)
            await self.settle(key)

    def writer(self, key: str) -> "ObjectWriter":
        """Writes an object piece by piece, with some parts of it in memory at a time: 1 MB each, 5 MB on S3."""
        size_bytes = _REMOTE_PART_BYTES if self._local is None else _LOCAL_PART_BYTES
        sink = obstore.open_writer_async(
            self._store, key, buffer_size=size_bytes, max_concurrency=_PARTS_AT_ONCE
        )
        return ObjectWriter(self, key, sink)

    async def settle(self, key: str) -> None:
        """Returns when an object that was written is on the disk, where the store is a local folder."""
        if self._local is not None:
            await asyncio.to_thread(self._flush_entry, self._local, key)

    def _flush_entry(self, local: Path, key: str) -> None:
        """The file, and every folder that may have got a new name: it is found again by all of them."""
        path = local / key
        for place in (path, *path.parents[: len(Path(key).parts)]):
            self._flush(place)

    async def get(self, key: str) -> bytes:
        """An object's bytes. Raises NotFound and StoreUnavailable."""
        with self.mapped_errors(key, "read"):
            found = await self._store.get_async(key)
            return bytes(await found.bytes_async())

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """An object's bytes in chunks. Raises NotFound and StoreUnavailable here, the latter also while it is read."""
        with self.mapped_errors(key, "read"):
            meta = await obstore.head_async(self._store, key)
        return self._chunks(key, meta["size"])

    async def _chunks(self, key: str, size_bytes: int) -> AsyncIterator[bytes]:
        """Each by a request of its own: how long one may take is bounded, and whoever reads may be slow."""
        for start_byte in range(0, size_bytes, _READ_CHUNK_BYTES):
            yield await self.read_range(key, start_byte, min(start_byte + _READ_CHUNK_BYTES, size_bytes))

    async def read_range(self, key: str, start_byte: int, end_byte: int) -> bytes:
        """An object's bytes from one place up to another, which it must have. Raises NotFound and StoreUnavailable."""
        with self.mapped_errors(key, "read"):
            return bytes(await obstore.get_range_async(self._store, key, start=start_byte, end=end_byte))

    async def has(self, key: str) -> bool:
        """Whether an object is there. Raises StoreUnavailable."""
        try:
            with self.mapped_errors(key, "read"):
                await obstore.head_async(self._store, key)
        except NotFound:
            return False
        return True

    async def copy(self, source: str, target: str) -> None:
        """Gives an object a second key, whole or not at all, and for good. Raises NotFound and StoreUnavailable."""
        with self.mapped_errors(source, "copied"):
            await obstore.copy_async(self._store, source, target)
            await self.settle(target)

    async def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error. Raises StoreUnavailable."""
        try:
            with self.mapped_errors(key, "removed"):
                await self._store.delete_async(key)
        except NotFound:
            return

    async def list_before(self, at_s: float) -> AsyncIterator[list[str]]:
        """The keys of all objects written before a Unix time, some at a time. Raises StoreUnavailable.

        S3 counts an object that came in parts from when its first part did.
        """
        with self.mapped_errors(f"{self.FOLDER}/", "listed"):
            async for chunk in obstore.list(self._store, f"{self.FOLDER}/", chunk_size=_LIST_CHUNK):
                yield [meta["path"] for meta in chunk if meta["last_modified"].timestamp() < at_s]

    async def list_below(self, prefix: str) -> AsyncIterator[list[str]]:
        """The keys of all objects below a folder of ours, which ends in a slash, some at a time. Raises StoreUnavailable."""
        with self.mapped_errors(prefix, "listed"):
            async for chunk in obstore.list(self._store, prefix, chunk_size=_LIST_CHUNK):
                yield [meta["path"] for meta in chunk]

    async def delete_under(self, place: str, *, with_partial: bool = False) -> int:
        """Removes every object of one place in the folder; how many there were. Raises StoreUnavailable.

        `with_partial` removes what is not yet whole too, as `delete_partial_before` does; it is not counted.
        """
        prefix, num_deleted = f"{self.FOLDER}/{place}/", 0
        async for found in self.list_below(prefix):
            await asyncio.gather(*(self.delete(key) for key in found))
            num_deleted += len(found)
        if with_partial and self._local is not None:
            with self.mapped_errors(prefix, "listed"):
                await asyncio.to_thread(_unlink_old, self._local / self.FOLDER / place, math.inf)
        return num_deleted

    async def delete_partial_before(self, at_s: float) -> int:
        """Removes what a killed process had not written to its end; how many that were. Raises StoreUnavailable.

        By hand in a local folder. Elsewhere the store does it: on S3 a rule for incomplete multipart uploads.
        """
        if self._local is None:
            return 0
        with self.mapped_errors(f"{self.FOLDER}/", "listed"):
            return await asyncio.to_thread(_unlink_old, self._local / self.FOLDER, at_s)

    @contextmanager
    def mapped_errors(self, key: str, deed: str) -> Iterator[None]:
        """The errors of the store as the service's own."""
        try:
            yield
        except (BaseError, OSError) as error:
            if isinstance(error, NotFoundError | FileNotFoundError) and not is_missing_bucket(error):
                raise NotFound(f"this {self.WHAT} is no longer kept") from error
            raise StoreUnavailable(f"{self.WHAT} {key} cannot be {deed}: {reason_of(error)}") from error


class ObjectWriter:
    """An object on its way: it is there, whole and for good, when `finish` has returned. Else `abandon` it."""

    def __init__(self, folder: ObjectFolder, key: str, sink: "AsyncWritableFile") -> None:
        self._folder = folder
        self._key = key
        self._sink: AsyncWritableFile | None = sink

    async def write(self, data: bytes) -> None:
        """Adds some bytes; waits while the store is slower than they come. Raises StoreUnavailable."""
        with self._folder.mapped_errors(self._key, "written"):
            await self._open_sink().write(data)

    async def finish(self) -> None:
        """Makes the object be there. Raises StoreUnavailable, after which it may be there or not."""
        with self._folder.mapped_errors(self._key, "written"):
            await self._open_sink().close()
            self._sink = None
            await self._folder.settle(self._key)

    def abandon(self) -> None:
        """Lets go of what was not finished; the store then removes its parts. After `finish` it does nothing."""
        self._sink = None

    def _open_sink(self) -> "AsyncWritableFile":
        if self._sink is None:
            raise ValueError(
                f"{self._key}: expected an object on its way, got one that is finished or given up"
            )
        return self._sink


def _unlink_old(folder: Path, at_s: float) -> int:
    num_deleted = 0
    with suppress(FileNotFoundError):  # finished or removed while we looked; the next sweep sees the rest
        for path in folder.rglob(_PARTIAL):
            if path.stat().st_mtime < at_s:
                path.unlink()
                num_deleted += 1
    return num_deleted
