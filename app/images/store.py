"""Image bytes in an object store: a local folder, S3, or what else `obstore` knows by URL."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from app.domain.ids import JobId, TenantId
from app.errors import ConfigurationError, NotFound, StoreUnavailable

_FOLDER = "images"
_LIST_CHUNK = 100


def image_key(tenant_id: TenantId, job_id: JobId, fence: int, index: int) -> str:
    """Where an image lies. It carries the fence, so a worker that lost its job overwrites nothing."""
    return f"{_FOLDER}/{tenant_id}/{job_id}/{fence}-{index}.png"


def flush_to_disk(path: Path) -> None:
    """Returns when a power loss takes neither the contents of a file nor the name of a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ImageStore:
    """Images by key. Keys are made by `image_key`.

    `folder` is where a local store keeps its files: `obstore` writes and renames them there, but leaves it to the
    system when they reach the disk. A job that succeeded must not point to nothing, so `put` waits until they have.
    """

    def __init__(
        self, store: ObjectStore, folder: Path | None = None, *, flush: Callable[[Path], None] = flush_to_disk
    ) -> None:
        self._store = store
        self._folder = folder
        self._flush = flush

    @classmethod
    def open(cls, url: str, *, flush: Callable[[Path], None] = flush_to_disk) -> "ImageStore":
        """The store that a URL names; a local folder is made where it is missing. Raises ConfigurationError."""
        parts = urlsplit(url)
        try:
            if parts.scheme == "file":
                folder = Path(unquote(parts.path))
                folder.mkdir(parents=True, exist_ok=True)
                return cls(LocalStore(folder, automatic_cleanup=True), folder, flush=flush)
            return cls(from_url(url))
        except (BaseError, OSError, ValueError) as error:
            raise ConfigurationError(f"the image store {url} cannot be opened: {error}") from error

    async def put(self, key: str, data: bytes) -> None:
        """Writes an image, whole or not at all, and for good. Raises StoreUnavailable."""
        try:
            await self._store.put_async(key, data)
            if self._folder is not None:
                await asyncio.to_thread(self._flush_entry, self._folder, key)
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"image {key} cannot be written: {error}") from error

    def _flush_entry(self, folder: Path, key: str) -> None:
        """The file, and every folder that may have got a new name: it is found again by all of them."""
        path = folder / key
        for place in (path, *path.parents[: len(Path(key).parts)]):
            self._flush(place)

    async def get(self, key: str) -> bytes:
        """An image's bytes. Raises NotFound and StoreUnavailable."""
        try:
            found = await self._store.get_async(key)
            return bytes(await found.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise NotFound("this image is no longer kept") from error
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"image {key} cannot be read: {error}") from error

    async def delete(self, key: str) -> None:
        """Removes an image; one that is not there is no error. Raises StoreUnavailable."""
        try:
            await self._store.delete_async(key)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"image {key} cannot be removed: {error}") from error

    async def delete_before(self, at_s: float) -> int:
        """Removes every image written before a Unix time; how many that were. Raises StoreUnavailable."""
        num_deleted = 0
        try:
            async for chunk in obstore.list(self._store, f"{_FOLDER}/", chunk_size=_LIST_CHUNK):
                old = [meta["path"] for meta in chunk if meta["last_modified"].timestamp() < at_s]
                await asyncio.gather(*(self.delete(key) for key in old))
                num_deleted += len(old)
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the images cannot be listed: {error}") from error
        return num_deleted
