"""The one table of HTTP statuses and codes: how each class of errors is answered."""

from collections.abc import Mapping
from dataclasses import dataclass

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
from app.http.bodies.answers import ErrorMember
from app.http.member_faults import MEMBER_CODES

INTERNAL_MESSAGE = "The server failed on this request. The log has the cause under the request id."


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


def describe_error(error: ServiceError) -> ErrorMember:
    """The error as a member of an answer that is none itself."""
    return ErrorMember(
        message=message_of(error),
        type=answer_for(error).error_type,
        param=error.param,
        code=code_of(error),
    )


def message_of(error: ServiceError) -> str:
    """What its client is told."""
    return INTERNAL_MESSAGE if answer_for(error).is_internal else error.message


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


def title_and_code(status: int) -> tuple[str, str]:
    """What an answer says that comes of no error of ours."""
    return _HTTP_PROBLEMS.get(status, ("Error", "internal"))
