"""Bytes of a memory entry. Never pickle.

Layout, little-endian: magic `SPKE`, codec version u8, dtype u8 (1 = IEEE half), length of the image id u16, length d
of the feature u32, length p of the prompt embedding u32, created_at_ms i64, seed u64, length of the prompt u32; then the
image id in ASCII, d and p halves, the prompt in UTF-8, empty where it is not kept; last the CRC32 of everything before
it. A record of another length than it announces is corrupt. `app.memory.upgrading` reads the layout before this one.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.ids import ImageId, parse_image_id
from app.errors import CorruptRecord, InvalidId

CODEC_VERSION = 2
_MAGIC = b"SPKE"
_MAX_ID_BYTES = 64
_HALF = 1
_HEADER = struct.Struct("<4sBBHIIqQI")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True, eq=False)
class MemoryEntry:
    """What is remembered of one image: unit feature [d] and unit prompt embedding [p], both float16.

    `prompt` is empty where the memory does not keep prompts.
    """

    image_id: ImageId
    seed: int
    created_at_ms: int
    feature: NDArray[np.float16]
    prompt_embedding: NDArray[np.float16]
    prompt: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class EntryPage:
    """Many entries: their places among those that were read, ids, features `[n, d]`, prompt embeddings `[n, p]`, float16.

    And those that are wrong, by their places, and why.
    """

    places: NDArray[np.int64]
    image_ids: list[ImageId]
    features: NDArray[np.float16]
    prompt_embeddings: NDArray[np.float16]
    wrong: list[tuple[int, str]]


def encode_entry(entry: MemoryEntry) -> bytes:
    """The entry's bytes. The arrays are stored as float16, whatever float type they have."""
    image_id = entry.image_id.encode("ascii")
    feature = np.asarray(entry.feature, dtype="<f2").reshape(-1)
    prompt_embedding = np.asarray(entry.prompt_embedding, dtype="<f2").reshape(-1)
    prompt = entry.prompt.encode()
    sizes = (len(image_id), feature.size, prompt_embedding.size)
    facts = (entry.created_at_ms, entry.seed, len(prompt))
    header = _HEADER.pack(_MAGIC, CODEC_VERSION, _HALF, *sizes, *facts)
    body = b"".join((header, image_id, feature.tobytes(), prompt_embedding.tobytes(), prompt))
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode_entry(data: bytes, *, where: str = "a memory entry") -> MemoryEntry:
    """The entry of some bytes; its arrays are read-only views of them. `where` begins the message of CorruptRecord."""
    layout = _check(data, where)
    halves = np.frombuffer(data, "<f2", count=layout.feature_dim + layout.prompt_dim, offset=layout.start)
    feature, prompt_embedding = halves[: layout.feature_dim], halves[layout.feature_dim :]
    return MemoryEntry(
        layout.image_id, layout.seed, layout.created_at_ms, feature, prompt_embedding, layout.prompt
    )


def decode_page(page: Sequence[bytes], dimensions: tuple[int, int]) -> EntryPage:
    """Many entries at once: each is checked as `decode_entry` does, and those that are wrong are told and left out.

    An entry of other dimensions (feature, prompt) is wrong here. Cost: one copy of the numbers, and no object for an entry.
    """
    feature_dim, num_halves = dimensions[0], sum(dimensions)
    places, image_ids, parts, wrong = [], [], [], []
    for place, data in enumerate(page):
        try:
            layout = _check(data, "a memory entry")
        except CorruptRecord as error:
            wrong.append((place, error.message))
            continue
        found = (layout.feature_dim, layout.prompt_dim)
        if found != dimensions:
            why = f"expected (feature, prompt) dimensions {dimensions}, got {found}"
            wrong.append((place, f"{why}: the latent space has changed under its name"))
            continue
        places.append(place)
        image_ids.append(layout.image_id)
        parts.append(memoryview(data)[layout.start : layout.start + 2 * num_halves])
    halves = np.frombuffer(b"".join(parts), "<f2").reshape(len(parts), num_halves)
    numbers = np.array(places, np.int64)
    return EntryPage(numbers, image_ids, halves[:, :feature_dim], halves[:, feature_dim:], wrong)


def without_prompt(data: bytes) -> bytes:
    """The same entry without its prompt's text. Of one that is corrupt only the header and the image id are left."""
    try:
        entry = decode_entry(data)
    except CorruptRecord:
        return data[: _HEADER.size + len(read_image_id(data))]
    return encode_entry(replace(entry, prompt="")) if entry.prompt else data


def read_time_ms(data: bytes) -> int:
    """When an entry was made, without a look at the rest of it; 0 for bytes that are none."""
    return int(_HEADER.unpack_from(data)[6]) if len(data) >= _HEADER.size else 0


def read_image_id(data: bytes) -> ImageId:
    """The image that an entry was made of, likewise; empty for bytes that are none."""
    id_bytes = _HEADER.unpack_from(data)[3] if len(data) >= _HEADER.size else 0
    end = _HEADER.size + min(id_bytes, _MAX_ID_BYTES)
    return ImageId(data[_HEADER.size : end].decode("ascii", errors="replace"))


def read_prompt_bytes(data: bytes) -> int:
    """How many bytes the prompt of an entry has, likewise; 0 for bytes that are none."""
    return int(_HEADER.unpack_from(data)[8]) if len(data) >= _HEADER.size else 0


class _Layout(NamedTuple):
    """What an entry has beside its numbers, which begin at `start`."""

    image_id: ImageId
    seed: int
    created_at_ms: int
    prompt: str
    feature_dim: int
    prompt_dim: int
    start: int


def _check(data: bytes, where: str) -> _Layout:
    if len(data) < _HEADER.size + _CHECKSUM.size:
        raise CorruptRecord(
            f"{where}: expected {_HEADER.size + _CHECKSUM.size} bytes or more, got {len(data)}"
        )
    (expected,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    actual = zlib.crc32(memoryview(data)[: -_CHECKSUM.size])
    if actual != expected:
        raise CorruptRecord(f"{where}: checksum {actual:08x}, expected {expected:08x}")
    magic, version, dtype, id_bytes, feature_dim, prompt_dim, created_at_ms, seed, prompt_bytes = (
        _HEADER.unpack_from(data)
    )
    if (magic, version, dtype) != (_MAGIC, CODEC_VERSION, _HALF):
        raise CorruptRecord(
            f"{where}: magic {magic!r}, codec version {version}, dtype {dtype};"
            f" this release reads {_MAGIC!r}, {CODEC_VERSION}, {_HALF}"
        )
    num_halves = feature_dim + prompt_dim
    expected_bytes = _HEADER.size + id_bytes + 2 * num_halves + prompt_bytes + _CHECKSUM.size
    if len(data) != expected_bytes:
        raise CorruptRecord(f"{where}: {len(data)} bytes, expected {expected_bytes} by its header")
    start = _HEADER.size + id_bytes
    image_id = _parse_image(data[_HEADER.size : start], where)
    prompt = _parse_prompt(data[start + 2 * num_halves : -_CHECKSUM.size], where)
    return _Layout(image_id, seed, created_at_ms, prompt, feature_dim, prompt_dim, start)


def _parse_image(name: bytes, where: str) -> ImageId:
    image_id = ImageId(name.decode("ascii", errors="replace"))
    try:
        parse_image_id(image_id)
    except InvalidId as error:
        raise CorruptRecord(f"{where}: {error.message}") from error
    return image_id


def _parse_prompt(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"{where}: its prompt is not UTF-8: {error.reason}") from error
