"""The service around an engine that costs nothing, as processes of its own: what `service.py` measures."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.domain.ids import TenantId
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.tenants.keys import KeyStore

MODEL = "toy"
CATALOGUE = """
[[models]]
model_id = "toy"
source = "builtin:toy"
latent_space = "toy"
default_steps = 1
max_steps = 1000000
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""
_SAID = "SPARKE API: "
_START_S = 120.0


@dataclass(frozen=True)
class Scene:
    """A service that is ready: its API, its Redis, where the workers' metrics are, a key for each tenant, process ids by name."""

    url: str
    redis_url: str
    metrics_urls: tuple[str, ...]
    keys: dict[str, str]
    pids: dict[str, int]


@contextmanager
def scene(folder: Path, *, num_workers: int, tenants: tuple[str, ...], **settings: str) -> Iterator[Scene]:
    """One API, so many workers, a Redis that writes each command to its disk; all of it ends with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.toml").write_text(CATALOGUE, encoding="utf-8")
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis.start(folder))
        keys = asyncio.run(_make_keys(redis.url, tenants))
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")},
            "SPARKE_REDIS_URL": redis.url,
            "SPARKE_MODELS_FILE": str(folder / "models.toml"),
            "SPARKE_DEVICE": "cpu",
            "SPARKE_LOG_LEVEL": "warning",
            "SPARKE_TORCH_THREADS": "1",
            **{f"SPARKE_{name.upper()}": value for name, value in settings.items()},
        }
        command = [sys.executable, "-P", "-m", "app.cli"]
        where = ["--data-dir", str(folder)]
        api = stack.enter_context(_process([*command, "api", "--port", "0", *where], env))
        url = (api.stdout.readline() if api.stdout else "").removeprefix(_SAID).strip()
        ports = [19_100 + number for number in range(num_workers)]
        pids = {"api": api.pid}
        for number, port in enumerate(ports):
            more = {"SPARKE_WORKER_METRICS_PORT": str(port)}
            worker = stack.enter_context(_process([*command, "worker", *where], {**env, **more}))
            pids[f"worker {number}"] = worker.pid
        _wait_for_workers(url, num_workers)
        metrics_urls = tuple(f"http://127.0.0.1:{port}/metrics" for port in ports)
        yield Scene(url, redis.url, metrics_urls, keys, pids)


async def _make_keys(redis_url: str, tenants: tuple[str, ...]) -> dict[str, str]:
    redis = connect(redis_url)
    keys = {tenant: await KeyStore(redis).create(TenantId(tenant)) for tenant in tenants}
    await redis.aclose()
    return keys


@contextmanager
def _process(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for_workers(url: str, num_workers: int) -> None:
    until_s = time.monotonic() + _START_S
    while True:
        answer = httpx.get(f"{url}/readyz").json()
        if answer["workers"]["ready"] == num_workers:
            return
        if time.monotonic() > until_s:
            raise TimeoutError(f"{num_workers} workers were not ready within {_START_S:g} s: {answer}")
        time.sleep(0.2)
