"""From the body of `POST /v1/images/edits` to its fields and files: bounded, and large files never in memory."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException

from app.errors import InvalidValue
from app.http.form_fields import read_fields
from app.http.generation import GenerationBody, Ignored
from app.http.multipart import Event, PartStart, malformed, read_parts
from app.http.uploads import MAX_IDLE_S, declared_bytes, missing_member

MAX_FIELD_BYTES = 16 * 1024  # a prompt of the longest letters
MAX_PARTS = 64
_MAX_FIELDS_BYTES = MAX_PARTS * (MAX_FIELD_BYTES + 1024)
_IN_MEMORY_BYTES = 1024 * 1024
_FILES = {"image": "image", "image[]": "image", "mask": "mask"}


class EditBody(GenerationBody):
    """The fields of `POST /v1/images/edits` beside its files."""

    input_fidelity: Ignored = None
    edit_strength: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="How much of the image is given up to noise, and so how many of the steps are run: little at 0.2, all of"
        " it at 1. Absent: 0.8, and 1 with a mask. Not to be confused with `diversity[strength]`.",
    )


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that has come whole: its bytes, in memory or on the disk as they are many, and their digest."""

    file: IO[bytes]
    sha256: str


@dataclass(frozen=True, slots=True)
class EditForm:
    """What has come. Its files are there as long as the context of `receive_edit` lasts."""

    body: EditBody
    image: SentFile
    mask: SentFile | None


@asynccontextmanager
async def receive_edit(
    request: Request, *, max_picture_bytes: int, timeout_s: float
) -> AsyncIterator[EditForm]:
    """The form, once all of it has come and its fields are valid.

    Raises:
        HTTPException: 408 where it comes too slowly, 413 above the bounds, 415 for another content type.
        RequestValidationError: the body is not of its form, or members are at fault.
        InvalidValue: there are several images, or an empty file.
        ClientDisconnect: the client went away.
    """
    receiver = _Receiver(max_picture_bytes)
    try:
        max_bytes = 2 * max_picture_bytes + _MAX_FIELDS_BYTES
        if declared_bytes(request) > max_bytes:
            raise _too_large(max_picture_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                parts = read_parts(
                    request,
                    max_bytes=max_bytes,
                    idle_timeout_s=min(MAX_IDLE_S, timeout_s),
                    max_parts=MAX_PARTS,
                )
                async for events in parts:
                    for event in events:
                        await receiver.take(event)
        except TimeoutError as error:
            raise HTTPException(
                408, f"an upload takes at most {timeout_s:g} s", {"connection": "close"}
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

    def __init__(self, max_picture_bytes: int) -> None:
        self._max_picture_bytes = max_picture_bytes
        self._fields: dict[str, bytes] = {}
        self._files: dict[str, _Incoming] = {}
        self._current = ""

    async def take(self, event: Event) -> None:
        if isinstance(event, PartStart):
            self._begin(event)
        elif self._current in self._files:
            file = self._files[self._current]
            if file.size_bytes + len(event.data) > self._max_picture_bytes:
                raise _too_large(self._max_picture_bytes)
            await file.write(event.data)
        else:
            self._fields[self._current] += event.data
            if len(self._fields[self._current]) > MAX_FIELD_BYTES:
                raise malformed(f"{self._current[:80]} has more than {MAX_FIELD_BYTES} bytes")

    def result(self) -> EditForm:
        body = read_fields({name: _text(name, data) for name, data in self._fields.items()}, EditBody)
        if "image" not in self._files:
            raise missing_member("image")
        for name, file in self._files.items():
            if not file.size_bytes:
                raise InvalidValue(f"{name}: expected some bytes, got an empty file", param=name)
        mask = self._files.get("mask")
        return EditForm(body, self._files["image"].sent(), None if mask is None else mask.sent())

    def close(self) -> None:
        for file in self._files.values():
            file.file.close()

    def _begin(self, part: PartStart) -> None:
        name = _FILES.get(part.name)
        if name is None:
            self._begin_field(part)
            return
        if part.filename is None:
            raise malformed(f"{part.name!r} is a field and not a file: its part has no filename")
        if name in self._files:
            raise InvalidValue(f"{name}: expected exactly one file, got several", param=name)
        self._files[name] = _Incoming()
        self._current = name

    def _begin_field(self, part: PartStart) -> None:
        if part.filename is not None:
            raise RequestValidationError(
                [{"type": "extra_forbidden", "loc": ("body", part.name), "msg": "no such file"}]
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


def _too_large(max_picture_bytes: int) -> HTTPException:
    return HTTPException(413, f"an image or a mask has at most {max_picture_bytes} bytes")
