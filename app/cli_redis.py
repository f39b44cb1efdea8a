"""What the commands share that look into Redis by themselves: `sparke keys`, `webhooks` and `memories`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import structlog
import typer
from redis.asyncio import Redis

from app.audit.log import AuditLimits, AuditLog, OpenAct
from app.domain.audit import COMMAND_LINE, Deed, Journal, word_of
from app.errors import ConfigurationError
from app.jobs.workers import now_ms
from app.memory.migration import check_format
from app.redis.connection import connect
from app.redis.embedded import has_data, running_or_started
from app.redis.replicas import Replicas
from app.settings import Settings, load_settings, unknown_variables
from app.telemetry.logs import configure_logs_of
from app.tenants.keys import KeyStore
from app.tenants.registry import TenantRegistry

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the embedded Redis and of images [SPARKE_DATA_DIR, else ./data]."),
]

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


def read_settings(**overrides: object) -> Settings:
    """The settings of a command, whose logs go as they say."""
    settings = load_settings(**overrides)
    configure_logs_of(settings)
    return settings


def tell_of_unknown() -> None:
    """Says on standard error which variables nothing heeds: what a command does without a log."""
    for name, meant in unknown_variables().items():
        typer.echo(f"sparke: nothing heeds the variable {name}; {meant}", err=True)


def warn_of_unknown() -> None:
    """Says in the log which variables nothing heeds. No error: others may set variables of that name too."""
    for name, meant in unknown_variables().items():
        _log.warning("variable_unknown", variable=name, reason=f"no setting is called so; {meant}")


def run_on_redis(
    settings: Settings,
    deed: Callable[[Redis, Replicas], Awaitable[_T]],
    *,
    of_any_format: bool = False,
    begins: bool = False,
) -> _T:
    """What a deed gives: on the shared Redis, on that of a running server, or on one started for the moment.

    Raises ConfigurationError where what is stored has another format than this release's, unless any will do; and where
    nothing is stored yet, unless the deed is one that a new installation `begins` with.
    """

    async def run(url: str) -> _T:
        redis = connect(url, timeout_s=settings.redis_timeout_s)
        try:
            if not of_any_format:
                await check_format(redis)
            return await deed(redis, Replicas.of(redis, settings))
        finally:
            await redis.aclose()

    with _reach(settings, begins=begins) as url:
        return asyncio.run(run(url))


def _reach(settings: Settings, *, begins: bool) -> AbstractContextManager[str]:
    if settings.redis_url is not None:
        return nullcontext(settings.redis_url)
    place = settings.data_dir.absolute()
    if not has_data(place):
        if not begins:
            raise ConfigurationError(
                f"there is no Redis in the data directory {place}: name the one of `sparke serve` with --data-dir or"
                " SPARKE_DATA_DIR, or a shared Redis with SPARKE_REDIS_URL; `sparke serve` and `sparke keys create` make a new one"
            )
        typer.echo(
            f"A new Redis is made in the data directory {place}; a service on it alone will know the key.",
            err=True,
        )
    return running_or_started(place)


def run_act(
    settings: Settings,
    deed: Deed,
    work: Callable[[Redis, Replicas, OpenAct], Awaitable[_T]],
    *,
    of_any_format: bool = False,
    begins: bool = False,
) -> _T:
    """The same for an act, which the audit log has before it is done. Its work may note more of it."""

    async def run(redis: Redis, replicas: Replicas) -> _T:
        log = AuditLog(redis, AuditLimits.of(settings), clock_ms=now_ms, replicas=replicas)
        async with log.during(deed, journal=Journal.ADMIN) as act:
            return await work(redis, replicas, act)

    return run_on_redis(settings, run, of_any_format=of_any_format, begins=begins)


async def list_known(redis: Redis, replicas: Replicas) -> TenantRegistry:
    """The tenants, those of keys from before tenants were listed among them."""
    registry = TenantRegistry(redis, clock_ms=now_ms, replicas=replicas)
    await registry.add(await KeyStore(redis).list_tenants())
    return registry


def deed_of(act: str, *, tenant: str | None = None, target: str | None = None) -> Deed:
    """An act of the command line."""
    return Deed(act, COMMAND_LINE, None, tenant, None if target is None else word_of(target))


def show_time(at_ms: int) -> str:
    """A time as the commands print it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
