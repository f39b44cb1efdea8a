"""Thumbnails of what lies in the store."""

import asyncio
import io

import pytest
from PIL import Image

from app.errors import CorruptRecord
from app.http.forms.thumbnails import MADE_AT_ONCE, Thumbnailer

pytestmark = pytest.mark.anyio


def _png(size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else "red").save(buffer, format="PNG")
    return buffer.getvalue()


def _stored(data):
    async def read():
        return data

    return read


@pytest.mark.parametrize(
    ("size", "max_px", "expected"),
    [
        ((1024, 512), 256, (256, 128)),
        ((64, 640), 100, (10, 100)),
        ((64, 64), 256, (64, 64)),
        ((1, 999), 16, (1, 16)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
async def test_proportions_are_kept(size, max_px, expected, mode):
    """The longer side is at most what was asked for, and nothing becomes larger."""
    made = Image.open(io.BytesIO(await Thumbnailer().make(_stored(_png(size, mode)), max_px)))
    assert (made.format, made.size) == ("WEBP", expected)


@pytest.mark.parametrize("data", [b"", b"no picture", _png((64, 64))[:100]])
async def test_what_is_no_image_is_said(data):
    """A file that was cut or overwritten in the store is an error with a name."""
    with pytest.raises(CorruptRecord):
        await Thumbnailer().make(_stored(data), 64)


async def test_those_who_wait_hold_no_file():
    """However many ask at once, a file is read in its turn."""
    num_held = most_held = 0
    thumbnailer = Thumbnailer()

    async def ask():
        nonlocal num_held

        async def read():
            nonlocal num_held, most_held
            num_held += 1
            most_held = max(most_held, num_held)
            await asyncio.sleep(0)
            return _png((64, 64))

        await thumbnailer.make(read, 32)
        num_held -= 1

    await asyncio.gather(*(ask() for _ in range(20)))
    assert most_held == MADE_AT_ONCE
