"""Webhooks over HTTP: made, told how a job ended, and deleted, by a real server and a real receiver."""

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from patience import PATIENCE_S
from standardwebhooks import Webhook

from app.redis.embedded import EmbeddedRedis
from app.settings import Settings

BODY = {"prompt": "a star", "model": "toy"}


@pytest.fixture
def hooks(settings: Settings, tmp_path, serve_api) -> Iterator[httpx.Client]:
    """A client of an API whose webhooks may go to this machine, on a Redis of its own. No worker is there."""
    with EmbeddedRedis.start(tmp_path) as server:
        changed = {"redis_url": server.url, "data_dir": tmp_path, "webhooks_allow_private": True}
        url = serve_api(settings.model_copy(update=changed))
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            yield client


@pytest.fixture
def receiver() -> Iterator[tuple[str, queue.Queue]]:
    """A URL, and what was sent to it: headers and body."""
    got: queue.Queue = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.put((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/in", got
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE_S)


def test_a_job_that_ends_is_told(hooks, receiver):
    """The secret of the answer verifies the message, and what it names can be asked for."""
    url, got = receiver
    made = hooks.post("/v1/webhooks", json={"url": url})
    assert made.status_code == 201, made.text
    job = hooks.post("/v1/jobs", json=BODY | {"metadata": {"order": "7"}}).json()
    assert hooks.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    headers, body = got.get(timeout=PATIENCE_S)
    told = Webhook(made.json()["secret"]).verify(body, headers)
    assert told["type"] == "job.cancelled"
    assert told["data"] == {"id": job["id"], "status": "cancelled", "metadata": {"order": "7"}}
    text = hooks.get("/metrics").text
    assert 'sparke_webhook_deliveries_total{outcome="delivered"} 1.0' in text


def test_webhooks_are_made_shown_and_deleted(hooks, receiver):
    """The secret is shown once; an unknown id is 404; enabling changes nothing of an active one."""
    made = hooks.post("/v1/webhooks", json={"url": receiver[0]}).json()
    shown = {name: value for name, value in made.items() if name != "secret"}
    assert made["secret"].startswith("whsec_")
    assert (shown["url"], shown["status"]) == (receiver[0], "active")
    assert hooks.get("/v1/webhooks").json() == {"object": "list", "data": [shown]}
    place = f"/v1/webhooks/{made['id']}"
    assert hooks.get(place).json() == hooks.post(f"{place}/enable").json() == shown
    assert hooks.delete(place).json() == {"id": made["id"], "object": "webhook", "deleted": True}
    for method, path in (
        ("DELETE", place),
        ("GET", place),
        ("POST", f"{place}/enable"),
        ("GET", "/v1/webhooks/x"),
    ):
        assert hooks.request(method, path).status_code == 404


def test_a_secret_is_changed(hooks, receiver):
    """The new one is shown once; a message verifies by either. A grace of months, and an unknown id, are refused."""
    url, got = receiver
    old = hooks.post("/v1/webhooks", json={"url": url}).json()
    place = f"/v1/webhooks/{old['id']}"
    rotated = hooks.post(f"{place}/rotate")
    assert rotated.status_code == 200, rotated.text
    new = rotated.json()
    assert new["secret"] != old["secret"]
    assert new | {"secret": ""} == old | {"secret": ""}
    assert "secret" not in hooks.get(place).json()
    job = hooks.post("/v1/jobs", json=BODY).json()
    hooks.post(f"/v1/jobs/{job['id']}/cancel")
    headers, body = got.get(timeout=PATIENCE_S)
    for secret in (old["secret"], new["secret"]):
        assert Webhook(secret).verify(body, headers)["data"]["id"] == job["id"]
    too_long = hooks.post(f"{place}/rotate", params={"grace_s": 10**7})
    assert (too_long.status_code, too_long.json()["error"]["param"]) == (400, "grace_s")
    assert hooks.post("/v1/webhooks/x/rotate").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "http://example.org/"}, "url"),
        ({"url": "https://user:password@example.org/"}, "url"),
        ({"url": ""}, "url"),
        ({}, "url"),
        ({"url": "https://example.org", "secret": "mine"}, "secret"),
    ],
)
def test_what_is_wrong_is_named(http, body, param):
    """400 with the member at fault; an address of this machine is refused without saying what is there."""
    answer = http.post("/v1/webhooks", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_the_eleventh_is_refused(hooks, receiver):
    """With a code of its own; a repetition would not help."""
    for _ in range(10):
        assert hooks.post("/v1/webhooks", json={"url": receiver[0]}).status_code == 201
    answer = hooks.post("/v1/webhooks", json={"url": receiver[0]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_webhooks")
