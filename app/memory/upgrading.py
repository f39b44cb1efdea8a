"""Entries as releases before codec version 2 wrote them. Only what reads old data knows these: the migration, and imports.

Version 1 was version 2 without the prompt: a header of 32 bytes, without the prompt's length, and no text behind the
halves. An upgrade moves the bytes of the image id and of the halves as they are.
"""

import struct
import zlib

from app.errors import CorruptRecord
from app.memory.codec import CODEC_VERSION

_OLD_VERSION = 1
_OLD_HEADER = struct.Struct("<4sBBHIIqQ")
_PROMPT_BYTES = struct.Struct("<I")
_CHECKSUM = struct.Struct("<I")
_VERSION_AT = 4


def is_old(data: bytes) -> bool:
    """Whether some bytes are an entry of codec version 1, or were one before they were damaged."""
    return data[: _VERSION_AT + 1] == b"SPKE" + bytes([_OLD_VERSION])


def upgrade_entry(data: bytes, *, where: str = "a memory entry") -> bytes:
    """The entry in the present codec; bytes of any other version as they are.

    Raises CorruptRecord where its checksum or its length is not right: a new checksum would hide that.
    """
    if not is_old(data):
        return data
    if len(data) < _OLD_HEADER.size + _CHECKSUM.size:
        raise CorruptRecord(f"{where}: {len(data)} bytes are no entry of codec version {_OLD_VERSION}")
    header, rest = data[: _OLD_HEADER.size], data[_OLD_HEADER.size : -_CHECKSUM.size]
    _, _, _, id_bytes, feature_dim, prompt_dim, _, _ = _OLD_HEADER.unpack(header)
    (expected,) = _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    actual = zlib.crc32(data[: -_CHECKSUM.size])
    if actual != expected:
        raise CorruptRecord(f"{where}: checksum {actual:08x}, expected {expected:08x}")
    if len(rest) != id_bytes + 2 * (feature_dim + prompt_dim):
        raise CorruptRecord(f"{where}: {len(data)} bytes, which is not what its header says")
    changed = header[:_VERSION_AT] + bytes([CODEC_VERSION]) + header[_VERSION_AT + 1 :]
    body = changed + _PROMPT_BYTES.pack(0) + rest
    return body + _CHECKSUM.pack(zlib.crc32(body))
