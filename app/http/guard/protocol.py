"""HTTP/1.1 as uvicorn speaks it, with bounds on a request's head, and our one error body for what is no HTTP."""

import asyncio
import secrets
from http import HTTPStatus
from typing import Any

import h11
from starlette.datastructures import MutableHeaders
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.http.bodies.answers import ErrorMember, Problem
from app.http.error_table import INVALID_REQUEST, title_and_code
from app.http.errors import PROBLEM_JSON
from app.http.guard.headers import add_headers

MAX_HEAD_BYTES = 32 * 1024
MAX_QUERY_MEMBERS = 100


def bounded_protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol of a connection whose every head must have come within a time: from its first byte, or the connection."""

    class BoundedProtocol(_BoundedProtocol):
        HEAD_TIMEOUT_S = head_timeout_s

    return BoundedProtocol


class _BoundedProtocol(H11Protocol):
    HEAD_TIMEOUT_S = 30.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._head_timer is None:
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.HEAD_TIMEOUT_S, self._on_late_head)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_late_head(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"the head of a request must have come within {self.HEAD_TIMEOUT_S:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answers what reaches no route, where an answer can be sent still, and closes the connection."""
        self._stop_waiting()
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            title, code = title_and_code(status)
            request_id = f"req_{secrets.token_hex(12)}"
            said = ErrorMember(message=message, type=INVALID_REQUEST, param=None, code=code)
            body = Problem(
                type=f"urn:sparke:error:{code}",
                title=title,
                status=status,
                detail=message,
                instance=f"urn:sparke:request:{request_id}",
                error=said,
            )
            self._send(status, body.model_dump_json().encode(), request_id)
        self.transport.close()

    def _send(self, status: int, body: bytes, request_id: str) -> None:
        headers = MutableHeaders(
            {
                "content-type": PROBLEM_JSON,
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": request_id,
            }
        )
        add_headers(headers, is_tls=False)
        reason = HTTPStatus(status).phrase.encode()
        events: list[Any] = [
            h11.Response(status_code=status, headers=headers.raw, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
