"""A real API on a loopback port over a real Redis, and a real worker with the weightless toy model."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI
from patience import PATIENCE_S
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.ids import TenantId
from app.domain.scope import Scope as KeyScope
from app.http.app import create_app
from app.http.process.server import bind, serving, url_of
from app.http.process.wiring import open_deps
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.settings import Settings, load_settings
from app.tenants.keys import KeyStore, KeyWish

ServeApi = Callable[[Settings], str]

CATALOGUE = """
[[models]]
model_id = "toy"
source = "builtin:toy"
latent_space = "toy"
default_steps = 3
max_steps = 1000000
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 32
max_px = 128
multiple_px = 8

[[models]]
model_id = "unserved"
source = "builtin:toy"
latent_space = "toy"
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a catalogue: `toy`, which the worker serves, and `unserved`."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "models.toml").write_text(CATALOGUE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def redis_url(data_dir: Path) -> Iterator[str]:
    """A real Redis of our own."""
    with EmbeddedRedis.start(data_dir) as server:
        yield server.url


@pytest.fixture(scope="session")
def settings(data_dir: Path, redis_url: str) -> Settings:
    """Settings of an API on that Redis."""
    return load_settings(
        data_dir=data_dir,
        redis_url=redis_url,
        models_file=data_dir / "models.toml",
        port=0,
        no_worker_grace_s=0.5,
    )


class _Documented:
    """Notes what an API answers that its own document does not have."""

    def __init__(self, app: ASGIApp, api: FastAPI, undocumented: set[str]) -> None:
        self._app = app
        self._api = api
        self._undocumented = undocumented

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def look(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._look(scope, message)
            await send(message)

        await self._app(scope, receive, look)

    def _look(self, scope: Scope, start: Message) -> None:
        path = getattr(scope.get("route"), "path", "")
        operation = self._api.openapi()["paths"].get(path, {}).get(scope["method"].lower())
        if operation is None:
            return
        found = httpx.Headers(start["headers"]).get("content-type", "").partition(";")[0]
        response = operation["responses"].get(str(start["status"]))
        if response is None or found not in (response.get("content") or {"": None}):
            self._undocumented.add(f"{scope['method']} {path}: {start['status']} {found}")


@contextmanager
def _serve_in_thread(settings: Settings) -> Iterator[str]:
    """The API of the settings, in a thread with an event loop of its own. What it answers must be documented."""
    undocumented: set[str] = set()
    unheard: list[str] = []
    listener = bind(settings.host, settings.port)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, found: unheard.append(repr(found)))
    stop = asyncio.Event()
    started = threading.Event()

    async def serve() -> None:
        async with open_deps(settings, settings.redis_url or "") as deps:
            app = create_app(deps)
            app.add_middleware(_Documented, api=app, undocumented=undocumented)
            async with serving(app, listener):
                started.set()
                await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        assert started.wait(PATIENCE_S), "the API did not start"
        yield url_of(listener)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        listener.close()
        loop.close()
    assert undocumented == set()
    assert unheard == [], "errors that no code took notice of"


@pytest.fixture(scope="session")
def api_url(settings: Settings) -> Iterator[str]:
    """The URL of an API without keys."""
    with _serve_in_thread(settings) as url:
        yield url


@pytest.fixture
def serve_api() -> Iterator[ServeApi]:
    """A function that serves an API with settings of the test's own, and returns its URL."""
    running = []

    def serve(settings: Settings) -> str:
        context = _serve_in_thread(settings)
        url = context.__enter__()
        running.append(context)
        return url

    yield serve
    for context in running:
        context.__exit__(None, None, None)


@pytest.fixture
def own_database(settings: Settings) -> Settings:
    """The settings with a database that holds nothing, no key of another test either."""
    own = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=15"})
    asyncio.run(_empty(own.redis_url or ""))
    return own


async def _empty(redis_url: str) -> None:
    redis = connect(redis_url)
    try:
        await redis.flushdb()
    finally:
        await redis.aclose()


@contextmanager
def _work(settings: Settings, api_url: str) -> Iterator[None]:
    command = [sys.executable, "-P", "-m", "app.cli", "worker", "--data-dir", str(settings.data_dir)]
    env = {
        **os.environ,
        "SPARKE_REDIS_URL": settings.redis_url or "",
        "SPARKE_MODELS_FILE": str(settings.models_file),
        "SPARKE_MODELS": "toy",
        "SPARKE_DEVICE": "cpu",
    }
    process = subprocess.Popen(command, env=env)
    try:
        deadline_s = time.monotonic() + 200
        while httpx.get(f"{api_url}/readyz", timeout=PATIENCE_S).status_code != 200:
            assert process.poll() is None, "the worker ended"
            assert time.monotonic() < deadline_s, "the worker did not get ready"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def worker(settings: Settings, api_url: str) -> Iterator[None]:
    """A real worker that serves `toy`."""
    with _work(settings, api_url):
        yield


@pytest.fixture(scope="module")
def keyed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Settings]]:
    """An API with a Redis and a worker of its own, and a client of it with a key for everything."""
    folder = tmp_path_factory.mktemp("keyed")
    models, _, _ = CATALOGUE.replace("1000000", "20").rpartition("[[models]]")
    (folder / "models.toml").write_text(models, encoding="utf-8")
    with EmbeddedRedis.start(folder) as server:
        settings = load_settings(
            data_dir=folder,
            redis_url=server.url,
            models_file=folder / "models.toml",
            port=0,
            webhooks_allow_private=True,
        )
        with _serve_in_thread(settings) as url, _work(settings, url):
            key = _issue_key(server.url, "acme", *KeyScope)
            with httpx.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
                yield client, settings


@pytest.fixture(scope="module")
def keyed_api(keyed_service: tuple[httpx.Client, Settings]) -> httpx.Client:
    """A client of such an API, whose one model takes 20 steps at most."""
    return keyed_service[0]


def _issue_key(redis_url: str, tenant: str, *scopes: KeyScope) -> str:
    async def issue() -> str:
        redis = connect(redis_url)
        try:
            return (await KeyStore(redis).issue(TenantId(tenant), KeyWish(scopes=scopes))).key
        finally:
            await redis.aclose()

    return asyncio.run(issue())


@pytest.fixture(scope="session")
def issue_key() -> Callable[..., str]:
    """A function that makes a key of a tenant, with some scopes."""
    return _issue_key


@pytest.fixture
def http(api_url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of that API."""
    with httpx.Client(base_url=api_url, timeout=60) as client:
        yield client


@pytest.fixture
def client(api_url: str) -> Iterator[openai.OpenAI]:
    """The official client, which does not try again by itself."""
    with openai.OpenAI(base_url=f"{api_url}/v1", api_key="unused", max_retries=0, timeout=60) as official:
        yield official
