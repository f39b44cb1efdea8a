"""From errors to answers: the one table of HTTP statuses, and the one error body.

Every error answer has the members of RFC 9457 (type, title, status, detail, instance) and the member `error` of the
OpenAI API (message, type, param, code), with content type application/problem+json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from app.domain.result import Failure
from app.errors import (
    BatchOver,
    CannotEdit,
    ConfigurationError,
    CorruptRecord,
    Forbidden,
    IdempotencyMismatch,
    ImagesSpent,
    ImportConflict,
    InvalidArchive,
    InvalidId,
    InvalidRequest,
    InvalidValue,
    JobCancelled,
    JobFailed,
    KeyEnded,
    MemoryExists,
    MemoryFrozen,
    MemoryFull,
    ModelNotFound,
    NotFound,
    NotReplicated,
    NoWorker,
    PictureGone,
    QueueFull,
    RateLimited,
    ReferenceNotFound,
    ServiceError,
    StorageFull,
    StoreUnavailable,
    TenantDeleting,
    TooManyBatches,
    TooManyFiles,
    TooManyFollowers,
    TooManyMemories,
    TooManyTransfers,
    TooManyUploads,
    TooManyWebhooks,
    Unauthenticated,
    Unavailable,
    VersionGone,
    WaitTimeout,
)
from app.http.answers import ErrorMember
from app.http.member_faults import MAX_NAME_CHARS, MEMBER_CODES, explain_members
from app.http.rate_limit import refused_headers
from app.telemetry.metrics.http import METHODS

PROBLEM_JSON = "application/problem+json"
MAX_RETRY_AFTER_S = 120  # the official client does not retry at all beyond it
_INTERNAL_MESSAGE = "The server failed on this request. The log has the cause under the request id."

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a class of errors is answered. `is_retried` overrides the client's own rule (it retries 409, 429, 5xx)."""

    status: int
    title: str
    error_type: str
    retry_after_s: int | None = None
    is_retried: bool | None = None
    is_internal: bool = False  # its message is for the log, not for the client


INVALID_REQUEST = "invalid_request_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"

ANSWERS: Mapping[type[ServiceError], Answer] = {
    InvalidRequest: Answer(400, "Invalid request", INVALID_REQUEST),
    IdempotencyMismatch: Answer(422, "Idempotency key used before", INVALID_REQUEST),
    InvalidId: Answer(400, "Invalid id", INVALID_REQUEST),
    InvalidValue: Answer(400, "Invalid value", INVALID_REQUEST),
    ModelNotFound: Answer(404, "Model not found", INVALID_REQUEST),
    TooManyFiles: Answer(400, "Too many files", INVALID_REQUEST),
    MemoryFull: Answer(400, "Memory full", INVALID_REQUEST),
    TooManyMemories: Answer(400, "Too many memories", INVALID_REQUEST),
    StorageFull: Answer(400, "Storage full", INVALID_REQUEST),
    TooManyWebhooks: Answer(400, "Too many webhooks", INVALID_REQUEST),
    InvalidArchive: Answer(400, "Invalid archive", INVALID_REQUEST),
    ReferenceNotFound: Answer(404, "Reference not found", INVALID_REQUEST),
    CannotEdit: Answer(400, "Model cannot edit", INVALID_REQUEST),
    PictureGone: Answer(410, "Picture gone", INVALID_REQUEST),
    VersionGone: Answer(410, "Memory version gone", INVALID_REQUEST),
    NotFound: Answer(404, "Not found", INVALID_REQUEST),
    BatchOver: Answer(409, "Batch over", INVALID_REQUEST, is_retried=False),
    MemoryExists: Answer(409, "Memory exists", INVALID_REQUEST, is_retried=False),
    MemoryFrozen: Answer(409, "Memory frozen", INVALID_REQUEST, is_retried=False),
    ImportConflict: Answer(409, "Import goes on elsewhere", INVALID_REQUEST, is_retried=False),
    Unauthenticated: Answer(401, "Not authenticated", INVALID_REQUEST),
    Forbidden: Answer(403, "Not allowed with this key", PERMISSION),
    KeyEnded: Answer(409, "API key has ended", INVALID_REQUEST, is_retried=False),
    TenantDeleting: Answer(409, "Tenant is being deleted", INVALID_REQUEST, is_retried=False),
    QueueFull: Answer(429, "Too many jobs waiting", RATE_LIMIT),
    RateLimited: Answer(429, "Too many requests", RATE_LIMIT),
    ImagesSpent: Answer(429, "Too many images today", RATE_LIMIT),
    TooManyUploads: Answer(429, "Too many uploads", RATE_LIMIT),
    TooManyTransfers: Answer(429, "Too many exports and imports", RATE_LIMIT),
    TooManyFollowers: Answer(429, "Too many streams of events", RATE_LIMIT),
    TooManyBatches: Answer(429, "Too many unfinished batches", RATE_LIMIT),
    Unavailable: Answer(503, "Service unavailable", SERVER, retry_after_s=5),
    NoWorker: Answer(503, "No worker for the model", SERVER, retry_after_s=10),
    StoreUnavailable: Answer(503, "Store unavailable", SERVER, retry_after_s=5),
    NotReplicated: Answer(503, "Not replicated", SERVER, retry_after_s=5),
    JobFailed: Answer(500, "Job failed", SERVER, is_retried=False),
    JobCancelled: Answer(409, "Job cancelled", INVALID_REQUEST, is_retried=False),
    WaitTimeout: Answer(504, "Job not done in time", SERVER, is_retried=False),
    CorruptRecord: Answer(500, "Corrupt record", SERVER, is_retried=False, is_internal=True),
    ConfigurationError: Answer(500, "Configuration error", SERVER, is_retried=False, is_internal=True),
    ServiceError: Answer(500, "Internal error", SERVER, is_internal=True),
}

# What the framework itself refuses: status → (title, code).
_HTTP_PROBLEMS: Mapping[int, tuple[str, str]] = {
    400: ("Bad request", "invalid_request"),
    403: ("Forbidden", "forbidden"),
    404: ("Not found", "not_found"),
    405: ("Method not allowed", "method_not_allowed"),
    408: ("Request not sent in time", "request_timeout"),
    413: ("Request too large", "request_too_large"),
    415: ("Unsupported media type", "unsupported_media_type"),
    431: ("Request head too large", "head_too_large"),
}


def answer_for(error: ServiceError) -> Answer:
    """The table's row for the error's class, or for its nearest base class."""
    return next(ANSWERS[base] for base in type(error).__mro__ if base in ANSWERS)


def code_of(error: ServiceError) -> str:
    """The stable code: the class's own, or the worker's reason for a failed job."""
    return error.reason if isinstance(error, JobFailed) else error.code


def error_of_failure(failure: Failure) -> ServiceError:
    """The error that a failed job means to its client: the class of that code, else JobFailed with the code kept."""
    own = (QueueFull, JobFailed)  # they take more than a message
    kinds = {kind.code: kind for kind in ANSWERS if kind is not ServiceError and not issubclass(kind, own)}
    kind = kinds.get(failure.code)
    if kind is None:
        return JobFailed(failure.message, reason=failure.code)
    return kind(failure.message, param=failure.param)


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
        message=_message_of(error),
        param=error.param,
        headers=headers,
        extra=extra,
    )


def describe_error(error: ServiceError) -> ErrorMember:
    """The error as a member of an answer that is none itself."""
    return ErrorMember(
        message=_message_of(error),
        type=answer_for(error).error_type,
        param=error.param,
        code=code_of(error),
    )


def _message_of(error: ServiceError) -> str:
    return _INTERNAL_MESSAGE if answer_for(error).is_internal else error.message


def internal_problem(request: Request) -> JSONResponse:
    """The answer for an error that nobody expected: nothing of its inside leaves the server."""
    return problem(
        request,
        status=500,
        title="Internal error",
        error_type=SERVER,
        code=ServiceError.code,
        message=_INTERNAL_MESSAGE,
    )


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error that reaches the framework with the one body."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_members)
    app.add_exception_handler(HTTPException, _on_http_exception)


def all_codes() -> tuple[str, ...]:
    """Every code of the API's own; a failed job may carry another, which its worker chose."""
    own = {kind.code for kind in ANSWERS} | {code for _, code in _HTTP_PROBLEMS.values()}
    return tuple(sorted(own | set(MEMBER_CODES.values()) | {"invalid_type"}))


def codes_of(status: int) -> tuple[str, ...]:
    """The codes of the API's own that an answer with this status may carry."""
    own = {kind.code for kind, answer in ANSWERS.items() if answer.status == status}
    if status in _HTTP_PROBLEMS:
        own.add(_HTTP_PROBLEMS[status][1])
    return tuple(sorted(own | ({*MEMBER_CODES.values(), "invalid_type"} if status == 400 else set())))


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


def title_and_code(status: int) -> tuple[str, str]:
    """What an answer says that comes of no error of ours."""
    return _HTTP_PROBLEMS.get(status, ("Error", "internal"))


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
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _on_invalid_members(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
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
