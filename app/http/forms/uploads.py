"""From the body of `POST /v1/files` to bytes in the object store, and what the form says of them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from app.domain.file import MAX_FILE_TTL_S, MIN_FILE_TTL_S, FilePurpose
from app.domain.ids import TenantId
from app.errors import InvalidValue, QueueFull, TooManyFollowers, TooManyTransfers, TooManyUploads
from app.http.forms.multipart import Event, PartStart, malformed, read_parts
from app.http.member_faults import faults_of
from app.objects.folder import ObjectWriter

PUBLISHED_PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
MAX_FIELD_BYTES = 1024
MAX_FILENAME_BYTES = 255
MAX_AROUND_FILE_BYTES = 64 * 1024  # fields, headers and boundaries of a body
MAX_IDLE_S = 60.0
_FULL_RETRY_S = 5
_BRACKETED = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]")


class ExpiresAfter(BaseModel):
    """When the file goes by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_FILE_TTL_S, le=MAX_FILE_TTL_S)


class UploadForm(BaseModel):
    """The fields beside the file. They are texts, so numbers are read from them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: FilePurpose
    expires_after: ExpiresAfter | None = None

    @field_validator("purpose", mode="before")
    @classmethod
    def _check_purpose(cls, value: object) -> object:
        if value == FilePurpose.BATCH:
            return value
        if value in PUBLISHED_PURPOSES:
            raise PydanticCustomError(
                "invalid_value", "this service has no use for such files; the one purpose is 'batch'"
            )
        raise PydanticCustomError("invalid_value", "expected 'batch'")


@dataclass(frozen=True, slots=True)
class Upload:
    """What has come: the form, the file's name, safe to show, and its size."""

    form: UploadForm
    filename: str
    size_bytes: int


class Slots:
    """How many transfers of a tenant this process has at a time: each holds memory, and a slow one for long."""

    def __init__(self, max_per_tenant: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._held: Counter[TenantId] = Counter()

    @contextmanager
    def hold(self, tenant_id: TenantId) -> Iterator[None]:
        """A slot for as long as the context lasts. Raises QueueFull."""
        if self._held[tenant_id] >= self._max_per_tenant:
            raise self._full(self._max_per_tenant)
        self._held[tenant_id] += 1
        try:
            yield
        finally:
            self._held[tenant_id] -= 1
            self._held += Counter()  # forgets tenants that hold none

    def _full(self, most: int) -> QueueFull:
        return TooManyTransfers(
            f"you have {most} memories on their way out and in, which is the most; ask a little later",
            retry_after_s=_FULL_RETRY_S,
        )


class UploadSlots(Slots):
    """Those of uploads of files."""

    def _full(self, most: int) -> QueueFull:
        return TooManyUploads(
            f"you send {most} files at once, which is the most; send this one a little later",
            retry_after_s=_FULL_RETRY_S,
        )


class FollowerSlots(Slots):
    """Those of streams of jobs' events, each of which holds a connection."""

    def _full(self, most: int) -> QueueFull:
        return TooManyFollowers(
            f"you follow {most} jobs at once, which is the most; end a stream, or ask for jobs instead",
            retry_after_s=_FULL_RETRY_S,
        )


async def receive_upload(
    request: Request, writer: ObjectWriter, *, max_file_bytes: int, timeout_s: float
) -> Upload:
    """Passes the file on to `writer` as it comes, and returns what it was when all of the body has come.

    Raises what `read_parts` raises, InvalidValue for an empty file, and StoreUnavailable.
    """
    max_bytes = max_file_bytes + MAX_AROUND_FILE_BYTES
    if declared_bytes(request) > max_bytes:
        raise _too_large(max_file_bytes)
    receiver = _Receiver(writer, max_file_bytes)
    parts = read_parts(request, max_bytes=max_bytes, idle_timeout_s=min(MAX_IDLE_S, timeout_s))
    async for events in parts:
        for event in events:
            await receiver.take(event)
    return receiver.result()


class _Receiver:
    """The parts of one body so far."""

    def __init__(self, writer: ObjectWriter, max_file_bytes: int) -> None:
        self._writer = writer
        self._max_file_bytes = max_file_bytes
        self._fields: dict[str, bytes] = {}
        self._current = ""
        self._filename: str | None = None
        self._size_bytes = 0

    async def take(self, event: Event) -> None:
        if isinstance(event, PartStart):
            self._begin(event)
        elif self._current == "file":
            self._size_bytes += len(event.data)
            if self._size_bytes > self._max_file_bytes:
                raise _too_large(self._max_file_bytes)
            await self._writer.write(event.data)
        else:
            self._fields[self._current] += event.data
            if len(self._fields[self._current]) > MAX_FIELD_BYTES:
                raise malformed(f"{self._current[:80]} has more than {MAX_FIELD_BYTES} bytes")

    def result(self) -> Upload:
        form = _validate({name: data.decode(errors="replace") for name, data in self._fields.items()})
        if self._filename is None:
            raise missing_member("file")
        if not self._size_bytes:
            raise InvalidValue("file: expected some bytes, got an empty file", param="file")
        return Upload(form, self._filename, self._size_bytes)

    def _begin(self, part: PartStart) -> None:
        if part.name in self._fields or (part.name == "file" and self._filename is not None):
            raise malformed(f"{part.name[:80]!r} is there twice")
        self._current = part.name
        if part.name != "file":
            self._fields[part.name] = b""
            return
        if part.filename is None:
            raise malformed("'file' is a field and not a file: its part has no filename")
        self._filename = clean_filename(part.filename)
        if "purpose" in self._fields:  # a wrong one is said before all of the file has come
            _validate({"purpose": self._fields["purpose"].decode(errors="replace")})


def clean_filename(text: str) -> str:
    """The last part of a path without control characters, at most 255 bytes of UTF-8; `upload` where nothing is left."""
    name = re.split(r"[/\\]", text)[-1]
    name = "".join(letter for letter in name if not unicodedata.category(letter).startswith("C"))
    name = name.strip().encode()[:MAX_FILENAME_BYTES].decode(errors="ignore").strip()
    return "upload" if name in {"", ".", ".."} else name


def _validate(fields: dict[str, str]) -> UploadForm:
    """The form of texts with bracketed names such as `expires_after[anchor]`. Raises RequestValidationError."""
    form: dict[str, Any] = {}
    for name, value in fields.items():
        bracketed = _BRACKETED.fullmatch(name)
        members = form.setdefault(bracketed[1], {}) if bracketed else None
        if bracketed and isinstance(members, dict):
            members[bracketed[2]] = value
        else:
            form[name] = value
    try:
        return UploadForm.model_validate(form)
    except ValidationError as error:
        raise RequestValidationError(faults_of(error, UploadForm)) from error


def missing_member(name: str) -> RequestValidationError:
    """The error for a part that is not there."""
    return RequestValidationError([{"type": "missing", "loc": ("body", name), "msg": "required"}])


def declared_bytes(request: Request) -> int:
    """How many bytes the client says that its body has; 0 where it does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared[:20]) if declared.isdecimal() else 0


def _too_large(max_file_bytes: int) -> HTTPException:
    return HTTPException(413, f"a file has at most {max_file_bytes} bytes")
