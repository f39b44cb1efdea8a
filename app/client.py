"""A service's HTTP interface as the commands see it, which are clients of it like any others."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import typer

from app.errors import ConfigurationError, InvalidRequest, InvalidValue, NotFound, Unavailable

POLL_S = 1.0
CHUNK_BYTES = 256 * 1024
OCTETS = "application/octet-stream"
_TIMEOUT_S = 60.0
_MAX_PAUSE_S = 30.0
_RETRIED = frozenset({408, 429, 502, 503, 504})
_PASSING = "import_conflict"  # what was sent last is still being written
_MAX_PORT = 65_535

_T = TypeVar("_T")


class ServiceClient:
    """A service that is away for a while, or busy, is waited for.

    What is no URL or no key at all is InvalidValue before anything is sent.
    """

    def __init__(self, url: str, api_key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        _check_url(url)
        _check_key(api_key or "")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT_S)
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

    @contextmanager
    def receiving(self, path: str, **members: Any) -> Iterator[Iterator[bytes]]:
        """A file's bytes as they come. Raises ServiceError, also for an answer that is none of the service's files."""
        with mapped_errors(), self.http.stream("GET", path, **members) as answer:
            if not answer.is_success:
                answer.read()
            check(answer)
            if _kind_of(answer) != OCTETS:
                raise _foreign(answer, OCTETS)
            yield answer.iter_bytes(CHUNK_BYTES)

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
    """The errors of a connection as Unavailable; those of a request or an answer of no right form as ConfigurationError."""
    try:
        yield
    except (httpx.LocalProtocolError, httpx.DecodingError) as error:
        raise ConfigurationError(f"{error.request.url} cannot be asked so: {_reason_of(error)}") from error
    except httpx.TransportError as error:
        where = error.request.url.copy_with(raw_path=b"/")
        raise Unavailable(f"the service at {where} does not answer: {_reason_of(error)}") from error


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer. Raises ServiceError with what the service said, or that this is no service."""
    check(answer)
    try:
        return dict(answer.json())
    except (ValueError, TypeError) as error:
        raise _foreign(answer, "a JSON object") from error


def check(answer: httpx.Response) -> None:
    """Raises ServiceError with what the service said, where that is no success; its body must have been read.

    A redirect is none: to follow it would take the key elsewhere. What something in between has said, and may not pass, is
    ConfigurationError.
    """
    if answer.is_success:
        return
    error = _error_of(answer)
    is_vain = answer.headers.get("x-should-retry") == "false"
    if error["code"] == _PASSING or (answer.status_code in _RETRIED and not is_vain):
        raise Unavailable(error["message"])
    if error["code"] == NotFound.code:
        raise NotFound(error["message"])
    raise InvalidRequest(error["message"]) if error["code"] else ConfigurationError(error["message"])


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")  # as the system does that looks the host up
        is_host = parsed.host != "" and "%" not in parsed.host
        is_port = parsed.port is None or 0 < parsed.port <= _MAX_PORT
        is_right = parsed.scheme in {"http", "https"} and is_host and is_port and url == url.strip()
        is_right = is_right and not (parsed.query or parsed.fragment)
    except (httpx.InvalidURL, UnicodeError):
        is_right = False
    if not is_right:
        raise InvalidValue(
            f"--url takes a service's URL with its scheme, such as http://127.0.0.1:8000; got {url!r}"
        )


def _check_key(api_key: str) -> None:
    wrong = next((place for place, sign in enumerate(api_key, 1) if not "!" <= sign <= "~"), None)
    if wrong is not None:
        raise InvalidValue(
            "--api-key (or SPARKE_API_KEY) takes a key as `sparke keys create` prints it, without blanks; in this one character"
            f" {wrong} of {len(api_key)} can be in none"
        )


def _foreign(answer: httpx.Response, expected: str) -> ConfigurationError:
    kind = _kind_of(answer) or "no content type"
    return ConfigurationError(
        f"{answer.request.url} answered {answer.status_code} with {kind}, expected {expected}: something else than SPARKE has"
        " answered; see that --url is right"
    )


def _kind_of(answer: httpx.Response) -> str:
    return str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _reason_of(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


def _error_of(answer: httpx.Response) -> dict[str, str]:
    """Code and message of an error, also of one that something in between has answered with."""
    try:
        error = answer.json()["error"]
        return {"code": str(error["code"]), "message": str(error["message"])}
    except (ValueError, KeyError, TypeError):
        said = f"{answer.request.url} answered {answer.status_code}"
        where = answer.headers.get("location")
        return {
            "code": "",
            "message": said
            if where is None
            else f"{said} and points to {where}: --url takes where the service itself is",
        }
