"""From errors to answers, by the table in `error_table.py`: the one error body.

Every error answer has the members of RFC 9457 (type, title, status, detail, instance) and the member `error` of the
OpenAI API (message, type, param, code), with content type application/problem+json.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from app.errors import ImagesSpent, QueueFull, ServiceError
from app.http.bodies.answers import ErrorMember
from app.http.error_table import (
    INTERNAL_MESSAGE,
    INVALID_REQUEST,
    SERVER,
    answer_for,
    code_of,
    describe_error,
    message_of,
    title_and_code,
)
from app.http.guard.rate_limit import refused_headers
from app.http.member_faults import MAX_NAME_CHARS, explain_members
from app.telemetry.metrics.http import METHODS

PROBLEM_JSON = "application/problem+json"
MAX_RETRY_AFTER_S = 120  # the official client does not retry at all beyond it

_log = structlog.get_logger(__name__)


def problem(  # noqa: PLR0913 - the members of the body
    request: Request,
    *,
    status: int,
    title: str,
    error_type: str,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """The one error answer. `extra` adds members of the endpoint's own, as RFC 9457 allows."""
    said = ErrorMember(message=message, type=error_type, param=param, code=code)
    body = {**_problem_body(said, status, title, request.state.request_id), **(extra or {})}
    return JSONResponse(body, status, dict(headers or {}), media_type=PROBLEM_JSON)


def describe_problem(error: ServiceError, request_id: str) -> tuple[int, dict[str, Any]]:
    """The status and the one error body, for an answer that is written into a file."""
    answer = answer_for(error)
    return answer.status, _problem_body(describe_error(error), answer.status, answer.title, request_id)


def _problem_body(said: ErrorMember, status: int, title: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"urn:sparke:error:{said.code}",
        "title": title,
        "status": status,
        "detail": said.message,
        "instance": f"urn:sparke:request:{request_id}",
        "error": said.model_dump(),
    }


def service_problem(
    request: Request, error: ServiceError, extra: Mapping[str, Any] | None = None
) -> JSONResponse:
    """The answer for one of the service's own errors; with `extra` it is a state to report and not a failure to log."""
    answer = answer_for(error)
    if answer.status >= 500 and extra is None:
        _log.warning("request_failed", code=code_of(error), message=error.message)
    headers: dict[str, str] = {}
    retry_after_s = error.retry_after_s if isinstance(error, QueueFull) else answer.retry_after_s
    if isinstance(error, QueueFull):
        headers |= refused_headers(error)
    if retry_after_s is not None:
        headers["retry-after"] = str(min(max(retry_after_s, 1), MAX_RETRY_AFTER_S))
    if isinstance(error, ImagesSpent) and error.retry_after_s > MAX_RETRY_AFTER_S:
        headers["x-should-retry"] = "false"  # so soon it is in vain
    if answer.is_retried is not None:
        headers["x-should-retry"] = str(answer.is_retried).lower()
    if answer.status == 401:
        headers["www-authenticate"] = 'Bearer realm="sparke"'
    return problem(
        request,
        status=answer.status,
        title=answer.title,
        error_type=answer.error_type,
        code=code_of(error),
        message=message_of(error),
        param=error.param,
        headers=headers,
        extra=extra,
    )


def internal_problem(request: Request) -> JSONResponse:
    """The answer for an error that nobody expected: nothing of its inside leaves the server."""
    return problem(
        request,
        status=500,
        title="Internal error",
        error_type=SERVER,
        code=ServiceError.code,
        message=INTERNAL_MESSAGE,
    )


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error that reaches the framework with the one body."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_members)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_service_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ServiceError):
        raise error
    return service_problem(request, error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return http_problem(request, error.status_code, _http_message(request, error, headers), headers)


def http_problem(
    request: Request, status: int, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer for what comes of no error of ours."""
    title, code = title_and_code(status)
    error_type = INVALID_REQUEST if status < 500 else SERVER
    return problem(
        request,
        status=status,
        title=title,
        error_type=error_type,
        code=code,
        message=message,
        headers=headers,
    )


def _http_message(request: Request, error: HTTPException, headers: Mapping[str, str]) -> str:
    """What the framework leaves at its standard phrase, said in full."""
    here = f"{request.method[:20]} {request.url.path[:MAX_NAME_CHARS]}"
    if error.status_code == 404:
        return f"nothing is at {here}; /openapi.json lists what there is"
    if error.status_code == 405:
        return f"{here} is not allowed; allowed here: {headers['Allow']}"
    return str(error.detail)


def _allowed_methods(request: Request) -> list[str]:
    """Every method that the path takes. The framework names those of one route, and a path may have several."""
    named = _named_methods(request)
    if not named:
        routes = request.app.router.routes
        named = {
            method
            for method in METHODS
            if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
        }
    if "GET" in named:
        named.add("HEAD")
    return [method for method in METHODS if method in named]


def _named_methods(request: Request) -> set[str]:
    """The methods of this very path, where one has it: `/v1/images/generations` has the form of an image's too, and is none."""
    routes = iter_route_contexts(request.app.routes)
    return {method for route in routes if route.path == request.url.path for method in route.methods or ()}


async def _on_invalid_members(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    named = _named_methods(request)
    if named and request.method not in named:
        return await _on_http_exception(request, HTTPException(405))
    told = explain_members(list(error.errors()))
    return problem(
        request,
        status=400,
        title="Invalid request",
        error_type=INVALID_REQUEST,
        code=told.code,
        message=told.message,
        param=told.param,
    )
