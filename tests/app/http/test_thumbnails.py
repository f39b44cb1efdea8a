"""Thumbnails of what lies in the store."""

import io

import pytest
from PIL import Image

from app.errors import CorruptRecord
from app.http.thumbnails import Thumbnailer

pytestmark = pytest.mark.anyio


def _png(size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else "red").save(buffer, format="PNG")
    return buffer.getvalue()


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
    made = Image.open(io.BytesIO(await Thumbnailer().make(_png(size, mode), max_px)))
    assert (made.format, made.size) == ("WEBP", expected)


@pytest.mark.parametrize("data", [b"", b"no picture", _png((64, 64))[:100]])
async def test_what_is_no_image_is_said(data):
    """A file that was cut or overwritten in the store is an error with a name."""
    with pytest.raises(CorruptRecord):
        await Thumbnailer().make(data, 64)
