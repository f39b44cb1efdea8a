"""Files of clients become pictures that a worker may trust, or are refused with what was expected."""

import io
import math
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from app.domain.model import SizeLimits
from app.errors import InvalidValue
from app.http.bodies.generation import is_allowed_size
from app.http.forms.picture_sections import MAX_JPEG_SECTIONS, MAX_SCANS, MAX_SECTIONS, find_excess
from app.http.forms.pictures import PictureReader, PreparedPicture, nearest_size, target_size

pytestmark = pytest.mark.anyio

LIMITS = SizeLimits(64, 64, 32, 128, 8)
MAX_PIXELS = 10_000


def file_of(image: Image.Image, kind: str = "PNG", **more: object) -> io.BytesIO:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **more)
    return buffer


async def prepared(
    image: io.BytesIO, mask: io.BytesIO | None = None, *, size: str | None = None
) -> PreparedPicture:
    """What the reader makes of the files."""
    return await PictureReader(max_pixels=MAX_PIXELS).prepare(image, mask, size=size, limits=LIMITS)


def opened(png: bytes | None) -> Image.Image:
    """The image of a PNG file."""
    return Image.open(io.BytesIO(png or b""))


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture that survives no change unseen."""
    return Image.effect_noise(size, 80).convert(mode)


def hole(size: tuple[int, int] = (64, 48), box: tuple[int, int, int, int] = (8, 8, 24, 24)) -> Image.Image:
    """A mask that is transparent in a box."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((255, 255, 255, 0), box)
    return mask


@pytest.mark.parametrize(
    ("kind", "more"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})]
)
async def test_each_format_is_read(kind: str, more: dict[str, object]):
    """As any reader of it has it; PNG and lossless WebP to the pixel as it was."""
    image = noise()
    sent = file_of(image, kind, **more)
    found = await prepared(sent)
    assert (found.mask, found.size_px) == (None, (64, 48))
    assert opened(found.picture).tobytes() == Image.open(sent).convert("RGB").tobytes()
    assert (opened(found.picture).tobytes() == image.tobytes()) == (kind != "JPEG")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
async def test_every_mode_becomes_rgb(mode: str):
    """Grey stays grey, of 16 bits too; what is transparent shows white."""
    grey = Image.new("L", (64, 64), 128)
    image = {
        "I;16": lambda: Image.fromarray(np.full((64, 64), 128 * 257, np.uint16)),
        "LA": lambda: Image.merge("LA", (grey, Image.new("L", (64, 64), 0))),
        "RGBA": lambda: Image.new("RGBA", (64, 64), (9, 9, 9, 0)),
        "1": lambda: Image.new("1", (64, 64), 1),
    }.get(mode, lambda: grey.convert(mode))()
    found = opened((await prepared(file_of(image, "JPEG" if mode == "CMYK" else "PNG"))).picture)
    expected = 255 if mode in {"LA", "RGBA", "1"} else 128
    assert found.mode == "RGB"
    assert abs(np.asarray(found, float).mean() - expected) < 3


async def test_fully_transparent_pixels_are_what_is_repainted():
    """Not those that are nearly so; a palette's transparent colour counts."""
    mask = hole()
    mask.putpixel((40, 40), (0, 0, 0, 1))
    palette = Image.new("P", (64, 48), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.paste(0, (8, 8, 24, 24))
    for sent in (file_of(mask), file_of(mask, "WEBP", lossless=True), file_of(palette, transparency=0)):
        found = opened((await prepared(file_of(noise()), sent)).mask)
        assert (found.mode, found.getbbox(), found.getextrema()) == ("L", (8, 8, 24, 24), (0, 255))
        assert np.asarray(found).sum() == 255 * 16 * 16


async def test_a_photograph_is_turned_upright():
    """As its EXIF data have it, before sizes are looked at; no metadata stay."""
    image = noise()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    exif[0x010E] = "where I live"
    found = await prepared(file_of(image, exif=exif), file_of(hole((48, 64))))
    assert found.size_px == (48, 64)
    assert opened(found.picture).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert b"where I live" not in found.picture


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_exif_data_are_not_copied_for_every_tag(kind: str):
    """A thousand tags that all point at one 100 KB are no 100 MB."""
    num_tags, size_bytes = 1000, 100_000
    data_at = 8 + 2 + 12 * num_tags + 4
    tags = [struct.pack("<HHII", 1 + tag, 7, size_bytes, data_at) for tag in range(num_tags)]
    head = b"II*\0" + struct.pack("<IH", 8, num_tags)
    exif = b"Exif\0\0" + head + b"".join(tags) + bytes(4 + size_bytes)
    sent = file_of(noise(), kind, exif=exif)
    tracemalloc.start()
    try:
        await prepared(sent)
        assert tracemalloc.get_traced_memory()[1] < 20 * size_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
async def test_nothing_but_the_pixels_is_kept(kind: str):
    """No text, no profile, no place where a photograph was taken."""
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    found = await prepared(file_of(noise(), kind, exif=exif, icc_profile=b"where I live"))
    assert set(opened(found.picture).info) == set()
    assert b"iCCP" not in found.picture
    assert b"eXIf" not in found.picture


async def test_a_size_scales_picture_and_mask():
    """Smoothly and without half-marked pixels."""
    found = await prepared(file_of(noise(size=(32, 32))), file_of(hole((32, 32))), size="64x64")
    assert (opened(found.picture).size, found.size_px) == ((64, 64), (64, 64))
    assert opened(found.mask).getbbox() == (16, 16, 48, 48)
    assert set(np.unique(np.asarray(opened(found.mask)))) == {0, 255}


def png_of(*chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG file of these chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def chunked_bomb() -> io.BytesIO:
    """A small file that says it has 60,000² pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))))


def without_palette() -> io.BytesIO:
    """Pixels that are numbers of colours, and no colours."""
    head = struct.pack(">IIBBBBB", 64, 48, 8, 3, 0, 0, 0)
    return png_of((b"IHDR", head), (b"IDAT", zlib.compress(bytes(65 * 48))))


class TooMuch(io.BytesIO):
    """A file of which this machine has room for some bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises MemoryError for what is no header."""
        if size is None or not 0 <= size <= 64:
            raise MemoryError
        return super().read(size)


def animated(kind: str) -> io.BytesIO:
    """Two frames."""
    return file_of(noise(), kind, save_all=True, append_images=[noise()])


def scans(num_scans: int) -> io.BytesIO:
    """A progressive JPEG file of so many scans, the last of them again and again."""
    whole = file_of(noise("L"), "JPEG", progressive=True).getvalue()
    starts = [found.start() for found in re.finditer(b"\xff\xda", whole)]
    return io.BytesIO(whole[:-2] + whole[starts[-1] : -2] * (num_scans - len(starts)) + whole[-2:])


def with_sections(kind: str, section: bytes, num_sections: int) -> io.BytesIO:
    """A picture's file with sections of somebody's own, after what must come first."""
    whole = file_of(noise(), kind).getvalue()
    at = {"PNG": 33, "JPEG": 2, "WEBP": len(whole)}[kind]
    whole = whole[:at] + section * num_sections + whole[at:]
    return io.BytesIO(whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:] if kind == "WEBP" else whole)


EMPTY_CHUNK = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
UNREADABLE = {
    "no image": io.BytesIO(b"<svg/>"),
    "cut off": io.BytesIO(file_of(noise()).getvalue()[:-2000]),
    "another format": file_of(noise(), "GIF"),
    "TIFF": file_of(noise(), "TIFF"),
    "an animated PNG": animated("PNG"),
    "an animated WebP": animated("WEBP"),
    "too many pixels": file_of(Image.new("L", (101, 100))),
    "a bomb": chunked_bomb(),
    "many scans": scans(MAX_SCANS + 1),
    "many PNG chunks": with_sections("PNG", EMPTY_CHUNK, MAX_SECTIONS),
    "many JPEG segments": with_sections("JPEG", b"\xff\xe5\0\x03x", MAX_JPEG_SECTIONS),
    "much JPEG fill": with_sections("JPEG", b"\xff", 100_000),
    "many WebP chunks": with_sections("WEBP", b"abcd\1\0\0\0x\0", MAX_SECTIONS),
}


@pytest.mark.parametrize("what", ["image", "mask"])
@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_used_is_refused(what: str, name: str):
    """With the field at fault, and what was expected."""
    files = [file_of(noise()), UNREADABLE[name]]
    with pytest.raises(InvalidValue, match=f"{what}: expected") as caught:
        await prepared(*(files if what == "mask" else files[::-1]))
    assert caught.value.param == what
    assert ("pixels" in caught.value.message) == (name in {"too many pixels", "a bomb"})


@pytest.mark.parametrize(
    "sent",
    [
        scans(MAX_SCANS),
        with_sections("PNG", EMPTY_CHUNK, 1000),
        with_sections("JPEG", b"\xff\xe5\xff\xff" + b"\xff\xda" * 32_766 + b"x", 300),
        with_sections("WEBP", b"abcd\1\0\0\0x\0", 1000),
        io.BytesIO(file_of(noise(), "JPEG").getvalue() + b"\xff\xda" * 1000),
        file_of(noise("RGB", (96, 96)), "JPEG", quality=100, restart_marker_blocks=1),
    ],
    ids=["scans", "PNG", "JPEG", "WebP", "a film after the photograph", "restarts"],
)
async def test_files_of_many_sections_are_read(sent: io.BytesIO):
    """Only what decoders would count is counted."""
    assert (await prepared(sent)).size_px == Image.open(sent).size


@pytest.mark.parametrize("num_bytes", [65_534, 65_535, 65_536])
def test_a_scan_is_counted_wherever_it_begins(num_bytes: int):
    """Also across two of the blocks that are read at a time."""
    scan = b"\xff\xda\0\2"
    first = b"\xff\xd8" + scan + bytes(num_bytes)
    assert find_excess(io.BytesIO(first + scan * (MAX_SCANS - 1))) is None
    assert find_excess(io.BytesIO(first + scan * MAX_SCANS)) == f"at most {MAX_SCANS} scans"


async def test_pixels_without_their_palette_are_refused():
    """A mask needs none."""
    with pytest.raises(InvalidValue, match="image: expected a whole"):
        await prepared(without_palette())


async def test_lack_of_memory_is_no_fault_of_the_file():
    """It stays what it is."""
    with pytest.raises(MemoryError):
        await prepared(TooMuch(file_of(noise()).getvalue()))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (hole((48, 64)), "64x48, got 48x64"),
        (Image.new("RGBA", (64, 48), "black"), "fully transparent"),
        (Image.new("L", (64, 48), 255), "fully transparent"),
    ],
    ids=["turned", "opaque", "without alpha"],
)
async def test_a_mask_that_marks_nothing_is_refused(mask: Image.Image, said: str):
    """As is one of another size."""
    with pytest.raises(InvalidValue, match=said) as caught:
        await prepared(file_of(noise()), file_of(mask))
    assert caught.value.param == "mask"


@pytest.mark.parametrize(
    ("own", "size", "expected"),
    [
        ((64, 48), None, (64, 48)),
        ((64, 48), "auto", (64, 48)),
        ((640, 480), "64x48", (64, 48)),
        ((20, 20), "32x32", (32, 32)),
        ((101, 98), "64x64", (64, 64)),
        ((640, 480), None, "image"),
        ((20, 20), "auto", "image"),
        ((60, 60), None, "image"),
        ((640, 480), "64x64", "size"),
        ((64, 64), "64x72", "size"),
        ((64, 64), "256x256", "size"),
        ((64, 64), "huge", "size"),
    ],
)
def test_the_size_of_an_edit(own: tuple[int, int], size: str | None, expected: tuple[int, int] | str):
    """The picture's own where none is asked for; scaled where it is not distorted; else the member at fault is named."""
    if isinstance(expected, tuple):
        assert target_size(own, size, LIMITS) == expected
        return
    with pytest.raises(InvalidValue) as caught:
        target_size(own, size, LIMITS)
    assert caught.value.param == expected


@given(
    own=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    least=st.integers(1, 40),
    more=st.integers(0, 120),
    step=st.sampled_from([1, 8, 16, 64]),
    data=st.data(),
)
def test_a_picture_finds_a_size_of_the_model(own, least, more, step, data):
    """One that the model makes; where its own proportions fit within the bounds, they are kept to a step of each side."""
    least_px, most_px = step * least, step * (least + more)
    usual = data.draw(st.tuples(*[st.integers(least, least + more).map(lambda n: n * step)] * 2))
    limits = SizeLimits(*usual, least_px, most_px, step)
    found = nearest_size(own, limits)
    assert is_allowed_size(found, limits)
    height_px = math.sqrt(usual[0] * usual[1] * own[1] / own[0])
    for side, ideal in zip(found, (height_px * own[0] / own[1], height_px), strict=True):
        if least_px <= ideal <= most_px:
            assert abs(side - ideal) <= step


@pytest.mark.parametrize(
    ("own", "expected"),
    [((64, 64), (64, 64)), ((100, 100), (64, 64)), ((100, 50), (88, 48)), ((270, 27), (128, 32))],
)
async def test_a_picture_is_fitted_without_distortion(own, expected):
    """Scaled, and cut at the edges where it must be: what was a circle is one."""
    picture = Image.new("RGB", own, "white")
    middle, radius = (own[0] / 2, own[1] / 2), min(own) / 4
    box = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
    ImageDraw.Draw(picture).ellipse(box, fill="black")
    fitted = opened(await PictureReader(max_pixels=MAX_PIXELS).fit(file_of(picture), "image", LIMITS))
    assert (fitted.size, fitted.mode) == (expected, "RGB")
    left, top, right, bottom = (
        ImageOps.invert(fitted.convert("L")).point(lambda level: 255 * (level > 127)).getbbox()
    )
    assert abs((right - left) - (bottom - top)) <= 2


async def test_a_picture_of_the_models_size_is_kept_to_the_pixel():
    """Nothing is scaled twice; what is wrong is said of the member that was sent."""
    picture = noise(size=(64, 64))
    reader = PictureReader(max_pixels=MAX_PIXELS)
    assert opened(await reader.fit(file_of(picture), "image", LIMITS)).tobytes() == picture.tobytes()
    with pytest.raises(InvalidValue, match="image 3: expected a whole"):
        await reader.fit(io.BytesIO(b"no picture"), "image 3", LIMITS)
    with pytest.raises(InvalidValue, match="at most 10000 pixels"):
        await reader.fit(file_of(noise(size=(101, 100))), "image", LIMITS)
