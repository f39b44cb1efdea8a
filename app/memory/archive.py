"""One memory as one stream of bytes. docs/archive.md is the specification; there is nothing here but bytes.

A preamble, then blocks: one `HEAD`, any number of `ENTR`, one `DONE`, each with a digest of its own bytes and of the digest
before it. So the last one is a digest of everything, and a reader knows at each block that all before it is whole.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from app.domain.ids import LatentSpace, MemoryName, parse_latent_space, parse_memory_name
from app.errors import CorruptRecord, InvalidArchive, InvalidId
from app.memory.codec import decode_entry
from app.memory.upgrading import upgrade_entry

FORMAT_VERSION = 2
READ_VERSIONS = (
    1,
    2,
)  # format 1 is format 2 with entries of codec version 1, which are upgraded as they come
BLOCK_BYTES = 256 * 1024  # a block is closed once its entries have so many
MAX_BLOCK_BYTES = 4 * 1024 * 1024  # a larger one is refused before it is read
MAX_BLOCK_ENTRIES = 4096  # the smallest entries close a block at 3,361
MAX_VERSION = 2**53 - 1  # exact in JSON numbers and in Redis' scripts
DIGEST_BYTES = 16
_MAGIC = b"SPKMEM"
_PREAMBLE = struct.Struct("<6sH")
_BLOCK = struct.Struct("<4sI")
_HEAD = struct.Struct("<QqQIIBB")
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QI")
_DONE = struct.Struct("<QQ")
_HEAD_KIND, _ENTRIES_KIND, _DONE_KIND = b"HEAD", b"ENTR", b"DONE"

Entry = tuple[int, bytes]
"""The version of an entry, and its bytes as `app.memory.codec` has them."""


@dataclass(frozen=True, slots=True)
class ArchiveHeader:
    """What an archive says of its memory. `num_entries` is how many it held when the archive was begun.

    Dimensions are those of the newest entry; 0 where there is none that can be read.
    """

    latent_space: LatentSpace
    name: MemoryName
    version: int
    created_at_ms: int
    num_entries: int
    feature_dim: int
    prompt_dim: int


@dataclass(frozen=True, slots=True)
class ArchiveEnd:
    """How many entries an archive has, and the version that the last act of forgetting took; 0 where there was none."""

    num_entries: int
    forget_version: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an archive is, at the end of a block: enough to go on from there, in another process too.

    `first_gap` is the least version that no entry has, up to the last one that came.
    """

    offset_bytes: int = 0
    digest_hex: str = ""
    num_blocks: int = 0
    num_entries: int = 0
    last_version: int = 0
    first_gap: int | None = None

    def after_entries(self, entries: Sequence[Entry]) -> "Progress":
        """With some entries more, in ascending order."""
        first_gap, last = self.first_gap, self.last_version
        for version, _ in entries:
            if first_gap is None and version != last + 1:
                first_gap = last + 1
            last = version
        return replace(
            self, num_entries=self.num_entries + len(entries), last_version=last, first_gap=first_gap
        )


@dataclass(frozen=True, slots=True)
class HeadRead:
    """The header has come."""

    header: ArchiveHeader
    progress: Progress


@dataclass(frozen=True, slots=True)
class EntriesRead:
    """A block of entries has come, whole and right, in ascending order of versions."""

    entries: tuple[Entry, ...]
    progress: Progress


@dataclass(frozen=True, slots=True)
class EndRead:
    """All of it has come."""

    end: ArchiveEnd
    progress: Progress


Read = HeadRead | EntriesRead | EndRead


class ArchiveWriter:
    """Makes an archive from its first byte to its last: `begin`, `add` for the entries in order, `end`.

    The same calls give the same bytes: blocks are cut by what they hold, not by how it came.
    """

    def __init__(self, header: ArchiveHeader) -> None:
        self._header = header
        self._digest = b""
        self._held: list[Entry] = []
        self._held_bytes = 0
        self._num_entries = 0

    def begin(self) -> bytes:
        """The preamble and the header."""
        header = self._header
        space, name = header.latent_space.encode("ascii"), header.name.encode("ascii")
        fixed = _HEAD.pack(
            header.version,
            header.created_at_ms,
            header.num_entries,
            header.feature_dim,
            header.prompt_dim,
            len(space),
            len(name),
        )
        preamble = _PREAMBLE.pack(_MAGIC, FORMAT_VERSION)
        self._digest = _first_digest(preamble)
        return preamble + self._block(_HEAD_KIND, fixed + space + name)

    def add(self, entries: Iterable[Entry]) -> bytes:
        """The blocks that are full with some more entries; empty where none is."""
        blocks = []
        for version, data in entries:
            self._held.append((version, data))
            self._held_bytes += len(data)
            if self._held_bytes >= BLOCK_BYTES:
                blocks.append(self._flush())
        return b"".join(blocks)

    def end(self, *, forget_version: int) -> bytes:
        """The last entries and the end mark."""
        last = self._flush() if self._held else b""
        return last + self._block(_DONE_KIND, _DONE.pack(self._num_entries, forget_version))

    def _flush(self) -> bytes:
        parts = [_COUNT.pack(len(self._held))]
        for version, data in self._held:
            parts += (_ENTRY.pack(version, len(data)), data)
        self._num_entries += len(self._held)
        self._held, self._held_bytes = [], 0
        return self._block(_ENTRIES_KIND, b"".join(parts))

    def _block(self, kind: bytes, body: bytes) -> bytes:
        block = _BLOCK.pack(kind, len(body)) + body
        self._digest = _digest(self._digest, block)
        return block + self._digest


class ArchiveReader:
    """Reads an archive in chunks of any size and holds one block at a time. What is wrong is InvalidArchive, with where.

    Given a header and progress it goes on behind the block where that was so; else it begins at the first byte.
    """

    def __init__(self, header: ArchiveHeader | None = None, progress: Progress | None = None) -> None:
        self._header = header
        self._progress = progress or Progress()
        self._buffer = bytearray()
        self._is_whole = False

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._progress

    def feed(self, chunk: bytes) -> list[Read]:
        """What has come whole with some more bytes. Raises InvalidArchive."""
        self._buffer += chunk
        found: list[Read] = []
        if not self._progress.offset_bytes and not self._read_preamble():
            return found
        while (block := self._take_block()) is not None:
            found.append(self._read_block(*block))
        return found

    def finish(self) -> None:
        """Raises InvalidArchive unless the end mark has come."""
        if not self._is_whole:
            at = self._progress.offset_bytes + len(self._buffer)
            raise InvalidArchive(
                f"the archive ends at byte {at}, before its end mark: whole blocks reach to byte {self._progress.offset_bytes}"
            )

    def _read_preamble(self) -> bool:
        if len(self._buffer) < _PREAMBLE.size:
            return False
        preamble = bytes(self._buffer[: _PREAMBLE.size])
        magic, version = _PREAMBLE.unpack(preamble)
        if magic != _MAGIC:
            raise InvalidArchive(
                f"this is no archive of a memory: it begins with {magic!r}, expected {_MAGIC!r}"
            )
        if version not in READ_VERSIONS:
            raise InvalidArchive(
                f"this archive has the format version {version}; this release reads {READ_VERSIONS[0]} to"
                f" {READ_VERSIONS[-1]}: take one that is as new as what wrote it"
            )
        del self._buffer[: _PREAMBLE.size]
        self._progress = Progress(_PREAMBLE.size, _first_digest(preamble).hex())
        return True

    def _take_block(self) -> tuple[bytes, memoryview] | None:
        """Kind and body of the next block, once all of it is there."""
        if self._is_whole and self._buffer:
            raise self._wrong("there are bytes behind the end mark")
        if len(self._buffer) < _BLOCK.size:
            return None
        kind, body_bytes = _BLOCK.unpack_from(self._buffer)
        if kind != self._expected(kind):
            raise self._wrong(f"expected a block of kind {self._expected(kind)!r}, got {kind!r}")
        if body_bytes > MAX_BLOCK_BYTES:
            raise self._wrong(f"a block has at most {MAX_BLOCK_BYTES} bytes, this one says {body_bytes}")
        end = _BLOCK.size + body_bytes
        if len(self._buffer) < end + DIGEST_BYTES:
            return None
        block = bytes(self._buffer[:end])
        expected = bytes(self._buffer[end : end + DIGEST_BYTES])
        actual = _digest(bytes.fromhex(self._progress.digest_hex), block)
        if actual != expected:
            raise self._wrong(f"digest {expected.hex()}, expected {actual.hex()}: it was altered")
        del self._buffer[: end + DIGEST_BYTES]
        self._progress = replace(
            self._progress,
            offset_bytes=self._progress.offset_bytes + end + DIGEST_BYTES,
            digest_hex=actual.hex(),
            num_blocks=self._progress.num_blocks + 1,
        )
        return kind, memoryview(block)[_BLOCK.size :]

    def _expected(self, kind: bytes) -> bytes:
        if self._header is None:
            return _HEAD_KIND
        return kind if kind in (_ENTRIES_KIND, _DONE_KIND) else _ENTRIES_KIND

    def _read_block(self, kind: bytes, body: memoryview) -> Read:
        try:
            if kind == _HEAD_KIND:
                self._header = _read_header(body)
                return HeadRead(self._header, self._progress)
            if kind == _ENTRIES_KIND:
                entries = tuple(self._read_entries(body))
                self._progress = self._progress.after_entries(entries)
                return EntriesRead(entries, self._progress)
            end = ArchiveEnd(*_DONE.unpack(body))
        except (struct.error, InvalidId, CorruptRecord, ValueError) as error:
            raise self._wrong(str(error), before=True) from error
        if end.num_entries != self._progress.num_entries or end.forget_version > MAX_VERSION:
            raise self._wrong(f"{self._progress.num_entries} entries came, {end} is said", before=True)
        self._is_whole = True
        return EndRead(end, self._progress)

    def _read_entries(self, body: memoryview) -> Iterable[Entry]:
        (num_entries,) = _COUNT.unpack_from(body)
        if num_entries > MAX_BLOCK_ENTRIES:
            raise ValueError(f"a block has at most {MAX_BLOCK_ENTRIES} entries, this one says {num_entries}")
        at, last = _COUNT.size, self._progress.last_version
        newest = self._header.version if self._header else 0
        for _ in range(num_entries):
            version, size_bytes = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            data = bytes(body[at : at + size_bytes])
            if not last < version <= newest:
                raise ValueError(f"version {version} comes after {last} in a memory of version {newest}")
            current = upgrade_entry(data, where=f"version {version}")
            decode_entry(current, where=f"version {version}")
            yield version, current
            at, last = at + size_bytes, version
        if at != len(body):
            raise ValueError(f"{num_entries} entries take {at} bytes, the block has {len(body)}")

    def _wrong(self, why: str, *, before: bool = False) -> InvalidArchive:
        """The error for the block that comes next, or for the one `before`, whose digest was right."""
        number = self._progress.num_blocks + (0 if before else 1)
        where = "before" if before else "from"
        return InvalidArchive(
            f"block {number} of the archive, {where} byte {self._progress.offset_bytes}: {why}"
        )


def _read_header(body: memoryview) -> ArchiveHeader:
    version, created_at_ms, num_entries, feature_dim, prompt_dim, *lengths = _HEAD.unpack_from(body)
    split = _HEAD.size + lengths[0]
    if len(body) != split + lengths[1] or version > MAX_VERSION or abs(created_at_ms) > MAX_VERSION:
        raise ValueError(f"{len(body)} bytes, version {version}, made at {created_at_ms} ms is no header")
    return ArchiveHeader(
        latent_space=parse_latent_space(bytes(body[_HEAD.size : split]).decode("ascii")),
        name=parse_memory_name(bytes(body[split:]).decode("ascii")),
        version=version,
        created_at_ms=created_at_ms,
        num_entries=num_entries,
        feature_dim=feature_dim,
        prompt_dim=prompt_dim,
    )


def _first_digest(preamble: bytes) -> bytes:
    return _digest(b"", preamble)


def _digest(before: bytes, block: bytes) -> bytes:
    return hashlib.blake2b(before + block, digest_size=DIGEST_BYTES).digest()
