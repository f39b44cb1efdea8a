"""A listening socket, and serving an application on it until the context is left."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from app.errors import ConfigurationError
from app.http.app import let_go_of_waiters, stop_followers
from app.http.guard.protocol import MAX_HEAD_BYTES, bounded_protocol

_KEEP_ALIVE_S = 75
_TELLING_S = 2.0  # waiters look once a second
_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before anything is started. Raises ConfigurationError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"host {host!r} is not an address of this machine: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another one with --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL at which a browser on this machine finds what listens."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


@asynccontextmanager
async def serving(app: FastAPI, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """Serves as long as the context lasts, in the task that it gives; that ends by itself only by an error.

    At the end those who follow jobs are let go, the socket is closed, and what is under way is answered, for at most
    `stop_timeout_s`; shortly before, those who wait for jobs hear that they have to ask again.
    """
    settings = app.state.deps.settings
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.stop_timeout_s),
        timeout_keep_alive=_KEEP_ALIVE_S,
        http=bounded_protocol(settings.head_timeout_s),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield running
    finally:
        server.should_exit = True
        stop_followers(app)
        telling_s = max(0.0, settings.stop_timeout_s - _TELLING_S)
        telling = asyncio.get_running_loop().call_later(telling_s, let_go_of_waiters, app)
        await running
        telling.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: our mains decide the order in which things stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
