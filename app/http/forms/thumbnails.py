"""Small pictures of images that were made, for lists of many."""

import asyncio
import io
from collections.abc import Awaitable, Callable

from anyio import to_thread
from PIL import Image, UnidentifiedImageError

from app.errors import CorruptRecord

MIN_PX, MAX_PX, USUAL_PX = 16, 1024, 256
MADE_AT_ONCE = 2  # each holds and decodes a whole image
_QUALITY = 80


class Thumbnailer:
    """Makes WebP files of the service's own PNG files, in threads, a few at a time."""

    MEDIA_TYPE = "image/webp"

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(MADE_AT_ONCE)

    async def make(self, read: Callable[[], Awaitable[bytes]], max_px: int) -> bytes:
        """The image of the file that is read, with its longer side at `max_px`; a smaller one keeps its size.

        It is read in its turn, so that those who wait hold none. Raises CorruptRecord, and what `read` raises.
        """
        async with self._room:
            return await to_thread.run_sync(_shrink, await read(), max_px)


def _shrink(png: bytes, max_px: int) -> bytes:
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
            image.info.clear()  # prompt and seed are the image's
            image.save(buffer, format="WEBP", quality=_QUALITY)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise CorruptRecord("a stored image is no readable PNG file") from error
    return buffer.getvalue()
