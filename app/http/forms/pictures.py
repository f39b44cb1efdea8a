"""From files of clients to pictures that a worker may trust: one still image each, upright, opaque, of the job's size."""

import asyncio
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from anyio import to_thread
from PIL import Image, ImageOps

from app.domain.model import SizeLimits
from app.errors import InvalidValue
from app.http.bodies.generation import describe_sizes, is_allowed_size, parse_size
from app.http.forms.picture_sections import find_excess

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_DISTORTION = 0.05
_DECODED_AT_ONCE = 2  # each may hold some hundred MB for a moment


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """PNG files for the image store: the picture in RGB and where it is repainted, in white; and their size."""

    picture: bytes
    mask: bytes | None
    size_px: tuple[int, int]


class PictureReader:
    """Decodes what clients send, in threads, a few at a time, and nothing above `max_pixels`."""

    def __init__(self, *, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._room = asyncio.Semaphore(_DECODED_AT_ONCE)

    async def prepare(
        self, image: IO[bytes], mask: IO[bytes] | None, *, size: str | None, limits: SizeLimits
    ) -> PreparedPicture:
        """The picture at the size that was asked for, which is its own where none was. Raises InvalidValue."""
        async with self._room:
            return await to_thread.run_sync(self._prepare, image, mask, size, limits)

    async def fit(self, image: IO[bytes], what: str, limits: SizeLimits) -> bytes:
        """A PNG file of the picture in RGB, of a size that the model makes: `nearest_size`. Raises InvalidValue for `what`."""
        async with self._room:
            return await to_thread.run_sync(self._fit, image, what, limits)

    def _fit(self, image: IO[bytes], what: str, limits: SizeLimits) -> bytes:
        picture = self._open(image, what)
        with self._readable(what):
            picture = _opaque(picture)
        size_px = nearest_size(picture.size, limits)
        if picture.size != size_px:
            picture = ImageOps.fit(picture, size_px, Image.Resampling.LANCZOS)
        return _to_png(picture)

    def _prepare(
        self, image: IO[bytes], mask: IO[bytes] | None, size: str | None, limits: SizeLimits
    ) -> PreparedPicture:
        picture = self._open(image, "image")
        own_px, size_px = picture.size, target_size(picture.size, size, limits)
        with self._readable("image"):
            picture = _opaque(picture)  # one at a time: whole photographs take memory
        if size_px != own_px:
            picture = picture.resize(size_px, Image.Resampling.LANCZOS)
        if mask is None:
            return PreparedPicture(_to_png(picture), None, size_px)
        marked = _marked(self._open(mask, "mask"), own_px)
        if size_px != own_px:
            marked = marked.resize(size_px, Image.Resampling.NEAREST)
        return PreparedPicture(_to_png(picture), _to_png(marked), size_px)

    def _open(self, file: IO[bytes], what: str) -> Image.Image:
        """The one image of a file, upright. Nothing is decoded before its size is known to be allowed."""
        excess = find_excess(file)
        if excess is not None:
            raise InvalidValue(
                f"{what}: expected a file with {excess}, and this one has more; have another program save it anew",
                param=what,
            )
        file.seek(0)
        with self._readable(what), Image.open(file, formats=FORMATS) as image:
            self._check(image, what)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """Whatever a decoder raises in the block is the file's fault, but for lack of memory."""
        try:
            yield
        except (InvalidValue, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise self._too_large(what, "far more") from error
        except Exception as error:  # decoders raise whatever a broken file makes them
            raise InvalidValue(
                f"{what}: expected a whole PNG, JPEG or WebP file, and this one cannot be read", param=what
            ) from error

    def _check(self, image: Image.Image, what: str) -> None:
        if image.width * image.height > self._max_pixels:
            raise self._too_large(what, f"{image.width}x{image.height}")
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with a thumbnail
            raise InvalidValue(f"{what}: expected one still image, got an animation", param=what)

    def _too_large(self, what: str, found: str) -> InvalidValue:
        return InvalidValue(
            f"{what}: expected at most {self._max_pixels} pixels, got {found}; scale it down", param=what
        )


def target_size(own_px: tuple[int, int], size: str | None, limits: SizeLimits) -> tuple[int, int]:
    """The size of an edit's images: the picture's own, or the one asked for, to which the picture is scaled.

    Raises InvalidValue where the model does not take it, or scaling would distort the picture.
    """
    width_px, height_px = own_px
    if size is None or size == "auto":
        if not is_allowed_size(own_px, limits):
            raise InvalidValue(
                f"image: it has {width_px}x{height_px} px, and the model makes {describe_sizes(limits)};"
                " give a size to have it scaled, or send another one",
                param="image",
            )
        return own_px
    wanted_px = parse_size(size, limits)
    stretch = (wanted_px[0] * height_px) / (wanted_px[1] * width_px)
    if not 1 - MAX_DISTORTION <= stretch <= 1 + MAX_DISTORTION:
        raise InvalidValue(
            f"size: an image of {width_px}x{height_px} px cannot be scaled to {size} without distorting it;"
            " crop it, or ask for a size of its proportions",
            param="size",
        )
    return wanted_px


def nearest_size(own_px: tuple[int, int], limits: SizeLimits) -> tuple[int, int]:
    """The size that the model makes whose proportions are nearest to a picture's, of about the area of its usual size.

    To cut what does not fit off the picture's edges is then to cut little, unless no image of the model is so long.
    """
    step_px, least, most = limits.multiple_px, limits.min_px, limits.max_px
    ratio = own_px[0] / own_px[1]
    height_px = math.sqrt(limits.default_width_px * limits.default_height_px / ratio)

    def allowed(side_px: float) -> int:
        lowest, highest = -(-least // step_px), most // step_px
        return step_px * min(max(round(side_px / step_px), lowest), highest)

    return allowed(ratio * height_px), allowed(height_px)


def _marked(mask: Image.Image, size_px: tuple[int, int]) -> Image.Image:
    """White where the mask is fully transparent, black elsewhere. Raises InvalidValue."""
    if mask.size != size_px:
        raise InvalidValue(
            f"mask: expected the image's size {size_px[0]}x{size_px[1]}, got {mask.width}x{mask.height}",
            param="mask",
        )
    marked = mask.convert("RGBA").getchannel("A").point(lambda alpha: 0 if alpha else 255)
    if marked.getbbox() is None:
        raise InvalidValue(
            "mask: expected fully transparent pixels, which are what is repainted, and it has none",
            param="mask",
        )
    return marked


def _opaque(image: Image.Image) -> Image.Image:
    """In RGB; what is transparent shows white."""
    if image.mode.startswith("I"):  # 16 bits of grey
        return image.convert("I").point(lambda level: level * (1 / 256)).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    below = Image.new("RGBA", image.size, "white")
    below.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return below.convert("RGB")


def _to_png(image: Image.Image) -> bytes:
    """The pixels alone: what else the client's file said stays out."""
    image.info.clear()
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
