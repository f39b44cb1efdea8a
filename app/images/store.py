"""Image bytes in the object store."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Literal

from app.domain.ids import JobId, TenantId, parse_job_id, parse_tenant_id
from app.errors import InvalidId
from app.objects.folder import ObjectFolder

_FOLDER = "images"
_KEY = re.compile(rf"{_FOLDER}/([^/]+)/([^/]+)/[0-9]+-([0-9]+)(?:-preview-[0-9]+)?\.png")
_PICTURE_KEY = re.compile(rf"{_FOLDER}/([^/]+)/([^/]+)/(?:picture(?:-([0-9]+))?|mask)\.png")


def image_key(tenant_id: TenantId, job_id: JobId, fence: int, index: int) -> str:
    """Where an image lies. It carries the fence, so a worker that lost its job overwrites nothing."""
    return f"{_FOLDER}/{tenant_id}/{job_id}/{fence}-{index}.png"


def preview_key(tenant_id: TenantId, job_id: JobId, fence: int, index: int, *, number: int) -> str:
    """Where a preview of an image lies. No record names it, so it is swept with what was left behind."""
    return f"{_FOLDER}/{tenant_id}/{job_id}/{fence}-{index}-preview-{number}.png"


def picture_key(tenant_id: TenantId, job_id: JobId, part: Literal["picture", "mask"]) -> str:
    """Where what an edit begins with lies. It is there before its job is, and until that has ended."""
    return f"{_FOLDER}/{tenant_id}/{job_id}/{part}.png"


def sent_picture_key(tenant_id: TenantId, job_id: JobId, index: int) -> str:
    """Where one of the pictures lies that a job makes entries of, likewise."""
    return f"{_FOLDER}/{tenant_id}/{job_id}/picture-{index}.png"


def parse_image_key(key: str) -> tuple[TenantId, JobId] | None:
    """The tenant and the job of an image or preview; None where the key is not of `image_key` or `preview_key`."""
    return _owner(_KEY.fullmatch(key))


def parse_picture_key(key: str) -> tuple[TenantId, JobId] | None:
    """The tenant and the job of a picture or mask; None where the key is of neither function above."""
    return _owner(_PICTURE_KEY.fullmatch(key))


def _owner(found: re.Match[str] | None) -> tuple[TenantId, JobId] | None:
    try:
        return None if found is None else (parse_tenant_id(found[1]), parse_job_id(found[2]))
    except InvalidId:
        return None


def index_of(key: str) -> int | None:
    """Which image of its job an image or preview is, or a picture becomes that was sent; None where the key is of neither."""
    found = _KEY.fullmatch(key) or _PICTURE_KEY.fullmatch(key)
    return None if found is None or found[3] is None else int(found[3])


class ImageStore(ObjectFolder):
    """Images by key, and the pictures that edits begin with. Keys are made by the functions above."""

    FOLDER = _FOLDER
    WHAT = "image"

    def list_of(self, tenant_id: TenantId, job_id: JobId) -> AsyncIterator[list[str]]:
        """The keys of all files of a job's images, of every fence, some at a time. Raises StoreUnavailable."""
        return self.list_below(f"{_FOLDER}/{tenant_id}/{job_id}/")

    async def delete_before(self, at_s: float) -> int:
        """Removes every image written before a Unix time; how many that were. Raises StoreUnavailable."""
        num_deleted = await self.delete_partial_before(at_s)
        async for keys in self.list_before(at_s):
            await asyncio.gather(*(self.delete(key) for key in keys))
            num_deleted += len(keys)
        return num_deleted
