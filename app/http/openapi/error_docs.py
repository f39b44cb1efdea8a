"""What an operation's errors look like in the OpenAPI document: each status with its codes, body and headers."""

from typing import Any

from app.http.bodies.answers import Problem
from app.http.error_table import codes_of
from app.http.errors import MAX_RETRY_AFTER_S, PROBLEM_JSON
from app.http.guard.rate_limit import IMAGES_LIMIT, IMAGES_REMAINING, IMAGES_RESET, LIMIT, REMAINING, RESET

_TITLES = {
    400: "Something in the request is wrong",
    401: "No valid API key",
    403: "Not allowed, with this key or this signature",
    404: "There is no such thing",
    405: "Another method is wanted here",
    408: "The body came too slowly",
    409: "It is over, or there already",
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
_COUNT = {"type": "integer", "minimum": 0}
_SPAN = {"type": "string", "pattern": r"^([0-9]+h)?([0-9]+m)?[0-9]+s$"}
_REQUESTS: dict[str, Any] = {
    LIMIT: {
        "description": "How many requests you may send a minute; where that is not bounded, how many jobs of yours may wait"
        " for the model.",
        "schema": {"type": "integer", "minimum": 1},
    },
    REMAINING: {"description": "How many more.", "schema": _COUNT},
}
_WHEN = "When all of it is there again; absent where it is the service that is full."
_IMAGES: dict[str, Any] = {
    IMAGES_LIMIT: {
        "description": "How many images you may ask for on a day of UTC; absent: any number.",
        "schema": _COUNT,
    },
    IMAGES_REMAINING: {"description": "How many more today.", "schema": _COUNT},
    IMAGES_RESET: {"description": "When the next day begins.", "schema": _SPAN},
}
ALLOWANCE_DOCS: dict[str, Any] = {**_REQUESTS, **_IMAGES}
EXHAUSTED_DOCS: dict[str, Any] = {**ALLOWANCE_DOCS, RESET: {"description": _WHEN, "schema": _SPAN}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {**_RETRY_AFTER, **_REQUESTS, RESET: EXHAUSTED_DOCS[RESET]},
    503: _RETRY_AFTER,
}


def fails_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with these errors, beside those that all routes have.

    Whatever takes a body may find it too large, and too slow.
    """
    all_statuses = sorted({*statuses, 408} if 413 in statuses else statuses)
    return {status: _describe(status) for status in all_statuses}


def common_errors(*, needs_key: bool) -> dict[str, dict[str, Any]]:
    """What any operation may answer, and any that needs a key."""
    statuses = (400, 401, 403, 429, 500, 503) if needs_key else (500,)
    return {str(status): _describe(status) for status in statuses}


def _describe(status: int) -> dict[str, Any]:
    own = " or a failed job's own" if status == 500 else ""
    codes = ", ".join(f"`{code}`" for code in codes_of(status))
    return {
        "description": f"{_TITLES[status]}: {codes}{own}",
        "headers": dict(_HEADERS.get(status, {})),
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
    }
