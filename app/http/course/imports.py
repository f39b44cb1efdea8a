"""From the body of `POST /v1/memories/import` to a memory, block by block."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import structlog
from fastapi import Request
from starlette.exceptions import HTTPException

from app.domain.ids import ImportId, MemoryName, TenantId, make_import_id
from app.errors import InvalidArchive, InvalidValue, MemoryExists, MemoryFull, NotFound, StoreUnavailable
from app.http.bodies.body import read_body
from app.http.deps import Deps
from app.http.forms.uploads import MAX_IDLE_S, declared_bytes
from app.memory.archive import ArchiveReader, EndRead, EntriesRead, HeadRead, Read
from app.memory.importing import ImportRecord, MemoryImporter

OCTETS = "application/octet-stream"
_FED_BYTES = 256 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ImportQuery:
    """What a client says of an archive beside its bytes: the memory's name, an id to go on by, where its body begins."""

    name: MemoryName | None
    import_id: ImportId | None
    from_byte: int


async def receive_import(
    request: Request, tenant_id: TenantId, query: ImportQuery, deps: Deps
) -> ImportRecord:
    """Takes an archive, or the rest of one, as it comes; the import once its memory is there, and keeps to its caps.

    What ends early is kept if the client gave it an id, so that it can go on. What is wrong leaves nothing. Raises what
    `read_body` raises, HTTPException 415, InvalidArchive, InvalidValue, MemoryExists, MemoryFrozen, MemoryFull,
    ImportConflict, TooManyTransfers and StoreUnavailable.
    """
    settings = deps.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != OCTETS:
        raise HTTPException(415, f"expected content-type {OCTETS}, got {kind[:80] or 'none'}")
    left_bytes = settings.max_import_bytes - query.from_byte
    if declared_bytes(request) > left_bytes:
        raise HTTPException(413, f"an archive has at most {settings.max_import_bytes} bytes")
    receiver = await _open_receiver(tenant_id, query, deps)
    record = receiver.record
    if record is None or not record.is_done:
        chunks = read_body(
            request, max_bytes=left_bytes, idle_timeout_s=min(MAX_IDLE_S, settings.upload_timeout_s)
        )
        record = await _receive(chunks, receiver, is_kept=query.import_id is not None, deps=deps)
    await deps.memories.shaper.keep_caps(record.memory_of(tenant_id))
    return record


async def _receive(
    chunks: AsyncIterator[bytes], receiver: "Receiver", *, is_kept: bool, deps: Deps
) -> ImportRecord:
    most_s = deps.settings.upload_timeout_s
    try:
        async with asyncio.timeout(most_s):
            async for chunk in chunks:
                await receiver.take(chunk)
            return await receiver.finish()
    except TimeoutError as error:
        raise HTTPException(408, f"an import takes at most {most_s:g} s", {"connection": "close"}) from error
    except (InvalidArchive, MemoryExists, MemoryFull):
        is_kept = is_kept and receiver.is_cut_off
        raise
    finally:
        if not is_kept:
            await receiver.discard()


async def _open_receiver(tenant_id: TenantId, query: ImportQuery, deps: Deps) -> "Receiver":
    """Where the import stands, if its id is known. Raises InvalidValue where the body is not the rest of it."""
    record = None
    if query.import_id is not None:
        with suppress(NotFound):
            record = await deps.memories.importer.get(tenant_id, query.import_id)
    import_id = query.import_id or make_import_id(deps.now_ms(), deps.randomness(8))
    came_bytes = 0 if record is None else record.progress.offset_bytes
    if query.from_byte > came_bytes:
        raise InvalidValue(
            f"from_byte {query.from_byte} is behind what has come of import {import_id}: {came_bytes} bytes",
            param="from_byte",
        )
    if record is not None and query.name not in (None, record.name):
        raise InvalidValue(f"import {import_id} goes into the memory {record.name!r}", param="name")
    return Receiver(
        deps.memories.importer,
        await _target_of(tenant_id, import_id, query.name, deps),
        record,
        num_left_out_bytes=came_bytes - query.from_byte,
    )


async def _target_of(
    tenant_id: TenantId, import_id: ImportId, name: MemoryName | None, deps: Deps
) -> "Target":
    most = (await deps.desk.quotas.of(tenant_id)).max_memory_entries
    num_held = 0 if most is None else await deps.memories.overview.count_entries(tenant_id)
    return Target(tenant_id, import_id, name, most, num_held)


@dataclass(frozen=True, slots=True)
class Target:
    """Where an archive goes; without a name, to the one that it says. The tenant's memories held `num_held` entries before.

    They may hold `most_entries`, if not None.
    """

    tenant_id: TenantId
    import_id: ImportId
    name: MemoryName | None
    most_entries: int | None = None
    num_held: int = 0

    def check_room(self, num_entries: int) -> None:
        """Raises MemoryFull where it can be told already; whoever makes the memory asks again."""
        most = self.most_entries
        if most is not None and self.num_held + num_entries > most:
            raise MemoryFull(
                f"this archive has {num_entries} entries or more, and your memories have room for"
                f" {max(0, most - self.num_held)}; forget some"
            )


class Receiver:
    """One body of an import: that of a new one, or the rest of the one that the record tells of.

    The first `num_left_out_bytes` of the body came before.
    """

    def __init__(
        self,
        importer: MemoryImporter,
        target: Target,
        record: ImportRecord | None,
        *,
        num_left_out_bytes: int = 0,
    ) -> None:
        self._importer = importer
        self._target = target
        self._left_out_bytes = num_left_out_bytes
        self._reader = ArchiveReader(record.header, record.progress) if record else ArchiveReader()
        self._buffer = bytearray()
        self._end: EndRead | None = None
        self.record = record
        self.is_cut_off = False

    async def take(self, chunk: bytes) -> None:
        """Some more of the body: what is whole of it is written."""
        came_before = min(self._left_out_bytes, len(chunk))
        self._left_out_bytes -= came_before
        self._buffer += memoryview(chunk)[came_before:]
        if len(self._buffer) >= _FED_BYTES:
            await self._feed()

    async def finish(self) -> ImportRecord:
        """The body is at its end: the memory, all at once. Raises InvalidArchive where that is not the archive's end."""
        await self._feed()
        record = self.record
        if record is None or self._end is None:
            self.is_cut_off = True
            self._reader.finish()
            raise InvalidArchive("the archive ends before its end mark")
        end = self._end
        target = self._target
        return await self._importer.publish(
            target.tenant_id, record, end.end, end.progress, most_entries=target.most_entries
        )

    async def discard(self) -> None:
        """Removes what has come, unless it is a memory. Where that cannot be now, it expires."""
        if self.record is not None:
            try:
                await self._importer.discard(self._target.tenant_id, self.record.import_id)
            except StoreUnavailable as error:
                _log.warning("import_left_to_expire", import_id=self.record.import_id, error=error.message)

    async def _feed(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        for read in await asyncio.to_thread(self._reader.feed, data):
            await self._on_read(read)

    async def _on_read(self, read: Read) -> None:
        if isinstance(read, HeadRead):
            header, target = read.header, self._target
            target.check_room(header.num_entries)
            record = ImportRecord(target.import_id, target.name or header.name, header, read.progress)
            await self._importer.begin(self._target.tenant_id, record)
            self.record = record
        elif isinstance(read, EntriesRead) and self.record is not None:
            self._target.check_room(read.progress.num_entries)
            self.record = await self._importer.write(
                self._target.tenant_id, self.record, read.entries, read.progress
            )
        elif isinstance(read, EndRead):
            self._end = read
