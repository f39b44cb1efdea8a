"""A service of three processes whose logs and traces are kept: `sparke serve`, a worker beside it, and a collector."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from patience import PATIENCE_S

TOY = """
[[models]]
model_id = "toy"
source = "builtin:toy"
latent_space = "toy"
default_steps = 3
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 32
max_px = 128
multiple_px = 8
"""
DEMO = """
[[models]]
model_id = "sparke-demo"
source = "builtin:demo"
latent_space = "demo"
default_steps = 2
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""


@dataclass(frozen=True)
class SeenSpan:
    """A span that came over the wire."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    instance: str
    attributes: dict[str, Any]
    links: frozenset[str]
    start_ns: int
    end_ns: int
    is_error: bool


class Collector:
    """Takes OTLP over HTTP as a real one does, and keeps what it was sent."""

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self.raw: list[bytes] = []
        self._lock = Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector._take(self.path, body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()

    def wait_for(
        self, wanted: Callable[[list[SeenSpan]], bool], timeout_s: float = PATIENCE_S
    ) -> list[SeenSpan]:
        """All spans, once there are those that are wanted."""
        until_s = time.monotonic() + timeout_s
        while True:
            with self._lock:
                spans = list(self.spans)
            if wanted(spans):
                return spans
            assert time.monotonic() < until_s, sorted({each.name for each in spans})
            time.sleep(0.1)

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        found = [
            _seen(span, {each.key: each.value.string_value for each in resource.resource.attributes})
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.raw.append(body)
            self.spans += found


def _seen(span: Any, resource: dict[str, str]) -> SeenSpan:
    return SeenSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        service=resource["service.name"],
        instance=resource["service.instance.id"],
        attributes={each.key: _value(each.value) for each in span.attributes},
        links=frozenset(link.span_id.hex() for link in span.links),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        is_error=span.status.code == 2,
    )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@dataclass
class Watched:
    """A running service, what its processes wrote to standard error, and the collector that they send spans to."""

    url: str
    collector: Collector
    logs: list[Path]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def text(self) -> str:
        """All that was written."""
        return "".join(path.read_text(encoding="utf-8") for path in self.logs)

    def lines(self) -> list[dict[str, Any]]:
        """The lines that are JSON; the others come from before logs are set up."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def wait_for_line(self, event: str, timeout_s: float = PATIENCE_S, **members: Any) -> dict[str, Any]:
        """A line of the log, once it is there."""
        until_s = time.monotonic() + timeout_s
        while True:
            for line in self.lines():
                if line["event"] == event and members.items() <= line.items():
                    return line
            assert time.monotonic() < until_s, (event, members)
            time.sleep(0.1)


@contextmanager
def watched_service(
    folder: Path, *, catalogue: str = TOY, prelude: str = "", **variables: str
) -> Iterator[Watched]:
    """Starts all three. `prelude` is run by each process as it starts."""
    collector = Collector()
    (folder / "models.toml").write_text(catalogue, encoding="utf-8")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(prelude, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPARKE_", "OTEL_"))}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder / "site"), env.get("PYTHONPATH"))))
    env |= {
        "SPARKE_MODELS_FILE": str(folder / "models.toml"),
        "SPARKE_DEVICE": "cpu",
        "SPARKE_TORCH_THREADS": "1",
    }
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100", **variables}
    watched = Watched("", collector, [])
    with ExitStack() as stack:
        stack.callback(collector.close)

        def start(*command: str) -> subprocess.Popen[str]:
            log = folder / f"{command[0]}.log"
            watched.logs.append(log)
            line = [sys.executable, "-P", "-m", "app.cli", *command, "--data-dir", str(folder / "data")]
            err = stack.enter_context(log.open("w"))
            process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=err, text=True)
            stack.callback(_end, process)
            return process

        service = start("serve", "--port", "0")
        assert service.stdout is not None
        said = service.stdout.readline()
        assert said.startswith("SPARKE is ready: "), watched.text()
        watched.url = said.split()[-1]
        watched.processes.append(service)
        watched.processes.append(start("worker"))
        _wait_for_workers(watched.url, 2)
        yield watched


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _wait_for_workers(url: str, num: int) -> None:
    for _ in range(600):
        if httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json().get("workers", {}).get("ready") == num:
            return
        time.sleep(0.1)
    raise AssertionError("the second worker does not come up")
