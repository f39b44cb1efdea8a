"""`sparke serve`: Redis, a worker for each device and the API on one machine, started in order and stopped in order.

The API lives in this process; Redis and the workers are children that do not outlive it, even if it is killed.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self

import structlog
from redis.asyncio import Redis

from app.errors import ConfigurationError, StoreUnavailable
from app.http.app import create_app
from app.http.deps import Deps
from app.http.process.main import refuse_to_be_open
from app.http.process.server import bind, serving, url_of
from app.http.process.wiring import open_deps
from app.memory.migration import migrate
from app.redis.cancelling import end_task
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis, running_url
from app.settings import Settings
from app.signals import stop_signals
from app.telemetry.exporting import exporting_traces

EXIT_CONFIGURATION = 78  # EX_CONFIG: a worker that ends so would end so again, and is not started again
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_HEALTHY_AFTER_S = 60.0
_KILL_AFTER_S = 18.0
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1

_log = structlog.get_logger(__name__)


def run_serve(settings: Settings) -> None:
    """Runs everything until SIGINT or SIGTERM. Raises ServiceError where it cannot start or cannot go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the event loop has handlers of its own
    with (
        suppress(KeyboardInterrupt),
        bind(settings.host, settings.port) as listener,
        RedisKeeper(settings) as redis,
        exporting_traces("sparke-api"),
    ):
        asyncio.run(_serve(settings, redis, listener))


def known_redis_url(settings: Settings) -> str:
    """The shared Redis of the settings, else the one that `sparke serve` runs on the data directory.

    Raises ConfigurationError where there is neither.
    """
    url = settings.redis_url or running_url(settings.data_dir)
    if url is None:
        raise ConfigurationError(
            f"no Redis: set SPARKE_REDIS_URL, or start `sparke serve` on the data directory {settings.data_dir}"
        )
    return url


def die_with_parent(parent_pid: int) -> None:
    """Ends this process by SIGKILL as soon as the parent is gone (Linux), or at once if it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


class RedisKeeper:
    """The Redis of the settings, or an embedded one, which is started again if it dies. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._data_dir = settings.data_dir
        self._shared_url = settings.redis_url
        self._server: EmbeddedRedis | None = None

    def __enter__(self) -> Self:
        if self._shared_url is None:
            self._server = EmbeddedRedis.start(self._data_dir)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        if self._server is not None:
            return self._server.url
        if self._shared_url is None:
            raise StoreUnavailable("the embedded Redis has not been started")
        return self._shared_url

    async def keep(self) -> None:
        """Runs for ever: an embedded Redis that ended is started again, on the same socket, from its file.

        Raises ConfigurationError where it does not come up again, or only elsewhere.
        """
        url = self.url
        while True:
            await asyncio.sleep(_POLL_S)
            if self._server is None or self._server.is_running:
                continue
            _log.error("embedded_redis_ended", url=url)
            await asyncio.to_thread(self._server.stop)
            self._server = await asyncio.to_thread(EmbeddedRedis.start, self._data_dir)
            if self._server.url != url:
                raise ConfigurationError(
                    "the embedded Redis died and its socket could not be used again; start anew"
                )


async def _serve(settings: Settings, redis: RedisKeeper, listener: socket.socket) -> None:
    started_ms = time.time_ns() // 1_000_000
    with stop_signals() as stop:
        if settings.redis_url is None and not await _migrate(settings, redis.url, stop):
            return
        async with open_deps(settings, redis.url) as deps:
            await refuse_to_be_open(deps)
            async with (
                _background(redis.keep()) as redis_task,
                _background(
                    keep_workers(worker_commands(settings, redis.url), settings.drain_timeout_s)
                ) as workers,
                serving(create_app(deps), listener) as http,
                _background(_announce(deps, url_of(listener), started_ms), talks_to_redis=True) as announcing,
                _background(_wait(stop)) as stopping,
            ):
                await _until_stopped(stopping, (redis_task, workers, http), announcing)


async def _migrate(settings: Settings, redis_url: str, stop: asyncio.Event) -> bool:
    """Brings the data directory of an older release to the present form; False where `stop` came before that was done."""
    redis = connect(redis_url, timeout_s=settings.redis_timeout_s)
    try:
        async with (
            _background(_migrate_on(redis), talks_to_redis=True) as migrating,
            _background(_wait(stop)) as stopping,
        ):
            await asyncio.wait({migrating, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if migrating.done():
                migrating.result()
            return migrating.done()
    finally:
        await redis.aclose()


async def _migrate_on(redis: Redis) -> None:
    await migrate(redis)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


async def _until_stopped(
    stopping: asyncio.Task[None], kept: tuple[asyncio.Task[None], ...], announcing: asyncio.Task[None]
) -> None:
    """Returns when asked to stop; raises what ended one of the others before."""
    running = {stopping, announcing, *kept}
    while not stopping.done():
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _announce(deps: Deps, url: str, started_ms: int) -> None:
    """Says on standard error that the model is loading, and on standard output the URL once all is ready."""
    names = ", ".join(deps.settings.models or deps.catalogue)
    devices = deps.settings.devices
    where = f" on {', '.join(devices)}" if len(devices) > 1 else ""
    print(f"Loading {names}{where} ...", file=sys.stderr, flush=True)  # noqa: T201 - what the command says
    while True:
        with suppress(StoreUnavailable):
            workers = await deps.registry.list_workers()
            # One from before a crash may still be listed for some seconds.
            if any(worker.phase == "ready" and worker.started_at_ms >= started_ms for worker in workers):
                break
        await asyncio.sleep(_POLL_S)
    print(f"SPARKE is ready: {url}", flush=True)  # noqa: T201 - what the command says


def worker_commands(settings: Settings, redis_url: str) -> list[list[str]]:
    """The command line of a worker child for each device. A port for metrics is the first one's; the next has the next.

    A shared Redis' URL may hold a password: it stays in the environment.
    """
    common = [sys.executable, "-P", "-m", "app.cli", "worker"]
    common += ["--data-dir", str(settings.data_dir.absolute()), "--parent-pid", str(os.getpid())]
    common += [] if settings.redis_url else ["--redis-url", redis_url]
    commands, port = [], settings.worker_metrics_port
    for index, device in enumerate(settings.devices):
        own_port = ["--metrics-port", str(port + index)] if port else []
        commands.append([*common, "--device", device, *own_port])
    return commands


async def keep_workers(commands: Sequence[list[str]], drain_timeout_s: float) -> None:
    """Keeps a worker child of each command, as `keep_worker` does; at cancellation all finish their batches side by side.

    Raises ConfigurationError where one of them cannot start.
    """
    keeping = [asyncio.create_task(keep_worker(command, drain_timeout_s)) for command in commands]
    try:
        done, _ = await asyncio.wait(keeping, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


async def keep_worker(command: list[str], drain_timeout_s: float) -> None:
    """Keeps one worker child: one that ends is started again, with growing pauses while it does so soon.

    At cancellation the child gets SIGTERM, on which it finishes its batch, and SIGKILL if that takes too long.
    Raises ConfigurationError where the child says that its settings are wrong.
    """
    num_failures = 0
    while True:
        started_s = time.monotonic()
        # Not in our process group: Ctrl-C is for us, and we stop the worker when the API needs it no more.
        child = await asyncio.create_subprocess_exec(*command, stdout=2, start_new_session=True)
        _log.info("worker_spawned", pid=child.pid)
        try:
            code = await child.wait()
        finally:
            if child.returncode is None:
                await _stop_child(child, drain_timeout_s)
        if code == EXIT_CONFIGURATION:
            raise ConfigurationError("the worker cannot start; it says above why")
        num_failures = 0 if time.monotonic() - started_s > _HEALTHY_AFTER_S else num_failures + 1
        pause_s = _PAUSES_S[min(num_failures, len(_PAUSES_S) - 1)]
        _log.error("worker_ended", exit_code=code, restart_in_s=pause_s)
        await asyncio.sleep(pause_s)


async def _stop_child(child: asyncio.subprocess.Process, drain_timeout_s: float) -> None:
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), drain_timeout_s + _KILL_AFTER_S)
    except TimeoutError:
        _log.error("worker_killed", after_s=drain_timeout_s + _KILL_AFTER_S)
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@asynccontextmanager
async def _background(
    work: Coroutine[Any, Any, None], *, talks_to_redis: bool = False
) -> AsyncIterator[asyncio.Task[None]]:
    """A task for as long as the context lasts; at its end it is cancelled, once, and waited for.

    One that talks to Redis may need more than one cancellation. One that closes something as it ends must get one only.
    """
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        if talks_to_redis:
            await end_task(task)
        else:
            task.cancel()
            await asyncio.wait((task,))
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("background_ended", error=str(error))
