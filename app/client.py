"""A service's HTTP interface as the commands see it, which are clients of it like any others."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import typer

from app.errors import InvalidRequest, ServiceError, Unavailable

POLL_S = 1.0
_TIMEOUT_S = 60.0
_MAX_PAUSE_S = 30.0
_RETRIED = frozenset({408, 429, 502, 503, 504})
_PASSING = "import_conflict"  # what was sent last is still being written

_T = TypeVar("_T")


class ServiceClient:
    """A service that is away for a while, or busy, is waited for."""

    def __init__(self, url: str, api_key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S)
        self._sleep = sleep

    def close(self) -> None:
        """Closes the connections."""
        self.http.close()

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """A request that may be repeated. Raises ServiceError."""
        return self.patiently(lambda: self.once(method, path))

    def once(self, method: str, path: str, **members: Any) -> dict[str, Any]:
        """A request. Raises ServiceError, Unavailable where it may succeed later."""
        with mapped_errors():
            return checked(self.http.request(method, path, **members))

    def patiently(self, ask: Callable[[], _T]) -> _T:
        """Asks again and again while the service is away or busy."""
        pause_s = POLL_S
        while True:
            try:
                return ask()
            except Unavailable as error:
                typer.echo(f"Waiting: {error.message}", err=True)
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """The errors of a connection as Unavailable."""
    try:
        yield
    except httpx.TransportError as error:
        where = error.request.url.copy_with(raw_path=b"/")
        raise Unavailable(f"the service at {where} does not answer: {_reason_of(error)}") from error


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer. Raises ServiceError with what the service said."""
    check(answer)
    return dict(answer.json())


def check(answer: httpx.Response) -> None:
    """Raises ServiceError with what the service said, where that is an error; its body must have been read."""
    if answer.is_error:
        error = _error_of(answer)
        may_pass = answer.status_code in _RETRIED or error["code"] == _PASSING
        kind: type[ServiceError] = Unavailable if may_pass else InvalidRequest
        raise kind(error["message"])


def _reason_of(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _error_of(answer: httpx.Response) -> dict[str, str]:
    """Code and message of an error, also of one that something in between has answered with."""
    try:
        error = answer.json()["error"]
        return {"code": str(error["code"]), "message": str(error["message"])}
    except (ValueError, KeyError, TypeError):
        return {"code": "", "message": f"{answer.request.url} answered {answer.status_code}"}
