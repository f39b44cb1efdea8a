"""HEAD is answered as GET is, without a body."""

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from patience import PATIENCE_S

from app.domain.scope import Scope
from app.http.guard.heads import HeadMiddleware
from app.http.guard.scopes import NEEDED
from app.settings import Settings

ServeApi = Callable[[Settings], str]


def _headers(answer: httpx.Response, *more: str) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id", *more}
    }


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "path",
    [
        "/livez",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/docs/show.js",
        "/docs/swagger-ui.js",
        "/v1/models",
        "/v1/models/toy",
        "/v1/models/absent",
        "/v1/jobs?limit=1",
        "/v1/jobs?state=failed",
        "/nowhere",
    ],
)
def test_head_has_the_headers_of_get(http: httpx.Client, path: str):
    """All of them, with the length of the body that is not sent; of refusals as well."""
    head, get = http.head(path), http.get(path)
    assert head.status_code == get.status_code
    assert _headers(head) == _headers(get)
    assert int(head.headers["content-length"]) == len(get.content) > 0
    assert head.content == b""


def test_every_route_that_takes_get_takes_head(http: httpx.Client):
    """With the same status; where GET is 405, HEAD is too, and says what is taken."""
    for method, path in NEEDED:
        place = path.replace("{", "").replace("}", "")
        head, get = http.head(place), http.get(place)
        assert head.status_code == get.status_code, place
        assert method != "GET" or head.status_code != 405, place
        assert head.headers.get("allow") == get.headers.get("allow"), place


@pytest.mark.usefixtures("worker")
def test_of_an_image_and_of_a_file_the_length_is_told(client: openai.OpenAI, http: httpx.Client):
    """By signed URL and by key: what previews of links and caches ask first."""
    made = client.images.generate(prompt="a star", response_format="url", extra_body={"model": "toy"})
    url = (made.data or [])[0].url or ""
    file = client.files.create(file=("lines.jsonl", b"{}\n" * 100_000), purpose="batch")
    for path in (url, f"{url}&max_px=32", f"/v1/files/{file.id}/content"):
        head, get = http.head(path), http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert _headers(head, "cache-control") == _headers(get, "cache-control")
        assert int(head.headers["content-length"]) == len(get.content) > 0


@pytest.mark.usefixtures("worker")
def test_a_stream_is_over_with_its_head(http: httpx.Client, settings: Settings):
    """Whatever would come and however late; its place is free at once, and the connection takes the next request."""
    quiet = http.post("/v1/jobs", json={"prompt": "a star", "model": "unserved"}).json()
    path = f"/v1/jobs/{quiet['id']}/events"
    with httpx.Client(
        base_url=http.base_url, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=1)
    ) as one:
        for _ in range(2 * settings.max_followers_per_tenant):
            head = one.head(path)
            assert (head.status_code, head.headers["content-type"]) == (
                200,
                "text/event-stream; charset=utf-8",
            )
        assert one.get("/livez").status_code == 200
    memory = http.post("/v1/memories", json={"name": "headed", "model": "toy"}).json()["id"]
    head, get = http.head(f"/v1/memories/{memory}/export"), http.get(f"/v1/memories/{memory}/export")
    assert (head.content, _headers(head)) == (b"", _headers(get))
    http.post(f"/v1/jobs/{quiet['id']}/cancel")


@pytest.mark.anyio
async def test_a_stream_that_looks_for_no_client_is_ended():
    """At its first part, also under a server that does not say that the answer is complete; and its scope is as it came."""
    parts, sent = [], []

    async def endless(scope, _receive, send):
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in range(9):
            parts.append(part)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def keep(message):
        sent.append(message)

    scope = {"type": "http", "method": "HEAD"}
    await HeadMiddleware(endless)(scope, keep, keep)
    assert parts == [0]
    assert [message.get("body") for message in sent] == [None, b""]
    assert scope["method"] == "HEAD"


def test_no_byte_follows_a_head(api_url: str):
    """As it is on the wire: what follows the empty line is the next answer."""
    place = urlsplit(api_url)
    request = b"HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as raw:
        raw.sendall(request)
        got = b""
        while got.count(b"\r\n\r\n") < 2:
            got += raw.recv(4096)
    first, second, rest = got.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")
    assert rest == b""


def test_a_head_is_counted_as_one(http: httpx.Client):
    """In metrics by its own method, under its route."""
    http.head("/v1/models")
    told = http.get("/metrics").text
    assert 'sparke_http_requests_total{method="HEAD",route="/v1/models",status="200"}' in told


def test_a_key_is_asked_for_as_for_get(
    serve_api: ServeApi, own_database: Settings, issue_key: Callable[..., str]
):
    """401 without one, 403 without its scope, and 200."""
    url = serve_api(own_database)
    keys = {
        403: issue_key(own_database.redis_url, "acme", Scope.MANAGE),
        200: issue_key(own_database.redis_url, "acme", Scope.READ),
    }
    assert httpx.head(f"{url}/v1/jobs", timeout=PATIENCE_S).status_code == 401
    for status, key in keys.items():
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.head(f"{url}/v1/jobs", headers=headers, timeout=PATIENCE_S).status_code == status
