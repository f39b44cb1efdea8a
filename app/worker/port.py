"""A worker's own port, for those who watch over it: `/livez`, `/readyz` and `/metrics`. Served by threads of its own."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from app.jobs.types import WorkerPhase
from app.settings import Settings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_ANSWER_S = 3.0  # shorter than a probe's own patience, so that its log says what is wrong
_REQUEST_S = 10.0  # how long a request may take to come: each holds a thread

_log = structlog.get_logger(__name__)


class WorkerHealth:
    """How the worker is: its phase, and whether its event loop answers. Made on that loop, read by any thread."""

    def __init__(self) -> None:
        self.phase: WorkerPhase = "loading"
        self._loop = asyncio.get_running_loop()

    def is_alive(self, patience_s: float = _ANSWER_S) -> bool:
        """Whether the event loop takes a turn in time. What the device does, and whether Redis is there, is not asked."""
        answered = threading.Event()
        try:
            self._loop.call_soon_threadsafe(answered.set)
        except RuntimeError:  # closed: the process is about to end
            return False
        return answered.wait(patience_s)


@contextmanager
def worker_port(
    settings: Settings, registry: CollectorRegistry, health: WorkerHealth, *, request_s: float = _REQUEST_S
) -> Iterator[str | None]:
    """Serves as long as the context lasts, where the settings want it, and tells the URL of `/metrics`.

    A port in use is a warning: images matter more. Who sends no request within `request_s` is hung up on.
    """
    port, host = settings.worker_metrics_port, settings.worker_metrics_host
    if port is None:
        yield None
        return
    try:
        server = _listen(host, port, _answering(registry, health), request_s)
    except OSError as error:
        _log.warning("metrics_not_served", host=host, port=port, reason=str(error))
        yield None
        return
    _log.info("metrics_served", host=host, port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, name="port", daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answering(registry: CollectorRegistry, health: WorkerHealth) -> "WSGIApplication":
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/livez":
            return _tell(start_response, {"status": "ok"} if health.is_alive() else {"status": "stuck"})
        if path == "/readyz":
            return _tell(start_response, {"status": "ok" if health.phase == "ready" else health.phase})
        return _tell(start_response, {"status": "not found"}, HTTPStatus.NOT_FOUND)

    return answer


def _listen(host: str, port: int, answer: "WSGIApplication", request_s: float) -> WSGIServer:
    class Server(ThreadingWSGIServer):
        address_family = socket.getaddrinfo(host, port, flags=socket.AI_PASSIVE)[0][0]

    # The base's own name for how long each reading and writing may take.
    handler: type[_Silent] = type("Handler", (_Silent,), {"timeout": request_s})
    return make_server(host, port, answer, Server, handler_class=handler)


def _tell(
    start_response: "StartResponse", body: dict[str, str], fault: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE
) -> list[bytes]:
    status = HTTPStatus.OK if body["status"] == "ok" else fault
    text = json.dumps(body).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [text]


class _Silent(WSGIRequestHandler):
    """Probes come every few seconds: they are no news, and neither is one that hangs up or says nothing."""

    def handle(self) -> None:
        """Answers a request, if one comes."""
        with suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base gives it
        """Logs nothing."""
