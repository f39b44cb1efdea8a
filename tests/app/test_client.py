"""What commands make of a service's answers, and of those of something that is none. Real connections to small servers."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from serving import serving
from typer.testing import CliRunner

from app.cli import cli
from app.client import ServiceClient
from app.errors import ConfigurationError, InvalidRequest, InvalidValue, NotFound, Unavailable
from app.submit import BatchClient
from app.transfers import MemoryClient, bring_archive

HTML = ("text/html; charset=utf-8", b"<html>Sign in</html>")


@contextmanager
def _answering(status: int, kind: str, body: bytes, **headers: str) -> Iterator[tuple[str, list[str]]]:
    """A server that says the same to whatever comes; its URL, and the paths that came."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in {"content-type": kind, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
            """Silent."""

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}", asked


def _error(code: str) -> tuple[str, bytes]:
    return "application/json", json.dumps({"error": {"code": code, "message": f"it is {code}"}}).encode()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "http://",
        "ftp://localhost",
        "http://localhost:8000:1",
        "http://localhost:99999",
        "http://a..b",
        "http://exa mple",
        "http://localhost\n",
        "http://localhost?x=1",
    ],
)
def test_what_is_no_url_of_a_service_is_said_at_once(url: str):
    """Before anything is sent, and as one message: none is waited for as if it were a service that is away."""
    with pytest.raises(InvalidValue, match=r"--url takes .*http://127\.0\.0\.1:8000"):
        ServiceClient(url, None)


@pytest.mark.parametrize("key", ["sk-é", "sk with spaces", "sk-sparke-1\n", "sk-\x00"])
def test_what_cannot_be_a_key_is_said_and_not_shown(key: str):
    """A header takes no such character. The message names the option and the variable, and has nothing of the key."""
    with pytest.raises(InvalidValue, match=r"--api-key .*SPARKE_API_KEY") as raised:
        ServiceClient("http://127.0.0.1:9", key)
    assert key.strip() not in raised.value.message


def test_a_command_with_a_wrong_url_ends():
    """As any command with a wrong option."""
    ended = CliRunner().invoke(cli, ["memories", "stats", "default", "--url", "localhost:8000"])
    assert isinstance(ended.exception, InvalidValue)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:9/", "http://127.0.0.1:9/sparke/"])
def test_a_url_is_told_without_a_slash_at_its_end(url: str):
    """So that a note of one is a note of the other."""
    with closing(ServiceClient(url, None)) as client:
        assert client.url == url.rstrip("/")


def test_a_path_of_the_url_goes_before_every_other():
    """A service may be behind a proxy that tells it by a path."""
    with (
        _answering(200, "application/json", b"{}") as (url, asked),
        closing(ServiceClient(f"{url}/sparke/", "sk")) as client,
    ):
        assert client.ask("GET", "/v1/models") == {}
    assert asked == ["/sparke/v1/models"]


def test_a_redirect_is_an_error_that_says_where_to():
    """It is followed nowhere: a key would go there too."""
    with (
        _answering(302, *HTML, location="https://elsewhere.example/login") as (url, asked),
        closing(ServiceClient(url, "sk")) as client,
        pytest.raises(ConfigurationError) as raised,
    ):
        client.ask("GET", "/v1/models")
    assert raised.value.message.startswith(f"{url}/v1/models answered 302")
    assert "https://elsewhere.example/login" in raised.value.message
    assert asked == ["/v1/models"]


@pytest.mark.parametrize("answer", [HTML, ("application/json", b"[1, 2]"), ("application/json", b"\xff")])
def test_what_is_no_json_of_a_service_is_said(answer: tuple[str, bytes]):
    """The URL, the status, and what came instead."""
    with (
        _answering(200, *answer) as (url, _),
        closing(ServiceClient(url, None)) as client,
        pytest.raises(
            ConfigurationError, match=f"{url}/v1/models answered 200 with {answer[0].partition(';')[0]}"
        ),
    ):
        client.ask("GET", "/v1/models")


def test_an_answer_that_cannot_be_unpacked_is_said():
    """It is no matter of time."""
    with (
        _answering(200, "application/json", b"no gzip", content_encoding="gzip") as (url, _),
        closing(ServiceClient(url, None)) as client,
        pytest.raises(ConfigurationError, match=f"{url}/v1/models cannot be asked so"),
    ):
        client.ask("GET", "/v1/models")


def _fetch_file(url: str, path: Path) -> None:
    with closing(BatchClient(url, None)) as client:
        client.download("file-1", path)


def _fetch_archive(url: str, path: Path) -> None:
    with closing(MemoryClient(url, None)) as client:
        bring_archive(client, {"id": "toy.a"}, path, lambda _: None)


@pytest.mark.parametrize("fetch", [_fetch_file, _fetch_archive])
@pytest.mark.parametrize("status", [200, 302])
def test_no_page_is_taken_for_a_file(fetch: Any, status: int, tmp_path: Path):
    """What a proxy says in the service's place is no output of a batch and no archive, and leaves nothing."""
    with _answering(status, *HTML) as (url, _), pytest.raises(ConfigurationError, match=f"answered {status}"):
        fetch(url, tmp_path / "fetched")
    assert list(tmp_path.iterdir()) == []


def test_what_the_service_says_is_in_vain_is_not_tried_again():
    """A spent quota of the day is no reason to wait until midnight, though its status is that of a busy service."""
    with (
        _answering(429, *_error("insufficient_quota"), x_should_retry="false") as (url, asked),
        closing(ServiceClient(url, None)) as client,
        pytest.raises(InvalidRequest, match="it is insufficient_quota"),
    ):
        client.ask("GET", "/v1/models")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, "queue_full", Unavailable),
        (503, "no_worker", Unavailable),
        (409, "import_conflict", Unavailable),
        (409, "memory_exists", InvalidRequest),
        (404, "not_found", NotFound),
        (404, "", ConfigurationError),  # of a proxy that knows no such path
        (400, "invalid_value", InvalidRequest),
    ],
)
def test_an_error_has_its_kind(status: int, code: str, kind: type[Exception]):
    """What may pass, what is not there, and what can never succeed."""
    with (
        _answering(status, *_error(code)) as (url, _),
        closing(ServiceClient(url, None)) as client,
        pytest.raises(kind, match=f"it is {code}") as raised,
    ):
        client.once("GET", "/v1/models")
    assert type(raised.value) is kind
