"""What an operation's errors look like in the OpenAPI document: each status with its codes, body and headers."""

from typing import Any

from app.http.answers import Problem
from app.http.errors import MAX_RETRY_AFTER_S, PROBLEM_JSON, codes_of
from app.http.rate_limit import LIMIT, REMAINING, RESET

_TITLES = {
    400: "Something in the request is wrong",
    401: "No valid API key",
    403: "The signature is wrong or has expired",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It is over",
    410: "The memory is no longer whole, or the picture no longer there",
    413: "The body is too large",
    415: "Another content type was expected",
    422: "The idempotency key stands for another request",
    429: "Too much at once",
    500: "The server failed",
    503: "A part of the service is away",
    504: "Not done in time",
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Try again after so many seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER_S},
    }
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

ALLOWANCE_DOCS: dict[str, Any] = {
    LIMIT: {
        "description": "How many jobs of yours may wait for the model.",
        "schema": {"type": "integer", "minimum": 1},
    },
    REMAINING: {
        "description": "How many more may.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
EXHAUSTED_DOCS: dict[str, Any] = {
    **ALLOWANCE_DOCS,
    RESET: {
        "description": "When all of it is free again, if jobs leave as before; absent where it is the service that is full.",
        "schema": {"type": "string", "pattern": r"^([0-9]+h)?([0-9]+m)?[0-9]+s$"},
    },
}


def fails_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with these errors, beside those that all routes have."""
    return {status: _describe(status) for status in statuses}


def common_errors(*, needs_key: bool) -> dict[str, dict[str, Any]]:
    """What any operation may answer, and any that asks Redis for a key."""
    statuses = (401, 500, 503) if needs_key else (500,)
    return {str(status): _describe(status) for status in statuses}


def _describe(status: int) -> dict[str, Any]:
    own = " or a failed job's own" if status == 500 else ""
    codes = ", ".join(f"`{code}`" for code in codes_of(status))
    return {
        "description": f"{_TITLES[status]}: {codes}{own}",
        "headers": dict(_HEADERS.get(status, {})),
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
    }
