"""Models, health, headers, and the OpenAPI document."""

import asyncio
import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from leaving import asking
from patience import PATIENCE_S, wait_until

from app.domain.ids import ModelId, WorkerId
from app.http.error_table import all_codes, codes_of
from app.http.errors import PROBLEM_JSON
from app.http.openapi.document import GENERATION_EXAMPLES
from app.jobs.types import ModelProgress, WorkerInfo
from app.jobs.workers import WorkerRegistry, now_ms
from app.redis.connection import connect
from app.settings import Settings

ServeApi = Callable[[Settings], str]


@pytest.mark.usefixtures("worker")
def test_the_official_client_lists_models(client: openai.OpenAI):
    """In the catalogue's order, with what can be asked of each, and whether it is loaded."""
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["toy", "unserved"]
    toy = client.models.retrieve("toy")
    assert toy == found["toy"]
    assert (toy.object, toy.owned_by) == ("model", "sparke")
    extra = toy.model_extra or {}
    assert extra["ready"] is True
    assert extra["sizes"]["default"] == "64x64"
    assert extra["defaults"]["steps"] == 3
    assert (found["unserved"].model_extra or {})["ready"] is False
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert caught.value.code == "model_not_found"


@pytest.mark.usefixtures("worker")
def test_ready_with_a_worker(http: httpx.Client):
    """Redis answers and a worker has its models."""
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["state"]) == (200, "ready")
    assert answer.json()["workers"]["ready"] == 1


def test_not_ready_without_a_worker(serve_api: ServeApi, settings: Settings):
    """503 in the one body, with the state beside it; the process itself is alive."""
    url = serve_api(settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=9"}))
    answer = httpx.get(f"{url}/readyz", timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["state"]) == (503, "no_worker")
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert "retry-after" in answer.headers
    assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).json() == {"status": "ok"}
    taking = httpx.get(f"{url}/readyz?exclude=workers", timeout=PATIENCE_S)
    assert (taking.status_code, taking.json()["workers"]["ready"]) == (200, 0)
    assert httpx.get(f"{url}/readyz?exclude=redis", timeout=PATIENCE_S).status_code == 400


def test_the_backlog_counts_what_waits_for_a_first_worker(serve_api: ServeApi, own_database: Settings):
    """A job and a question that no worker is there for are both counted, so that one can be started for them."""
    url = serve_api(own_database.model_copy(update={"no_worker_grace_s": 600.0}))
    assert httpx.post(f"{url}/v1/jobs", json={"prompt": "a star"}, timeout=PATIENCE_S).status_code == 202
    one = 'sparke_jobs_open{model="toy"} 1.0'
    wait_until(lambda: one in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text)
    assert httpx.post(f"{url}/v1/memories", json={"name": "new"}, timeout=PATIENCE_S).status_code == 201
    with asking(f"{url}/v1/memories/toy.new/preview", {"prompt": "a star"}):
        both = 'sparke_jobs_open{model="toy"} 2.0'
        wait_until(lambda: both in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text)


def test_metrics_name_routes_and_no_paths(http: httpx.Client):
    """Requests are counted by route template, so that nobody can fill the memory with paths or methods."""
    http.get("/v1/models/one")
    http.get("/secret/path")
    http.request("BREW", "/v1/models")
    text = http.get("/metrics").text
    assert 'route="/v1/models/{model_id}"' in text
    assert 'route="unmatched"' in text
    assert "secret" not in text
    assert "BREW" not in text
    assert re.search(r'^sparke_jobs_open\{model="toy"\} [0-9.]+$', text, re.MULTILINE)


@pytest.mark.parametrize("given", ["abc-123", "A" * 64])
def test_a_sane_request_id_is_kept(http: httpx.Client, given: str):
    """Ours and the client's logs can be laid side by side."""
    assert http.get("/livez", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "A" * 65, 'x"y'])
def test_another_request_id_is_replaced(http: httpx.Client, given: str):
    """Nothing of it reaches a log or a header."""
    found = http.get("/nowhere", headers={"x-request-id": given}).headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{24}", found)


def _assert_secure(headers: httpx.Headers, path: str, *, cache: str = "no-store") -> None:
    assert headers["x-content-type-options"] == "nosniff", path
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == cache, path
    assert not {"server", "strict-transport-security", "access-control-allow-origin"} & set(headers)


def test_every_answer_has_the_security_headers(http: httpx.Client):
    """Also errors, the documentation, and what is no HTTP; nothing is cached, and only a signed image may be elsewhere."""
    for method, path in (
        ("GET", "/livez"),
        ("GET", "/nowhere"),
        ("BREW", "/v1/models"),
        ("POST", "/v1/jobs"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/v1/models?" + "&" * 200),
    ):
        headers = http.request(method, path).headers
        _assert_secure(headers, path)
        assert headers["cross-origin-resource-policy"] == "same-origin"
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=PATIENCE_S) as peer:
        peer.sendall(b"no http at all\r\n\r\n")
        head, _, body = b"".join(iter(lambda: peer.recv(65_536), b"")).partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    _assert_secure(httpx.Headers([tuple(each.split(": ", 1)) for each in lines]), line)
    assert (line, json.loads(body)["error"]["code"]) == ("HTTP/1.1 400 Bad Request", "invalid_request")


@pytest.mark.usefixtures("worker")
def test_streams_and_images_have_them_too(http: httpx.Client):
    """Events are not cached; a signed image is, by its viewer alone, for as long as its URL works, on any site."""
    job = http.post("/v1/jobs", json={"prompt": "a star"}).json()
    with http.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        _assert_secure(events.headers, "events")
        events.read()
    asked = {"prompt": "a star", "stream": True}
    with http.stream("POST", "/v1/images/generations", json=asked) as images:
        _assert_secure(images.headers, "stream")
    made = http.post("/v1/images/generations", json={"prompt": "a star", "response_format": "url"}).json()
    image = http.get(made["data"][0]["url"])
    max_age_s = int(re.search(r"max-age=([0-9]+)", image.headers["cache-control"])[1])
    assert 3500 < max_age_s <= 3600
    _assert_secure(image.headers, "image", cache=f"private, max-age={max_age_s}, immutable")
    assert image.headers["cross-origin-resource-policy"] == "cross-origin"
    _assert_secure(http.get(made["data"][0]["url"][:-1] + "~").headers, "wrong signature")


def test_the_documentation_loads_nothing_from_elsewhere(http: httpx.Client):
    """Its page has no script of its own in it, and all that it names is there, for its policy allows no other."""
    page = http.get("/docs")
    assert "<script>" not in page.text
    assert "script-src 'self';" in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert [name for name in named if not name.startswith("/docs/")] == ["data:,"]
    for name in named[:1] + named[2:]:
        asset = http.get(name)
        assert asset.status_code == 200, name
        assert asset.headers["cache-control"] == "public, max-age=86400"
        assert asset.headers["content-type"].partition(";")[0] in ("text/css", "text/javascript")
    assert "http:" not in http.get("/docs/show.js").text


def test_no_request_becomes_another_protocol(http: httpx.Client):
    """An upgrade is passed over, and methods that nothing takes are answered as such; a tunnel too."""
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = http.get("/v1/models", headers={**upgrade, "sec-websocket-key": "x"})
    assert (answer.status_code, answer.json()["object"]) == (200, "list")
    for method in ("TRACE", "OPTIONS", "PROPFIND"):
        assert http.request(method, "/v1/models").status_code == 405
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=PATIENCE_S) as peer:
        peer.sendall(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert peer.recv(65_536).startswith(b"HTTP/1.1 404")


def test_browsers_are_held_to_tls_where_there_is_tls(serve_api: ServeApi, settings: Settings):
    """Where the public URL says so, or a proxy on this machine; never else, for that could not be taken back."""
    url = serve_api(settings.model_copy(update={"public_url": "https://images.example.org"}))
    assert (
        httpx.get(f"{url}/livez", timeout=PATIENCE_S).headers["strict-transport-security"]
        == "max-age=31536000"
    )
    plain = serve_api(settings)
    proxied = httpx.get(f"{plain}/livez", headers={"x-forwarded-proto": "https"}, timeout=PATIENCE_S)
    assert "strict-transport-security" in proxied.headers
    assert "strict-transport-security" not in httpx.get(f"{plain}/livez", timeout=PATIENCE_S).headers


def test_the_openapi_document_is_whole(http: httpx.Client):
    """Every reference leads somewhere, every code is named, and each error has the one body and the codes of its status."""
    document = http.get("/openapi.json").json()
    text = str(document)
    for group, name in re.findall(r"#/components/(\w+)/(\w+)", text):
        assert name in document["components"][group]
    assert "HTTPValidationError" not in text
    assert all(f"`{code}`" in document["info"]["description"] for code in all_codes())
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["description"]
            errors = {
                status: answer for status, answer in operation["responses"].items() if int(status) >= 400
            }
            assert "500" in errors
            assert {"401", "503"} <= set(errors) or "security" not in operation
            for status, error in errors.items():
                assert list(error["content"]) == [PROBLEM_JSON]
                assert all(f"`{code}`" in error["description"] for code in codes_of(int(status)))
    generate = document["paths"]["/v1/images/generations"]["post"]
    assert generate["requestBody"]["content"]["application/json"]["examples"] == GENERATION_EXAMPLES
    assert generate["security"]


def test_clients_are_generated_with_names_that_are_words(http: httpx.Client):
    """Each operation has a name of its own without path and method in it, and every member of a path or query has words."""
    operations = [
        operation
        for path in http.get("/openapi.json").json()["paths"].values()
        for operation in path.values()
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    long = [name for name in names if not re.fullmatch(r"(livez|readyz|metrics|[a-z]+(_[a-z]+){1,3})", name)]
    assert [name for name in long if name] + [name for name in names if "_v1_" in name] == []
    members = [member for operation in operations for member in operation.get("parameters", [])]
    assert [member["name"] for member in members if not member.get("description")] == []


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("example", GENERATION_EXAMPLES.values(), ids=GENERATION_EXAMPLES.keys())
def test_the_examples_of_the_document_run(http: httpx.Client, example: dict[str, Any]):
    """What the document shows works as it is, once the references that it names hold something."""
    for member in ("novelty", "context"):
        if member in example["value"].get("diversity", {}):
            name = example["value"]["diversity"][member]["reference"]
            filled = http.post(
                "/v1/images/generations",
                json={"prompt": "a star", "diversity": {"memory": {"name": name}}},
            )
            assert filled.status_code == 200, filled.text
    answer = http.post("/v1/images/generations", json=example["value"])
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == example["value"].get("n", 1)


def test_what_is_loaded_is_told_by_the_worker_that_is_farthest(serve_api: ServeApi, settings: Settings):
    """503 with each model's stage, and its bytes while it is downloaded; none of it once a worker is ready."""
    url = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=8"})
    api = serve_api(url)
    slow = WorkerInfo(
        WorkerId("slow"),
        "loading",
        (ModelId("toy"),),
        now_ms(),
        loading={
            ModelId("toy"): ModelProgress("downloading", 10, 100),
            ModelId("other"): ModelProgress("loading"),
        },
    )
    farther = {ModelId("toy"): ModelProgress("downloading", 20, 100)}
    fast = replace(slow, worker_id=WorkerId("fast"), loading=farther)

    async def ask(*workers: WorkerInfo) -> httpx.Response:
        redis = connect(url.redis_url or "")
        try:
            for worker in workers:
                await WorkerRegistry(redis).beat(worker)
            return await asyncio.to_thread(httpx.get, f"{api}/readyz")
        finally:
            await redis.flushdb()
            await redis.aclose()

    answer = asyncio.run(ask(slow, fast))
    assert (answer.status_code, answer.json()["state"]) == (503, "loading")
    assert answer.json()["models"] == {
        "toy": {"stage": "downloading", "done_bytes": 20, "total_bytes": 100},
        "other": {"stage": "loading"},
    }
    assert answer.headers["retry-after"] == "10"
    ready = asyncio.run(ask(slow, replace(fast, phase="ready", loading={})))
    assert (ready.status_code, ready.json().get("models")) == (200, None)
