"""Attempts to tell a webhook are part of the trace of the request whose job has ended, and the receiver may go on with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
from serving import serving

from tests.e2e.telemetry_watch import watched_service

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01", "tracestate": "acme=inner"}


@contextmanager
def receiver(*answers: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers with these statuses in turn: its URL, and the headers of what it got."""
    left, got = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            got.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(left.pop(0))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}/hooks/p4th-s3cret?token=qu3ry-s3cret", got


def test_attempts_are_in_the_trace_of_the_request(tmp_path: Path):
    """One span each, with number, status and outcome, and nothing of the URL; the receiver gets its place, and no more."""
    with (
        receiver(500, 200) as (url, got),
        watched_service(tmp_path, SPARKE_WEBHOOKS_ALLOW_PRIVATE="true", SPARKE_LOG_FORMAT="json") as watched,
    ):
        made = httpx.post(f"{watched.url}/v1/webhooks", json={"url": url}, timeout=60)
        assert made.status_code == 201, made.text
        body = {"prompt": "a purple heron", "model": "toy"}
        asked = httpx.post(f"{watched.url}/v1/images/generations", json=body, headers=HEADERS, timeout=60)
        assert asked.status_code == 200
        spans = watched.collector.wait_for(
            lambda spans: sum(each.name == "deliver webhook" for each in spans) == 2
        )
        refused = watched.wait_for_line("webhook_not_delivered")
    accepted = next(each for each in spans if each.name == "accept job")
    attempts = sorted(
        (each for each in spans if each.name == "deliver webhook"), key=lambda each: each.start_ns
    )
    assert {each.trace_id for each in attempts} == {TRACE_ID}
    assert {each.parent_id for each in attempts} == {accepted.span_id}
    told = [
        (
            each.attributes["sparke.attempt"],
            each.attributes["http.response.status_code"],
            each.attributes["sparke.outcome"],
        )
        for each in attempts
    ]
    assert told == [(1, 500, "rejected"), (2, 200, "delivered")]
    first = attempts[0].attributes
    assert (first["sparke.event"], first["sparke.webhook_id"]) == ("job.succeeded", made.json()["id"])
    text = json.dumps([each.attributes for each in attempts])
    assert "s3cret" not in text
    assert "127.0.0.1" not in text
    assert [each["traceparent"] for each in got] == [f"00-{TRACE_ID}-{each.span_id}-01" for each in attempts]
    assert [name for each in got for name in each if name in {"tracestate", "baggage"}] == []
    assert refused["trace_id"] == TRACE_ID
