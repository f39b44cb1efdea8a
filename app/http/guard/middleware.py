"""What every request passes through: an id, a span, security headers, measurement, a line in the log, the last catch of errors."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import structlog
from fastapi import Request
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.quota import Remaining
from app.http.errors import http_problem, internal_problem
from app.http.guard.auditing import end_act
from app.http.guard.headers import add_headers
from app.http.guard.protocol import MAX_HEAD_BYTES, MAX_QUERY_MEMBERS
from app.http.guard.rate_limit import token_headers
from app.telemetry.metrics import Metrics
from app.telemetry.metrics.http import METHODS
from app.telemetry.tracing import context_of, note_error, span

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = frozenset(
    {"/livez", "/readyz", "/metrics"}
)  # asked every few seconds, and nobody looks for one of them
_TRACE_HEADERS = ("traceparent", "tracestate")

_log = structlog.get_logger(__name__)


class RequestMiddleware:
    """Wraps the whole application; an error that comes out of it is answered as 500 and logged with the request id."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        now_s: Callable[[], float],
        randomness: Callable[[int], bytes],
        *,
        is_tls: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._now_s = now_s
        self._randomness = randomness
        self._is_tls = is_tls

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
                await end_act(scope["state"].get("act"), status)
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if scope["app"].state.is_stopping:
                    headers["connection"] = "close"
                add_headers(headers, is_tls=self._is_tls or scope["scheme"] == "https")
                _add_tokens(headers, status, scope["state"].get("tokens"))
            await send(message)

        self._metrics.http_requests_in_flight.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id), _span_of(scope) as current:
            current.set_attribute("sparke.request_id", request_id)
            try:
                await (_refusal_of(scope) or self._app)(scope, receive, send_with_headers)
            except ClientDisconnect:
                _log.info("client_disconnected", route=_route_of(scope))
            except Exception as error:
                note_error(current, error)
                _log.exception("unexpected_error", method=scope["method"], route=_route_of(scope))
                if status is not None:
                    raise  # half an answer is out: the connection must break, so that it is not taken for whole
                await internal_problem(Request(scope))(scope, receive, send_with_headers)
            finally:
                await end_act(scope["state"].get("act"), status)
                self._metrics.http_requests_in_flight.dec()
                self._tell(scope, status, self._now_s() - started_s)
                _describe(current, scope, status)
                structlog.contextvars.unbind_contextvars("tenant_id")  # which `authenticate` bound

    def _request_id(self, scope: Scope) -> str:
        given = Headers(scope=scope).get("x-request-id", "")
        return given if _REQUEST_ID.fullmatch(given) else f"req_{self._randomness(12).hex()}"

    def _tell(self, scope: Scope, status: int | None, duration_s: float) -> None:
        """Counts the request and says in the log how it ended; its path and query may hold what is nobody else's business."""
        route = _route_of(scope)
        self._metrics.observe_request(scope["method"], route, status, duration_s)
        log = _log.debug if scope["path"] in _PROBES else _log.info
        log(
            "request_ended",
            method=scope["method"][:20],
            route=route,
            status=status,
            duration_ms=round(1000 * duration_s, 1),
        )


def _route_of(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _span_of(scope: Scope) -> AbstractContextManager[Span]:
    """The span of a request, below that of a client that sends its own along. Probes have none."""
    if scope["path"] in _PROBES:
        return nullcontext(INVALID_SPAN)
    headers = Headers(scope=scope)
    given = {name: headers[name] for name in _TRACE_HEADERS if name in headers}
    return span(_method_of(scope), kind=SpanKind.SERVER, parent=context_of(given))


def _describe(current: Span, scope: Scope, status: int | None) -> None:
    """Names a request's span by its route, which alone is bounded, and says how it ended."""
    if not current.is_recording():
        return
    route = _route_of(scope)
    current.update_name(f"{_method_of(scope)} {route}")
    current.set_attributes(
        {"http.request.method": _method_of(scope), "http.route": route, "url.scheme": scope["scheme"]}
    )
    if status is not None:
        current.set_attribute("http.response.status_code", status)
    if status is None or status >= 500:
        current.set_status(StatusCode.ERROR)


def _method_of(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else "_OTHER"


def _refusal_of(scope: Scope) -> ASGIApp | None:
    """The answer to a request whose head is beyond what any route of ours can want."""
    query: bytes = scope["query_string"]
    num_bytes = len(scope["raw_path"]) + len(query)
    num_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if num_bytes > MAX_HEAD_BYTES:
        return http_problem(
            Request(scope), 431, f"a request's line and headers have at most {MAX_HEAD_BYTES} bytes"
        )
    if query.count(b"&") >= MAX_QUERY_MEMBERS:
        return http_problem(Request(scope), 400, f"a query has at most {MAX_QUERY_MEMBERS} members")
    return None


def _add_tokens(headers: MutableHeaders, status: int, tokens: Remaining | None) -> None:
    """What is left of the tenant's requests a minute, where they are bounded; a 429 tells of what it is for alone."""
    if tokens is not None and status != 429:
        headers.update(token_headers(tokens))
