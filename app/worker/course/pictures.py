"""The picture that a job begins with, from the image store to the engine."""

import asyncio
import io
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Protocol

import structlog
from PIL import Image

from app.domain.job import Job
from app.errors import CannotEdit, CorruptRecord, NotFound, PictureGone, StoreUnavailable
from app.images.store import picture_key
from app.worker.model.models import LoadedModel
from sparke_engine.diffusion.edits import Picture

_log = structlog.get_logger(__name__)


class Pictures(Protocol):
    """Where pictures are."""

    async def get(self, key: str) -> bytes:
        """A picture's bytes, or NotFound."""
        ...


class Removes(Protocol):
    """Where images are that may have to go."""

    async def delete(self, key: str) -> None:
        """Remove an image; one that is not there is no error."""
        ...


async def remove_or_leave(images: Removes, keys: Iterable[str]) -> None:
    """Removes what is needed no more. What cannot be removed now is left to the sweep."""
    try:
        await asyncio.gather(*(images.delete(key) for key in keys))
    except StoreUnavailable as error:
        _log.warning("images_left_to_sweep", reason=error.message)


async def read_picture(
    job: Job, model: LoadedModel, pictures: Pictures, decoders: Executor
) -> Picture | None:
    """The job's picture with its mask; None where it is no edit.

    Raises CannotEdit, PictureGone, CorruptRecord and StoreUnavailable.
    """
    edit = job.generation.edit
    if edit is None:
        return None
    if edit.kind not in model.engine.edits:
        able = ", ".join(sorted(model.engine.edits)) or "nothing"
        raise CannotEdit(
            f"model {model.spec.model_id} cannot edit by {edit.kind}; what it can edit by: {able}",
            param="model",
        )
    try:
        picture = await pictures.get(picture_key(job.tenant_id, job.job_id, "picture"))
        mask = None
        if edit.mask_sha256 is not None:
            mask = await pictures.get(picture_key(job.tenant_id, job.job_id, "mask"))
    except NotFound as error:
        raise PictureGone("the picture to edit is no longer kept; send it again", param="image") from error
    return await asyncio.get_running_loop().run_in_executor(decoders, _decode_both, picture, mask)


def _decode_both(picture: bytes, mask: bytes | None) -> Picture:
    return Picture(decode_picture(picture, "RGB"), None if mask is None else decode_picture(mask, "L"))


def decode_picture(png: bytes, mode: str) -> Image.Image:
    """An image as the API stored it. Raises CorruptRecord."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptRecord("a stored picture is no readable PNG file") from error
