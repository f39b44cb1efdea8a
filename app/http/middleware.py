"""What every request passes through: a request id, security headers, measurement, and the last catch of errors."""

import re
from collections.abc import Callable

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.quota import Remaining
from app.http.errors import internal_problem
from app.http.rate_limit import token_headers
from app.telemetry.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "cross-origin",
}
_CONTENT_SECURITY = "default-src 'none'; frame-ancestors 'none'"
_DOCS = "/docs"  # its page loads its script from elsewhere

_log = structlog.get_logger(__name__)


class RequestMiddleware:
    """Wraps the whole application; an error that comes out of it is answered as 500 and logged with the request id."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, now_s: Callable[[], float], randomness: Callable[[int], bytes]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._now_s = now_s
        self._randomness = randomness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started_s = self._now_s()
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                _add_headers(headers, request_id, scope["path"])
                _add_tokens(headers, status, scope["state"].get("tokens"))
            await send(message)

        self._metrics.http_requests_in_flight.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_headers)
            except ClientDisconnect:
                _log.info("client_disconnected", path=scope["path"])
            except Exception:
                _log.exception("unexpected_error", method=scope["method"], path=scope["path"])
                if status is not None:
                    raise  # half an answer is out: the connection must break, so that it is not taken for whole
                await internal_problem(Request(scope))(scope, receive, send_with_headers)
            finally:
                self._metrics.http_requests_in_flight.dec()
                self._measure(scope, status, self._now_s() - started_s)

    def _request_id(self, scope: Scope) -> str:
        given = Headers(scope=scope).get("x-request-id", "")
        return given if _REQUEST_ID.fullmatch(given) else f"req_{self._randomness(12).hex()}"

    def _measure(self, scope: Scope, status: int | None, duration_s: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.observe_request(scope["method"], route, status, duration_s)


def _add_headers(headers: MutableHeaders, request_id: str, path: str) -> None:
    headers["x-request-id"] = request_id
    for name, value in _SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    if not path.startswith(_DOCS):
        headers.setdefault("content-security-policy", _CONTENT_SECURITY)
    headers.setdefault("cache-control", "no-store")


def _add_tokens(headers: MutableHeaders, status: int, tokens: Remaining | None) -> None:
    """What is left of the tenant's requests a minute, where they are bounded; a 429 tells of what it is for alone."""
    if tokens is not None and status != 429:
        headers.update(token_headers(tokens))
