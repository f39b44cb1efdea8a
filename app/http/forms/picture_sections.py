"""A picture's file, section by section, before a decoder sees it: how many it has, and how often it paints the image.

Decoders keep something for each section and go over the whole image in each scan of a JPEG file, and no bound on bytes or
pixels is one on those: at 25 million pixels 2,000 empty scans, 84 KB of them, took 55 s; 48 MB of empty sections took
1.6 GB and 35 s. Whatever else is wrong with a file its decoder says.
"""

import os
import re
from typing import IO

MAX_SECTIONS = 100_000  # a PNG file of 50 MB has 6,400 in the pieces that libpng writes
MAX_JPEG_SECTIONS = 2_000  # a profile has 255 at most, and text beside the picture some hundred
MAX_SCANS = 100  # progressive files have about ten
_MAX_FILL_BYTES = 64 * 1024
_BLOCK_BYTES = 64 * 1024
_PNG, _JPEG, _WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF"
# Neither a byte of a scan, nor a restart within one, nor fill:
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END, _SCAN = 0xD9, 0xDA
_FIRST_WITH_LENGTH = 0xC0  # what is below has none, or is unknown; its bytes are looked at too


def find_excess(file: IO[bytes]) -> str | None:
    """The bound that the file is beyond, in words; None where it is beyond none. The file is read from its beginning."""
    file.seek(0)
    head = file.read(8)
    if head.startswith(_JPEG):
        return _excess_of_jpeg(file)
    if head == _PNG:
        return _excess_of_png(file)
    return _excess_of_webp(file) if head.startswith(_WEBP) else None


def _excess_of_png(file: IO[bytes]) -> str | None:
    for _ in range(MAX_SECTIONS):
        header = file.read(8)
        if len(header) < 8 or header[4:] == b"IEND":
            return None
        file.seek(int.from_bytes(header[:4], "big") + 4, os.SEEK_CUR)  # a checksum follows
    return f"at most {MAX_SECTIONS} sections"


def _excess_of_webp(file: IO[bytes]) -> str | None:
    file.seek(12)
    for _ in range(MAX_SECTIONS):
        header = file.read(8)
        if len(header) < 8:
            return None
        size_bytes = int.from_bytes(header[4:], "little")
        file.seek(size_bytes + size_bytes % 2, os.SEEK_CUR)
    return f"at most {MAX_SECTIONS} sections"


def _excess_of_jpeg(file: IO[bytes]) -> str | None:
    at, num_scans, num_fill_bytes = 2, 0, 0
    for _ in range(MAX_JPEG_SECTIONS):
        marker_at = _find_marker(file, at)
        if marker_at is None:
            return None
        file.seek(marker_at + 1)
        (marker,) = file.read(1)
        if marker == _END:
            return None
        num_scans += marker == _SCAN
        num_fill_bytes += marker_at - at if num_scans == 0 else 0
        if num_scans > MAX_SCANS:
            return f"at most {MAX_SCANS} scans"
        if num_fill_bytes > _MAX_FILL_BYTES:
            return f"at most {_MAX_FILL_BYTES} bytes between its sections"
        length = file.read(2) if marker >= _FIRST_WITH_LENGTH else b""
        at = marker_at + 2 + (int.from_bytes(length, "big") if len(length) == 2 else 0)
    return f"at most {MAX_JPEG_SECTIONS} sections"


def _find_marker(file: IO[bytes], at: int) -> int | None:
    """Where the next marker begins; None where there is none."""
    while True:
        file.seek(at)
        block = file.read(_BLOCK_BYTES)
        found = _MARKER.search(block)
        if found is not None:
            return at + found.start()
        if len(block) < _BLOCK_BYTES:
            return None
        at += len(block) - 1  # a marker may lie across the blocks
