"""The API's main: opens what it works with, serves, and closes in reverse order."""

import asyncio
from contextlib import suppress

from app.errors import ConfigurationError
from app.http.app import announce_stop, create_app
from app.http.deps import Deps
from app.http.guard.auth import is_loopback
from app.http.process.server import bind, serving, url_of
from app.http.process.wiring import open_deps
from app.settings import Settings
from app.signals import stop_signals
from app.telemetry.exporting import exporting_traces


async def refuse_to_be_open(deps: Deps) -> None:
    """Raises ConfigurationError where others could reach a server that asks for no key."""
    host = deps.settings.host
    if not is_loopback(host) and not await deps.keys.any_keys():
        raise ConfigurationError(
            f"there are no API keys, so anybody who reaches {host} could use this server; make one first with"
            " `sparke keys create --tenant NAME`, or listen on --host 127.0.0.1"
        )


def run_api(settings: Settings, redis_url: str) -> None:
    """Serves the API until SIGINT or SIGTERM. Raises ServiceError where it cannot start."""
    with suppress(KeyboardInterrupt), exporting_traces("sparke-api"):
        asyncio.run(_run_api(settings, redis_url))


async def _run_api(settings: Settings, redis_url: str) -> None:
    with bind(settings.host, settings.port) as listener, stop_signals() as stop:
        async with open_deps(settings, redis_url) as deps:
            await refuse_to_be_open(deps)
            app = create_app(deps)
            async with serving(app, listener) as http:
                print(f"SPARKE API: {url_of(listener)}", flush=True)  # noqa: T201 - what the command is for
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait((stopping, http), return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                announce_stop(app)
                await asyncio.wait((http,), timeout=settings.stop_notice_s)
