"""A file of bytes that only a key opens: written and read in blocks, each sealed by AES-GCM.

A preamble of 16 bytes, magic `SPKSNP`, format version u16 and 8 random bytes; then blocks, each with its length u32 and as
many sealed bytes, of which the last 16 are the tag. A block's nonce is the random bytes and its number, and it is bound
to the preamble and to whether it is the last, which is empty: so no block can be altered, moved, left out or cut off.
"""

import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT_VERSION = 1
_MAGIC = b"SPKSNP"
_PREAMBLE = struct.Struct("<6sH8s")
_LENGTH = struct.Struct("<I")
_BLOCK_BYTES = 1024 * 1024
_TAG_BYTES = 16
_MORE, _LAST = b"\x00", b"\x01"


class BrokenFile(Exception):
    """A sealed file cannot be read: another key, another format, or not the bytes that were written."""


def write_sealed(path: Path, key: bytes, parts: Iterable[memoryview]) -> None:
    """Writes all parts, one behind the other. The file is there whole or not at all, for nobody else to read.

    What another file under the same key has as random bytes never comes again: 8 bytes, anew for each file.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _write_blocks(file, key, parts)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_blocks(file: IO[bytes], key: bytes, parts: Iterable[memoryview]) -> None:
    cipher, preamble = AESGCM(key), _PREAMBLE.pack(_MAGIC, _FORMAT_VERSION, secrets.token_bytes(8))
    file.write(preamble)
    number = 0
    for part in parts:
        for start in range(0, len(part), _BLOCK_BYTES):
            sealed = cipher.encrypt(
                _nonce(preamble, number), part[start : start + _BLOCK_BYTES], preamble + _MORE
            )
            file.write(_LENGTH.pack(len(sealed)))
            file.write(sealed)
            number += 1
    sealed = cipher.encrypt(_nonce(preamble, number), b"", preamble + _LAST)
    file.write(_LENGTH.pack(len(sealed)) + sealed)


class SealedReader:
    """Reads a sealed file from its beginning. All methods raise BrokenFile, and OSError."""

    def __init__(self, file: IO[bytes], key: bytes) -> None:
        self._file = file
        self._cipher = AESGCM(key)
        self._preamble = file.read(_PREAMBLE.size)
        self._number = 0
        self._opened = memoryview(b"")
        if len(self._preamble) < _PREAMBLE.size or _PREAMBLE.unpack(self._preamble)[:2] != (
            _MAGIC,
            _FORMAT_VERSION,
        ):
            raise BrokenFile(f"it begins with {self._preamble[:8]!r}, expected {_MAGIC!r}, {_FORMAT_VERSION}")

    def read_into(self, wanted: memoryview) -> None:
        """Fills some bytes with those that come next."""
        filled = 0
        while filled < len(wanted):
            if not len(self._opened):
                self._opened = memoryview(self._next(_MORE))
            num_bytes = min(len(self._opened), len(wanted) - filled)
            wanted[filled : filled + num_bytes] = self._opened[:num_bytes]
            self._opened = self._opened[num_bytes:]
            filled += num_bytes

    def end(self) -> None:
        """Sees that nothing comes any more, and that nothing was cut off."""
        if len(self._opened) or self._next(_LAST) or self._file.read(1):
            raise BrokenFile("there is more in it than was expected")

    def _next(self, kind: bytes) -> bytes:
        head = self._file.read(_LENGTH.size)
        size_bytes = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        if not _TAG_BYTES <= size_bytes <= _BLOCK_BYTES + _TAG_BYTES:
            raise BrokenFile(f"block {self._number} is not there")
        sealed = self._file.read(size_bytes)
        if len(sealed) < size_bytes:
            raise BrokenFile(f"block {self._number} ends after {len(sealed)} of {size_bytes} bytes")
        try:
            opened = self._cipher.decrypt(_nonce(self._preamble, self._number), sealed, self._preamble + kind)
        except (InvalidTag, ValueError) as error:
            raise BrokenFile(f"block {self._number} does not open: another key, or altered") from error
        self._number += 1
        return opened


def _nonce(preamble: bytes, number: int) -> bytes:
    return preamble[-8:] + number.to_bytes(4, "big")
