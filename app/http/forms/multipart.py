"""Reading a multipart/form-data body part by part as it comes: bounded, strict in form, never whole in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from app.http.bodies.body import read_body

MAX_PARTS = 32


@dataclass(frozen=True, slots=True)
class PartStart:
    """A part begins. `filename` is None for a plain field, else as the client gave it, safe for nothing yet."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the part that began last."""

    data: bytes


Event = PartStart | PartData


async def read_parts(
    request: Request, *, max_bytes: int, idle_timeout_s: float, max_parts: int = MAX_PARTS
) -> AsyncIterator[tuple[Event, ...]]:
    """What each chunk of the body holds.

    Raises:
        HTTPException: 408 where nothing comes for a while, 413 above `max_bytes`, 415 for another content type.
        RequestValidationError: the body is not of its form, or ends before it is whole.
        ClientDisconnect: the client went away.
    """
    reader = MultipartReader(_boundary(request.headers.get("content-type", "")), max_parts)
    async for chunk in read_body(request, max_bytes=max_bytes, idle_timeout_s=idle_timeout_s):
        yield reader.feed(chunk)
    reader.finish()


class MultipartReader:
    """python-multipart, its callbacks turned into values."""

    def __init__(self, boundary: bytes, max_parts: int = MAX_PARTS) -> None:
        self._max_parts = max_parts
        self._events: list[Event] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._num_parts = 0
        self._is_whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise malformed(str(error)) from error

    def feed(self, chunk: bytes) -> tuple[Event, ...]:
        """What some more bytes of the body hold. Raises RequestValidationError."""
        self._events = []
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise malformed(str(error)) from error
        return tuple(self._events)

    def finish(self) -> None:
        """Raises RequestValidationError unless the last boundary has come."""
        if not self._is_whole:
            raise malformed("it ends before its last boundary")

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._num_parts += 1
        if self._num_parts > self._max_parts:
            raise malformed(f"it has more than {self._max_parts} parts")

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name, self._header_value = b"", b""

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise malformed("a part has no 'Content-Disposition: form-data; name=...'")
        filename = options.get(b"filename")
        self._events.append(
            PartStart(_decode(options[b"name"]), None if filename is None else _decode(filename))
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _on_end(self) -> None:
        self._is_whole = True


def malformed(why: str) -> RequestValidationError:
    """The error for a body that is not of its form."""
    return RequestValidationError(
        [{"type": "multipart_invalid", "loc": ("body",), "msg": f"the body is not valid form data: {why}"}]
    )


def _boundary(header: str) -> bytes:
    kind, options = parse_options_header(header)
    if kind != b"multipart/form-data":
        shown = kind.decode("latin-1")[:80] or "none"
        raise HTTPException(415, f"expected content-type multipart/form-data, got {shown}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise malformed("its content-type names no boundary")
    return boundary


def _decode(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")
