"""From a form with pictures to its fields and files: bounded, and large files never in memory."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.errors import InvalidValue
from app.http.forms.multipart import Event, PartStart, malformed, read_parts
from app.http.forms.uploads import MAX_IDLE_S, declared_bytes, missing_member

MAX_FIELD_BYTES = 16 * 1024  # a prompt of the longest letters
MAX_PARTS = 64
_MAX_FIELDS_BYTES = MAX_PARTS * (MAX_FIELD_BYTES + 1024)
_IN_MEMORY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PictureBounds:
    """Which members of a form are files, by the names of their fields, and how many of each it may have.

    A file has at most `max_bytes`, and the form takes at most `timeout_s`.
    """

    members: Mapping[str, str]
    most: Mapping[str, int]
    max_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that has come whole: its bytes, in memory or on the disk as they are many, and their digest."""

    file: IO[bytes]
    sha256: str


@dataclass(frozen=True, slots=True)
class PictureForm:
    """What has come, in its order. Its files are there as long as the context of `receive_pictures` lasts."""

    fields: Mapping[str, str]
    files: Mapping[str, tuple[SentFile, ...]]

    def first(self, member: str) -> SentFile:
        """The member's file. Raises RequestValidationError where it is missing."""
        if not self.files.get(member):
            raise missing_member(member)
        return self.files[member][0]


@asynccontextmanager
async def receive_pictures(request: Request, bounds: PictureBounds) -> AsyncIterator[PictureForm]:
    """The form, once all of it has come.

    Raises:
        HTTPException: 408 where it comes too slowly, 413 above the bounds, 415 for another content type.
        RequestValidationError: the body is not of its form.
        InvalidValue: there are more files than the form may have, or an empty one.
        ClientDisconnect: the client went away.
    """
    receiver = _Receiver(bounds)
    try:
        max_bytes = sum(bounds.most.values()) * bounds.max_bytes + _MAX_FIELDS_BYTES
        if declared_bytes(request) > max_bytes:
            raise _too_large(bounds.max_bytes)
        try:
            async with asyncio.timeout(bounds.timeout_s):
                parts = read_parts(
                    request,
                    max_bytes=max_bytes,
                    idle_timeout_s=min(MAX_IDLE_S, bounds.timeout_s),
                    max_parts=MAX_PARTS,
                )
                async for events in parts:
                    for event in events:
                        await receiver.take(event)
        except TimeoutError as error:
            raise HTTPException(
                408, f"an upload takes at most {bounds.timeout_s:g} s", {"connection": "close"}
            ) from error
        yield receiver.result()
    finally:
        receiver.close()


class _Incoming:
    """A file on its way."""

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - the receiver closes it
        self.size_bytes = 0
        self._digest = hashlib.sha256()

    async def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._digest.update(data)
        await to_thread.run_sync(self.file.write, data)

    def sent(self) -> SentFile:
        return SentFile(self.file, self._digest.hexdigest())


class _Receiver:
    """The parts of one body so far."""

    def __init__(self, bounds: PictureBounds) -> None:
        self._bounds = bounds
        self._fields: dict[str, bytes] = {}
        self._files: dict[str, list[_Incoming]] = {member: [] for member in bounds.most}
        self._current: str | _Incoming = ""

    async def take(self, event: Event) -> None:
        if isinstance(event, PartStart):
            self._begin(event)
        elif isinstance(self._current, _Incoming):
            if self._current.size_bytes + len(event.data) > self._bounds.max_bytes:
                raise _too_large(self._bounds.max_bytes)
            await self._current.write(event.data)
        else:
            self._fields[self._current] += event.data
            if len(self._fields[self._current]) > MAX_FIELD_BYTES:
                raise malformed(f"{self._current[:80]} has more than {MAX_FIELD_BYTES} bytes")

    def result(self) -> PictureForm:
        for member, files in self._files.items():
            if any(not file.size_bytes for file in files):
                raise InvalidValue(f"{member}: expected some bytes, got an empty file", param=member)
        return PictureForm(
            {name: _text(name, data) for name, data in self._fields.items()},
            {member: tuple(file.sent() for file in files) for member, files in self._files.items()},
        )

    def close(self) -> None:
        for files in self._files.values():
            for file in files:
                file.file.close()

    def _begin(self, part: PartStart) -> None:
        member = self._bounds.members.get(part.name)
        if member is None:
            self._begin_field(part)
            return
        if part.filename is None:
            raise malformed(f"{part.name!r} is a field and not a file: its part has no filename")
        most = self._bounds.most[member]
        if len(self._files[member]) == most:
            expected = "exactly one file, got several" if most == 1 else f"at most {most} files, got more"
            raise InvalidValue(f"{member}: expected {expected}", param=member)
        self._current = _Incoming()
        self._files[member].append(self._current)

    def _begin_field(self, part: PartStart) -> None:
        if part.filename is not None:
            raise RequestValidationError(
                [{"type": "extra_forbidden", "loc": ("body", part.name), "known": list(self._bounds.most)}]
            )
        if part.name in self._fields:
            raise malformed(f"{part.name[:80]!r} is there twice")
        self._fields[part.name] = b""
        self._current = part.name


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise malformed(f"{name[:80]} is no UTF-8") from error


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"a picture has at most {max_bytes} bytes")
