"""All checks, one after the other. They work while the service runs and while it does not."""

import asyncio

from app.doctor.contradictions import judge_settings
from app.doctor.device import examine_device
from app.doctor.disk import examine_data_dir, examine_snapshots
from app.doctor.finding import Finding, problem
from app.doctor.models import examine_models
from app.doctor.port import examine_port
from app.doctor.stores import examine_stores
from app.doctor.survey import examine_redis
from app.doctor.versions import examine_versions
from app.errors import ConfigurationError
from app.settings import Settings, load_settings, unknown_variables

LEAST_FREE_BYTES = 2**30


def examine(settings: Settings, *, least_free_bytes: int = LEAST_FREE_BYTES) -> list[Finding]:
    """Everything that can be seen of a set-up from this machine."""
    return [
        *judge_settings(settings, unknown_variables()),
        *examine_versions(),
        *examine_data_dir(settings, least_free_bytes=least_free_bytes),
        *asyncio.run(_examine_stores_and_redis(settings, least_free_bytes)),
        *examine_models(settings),
        examine_device(settings),
        examine_snapshots(settings),
        examine_port(settings),
    ]


def examine_all(*, least_free_bytes: int = LEAST_FREE_BYTES, **overrides: object) -> list[Finding]:
    """The same from the environment. Settings that are wrong are findings: without them nothing else can be looked at."""
    try:
        settings = load_settings(**overrides)
    except ConfigurationError as error:
        advice = "correct it; docs/configuration.md has every setting. Nothing else was checked"
        return [problem("settings", line, advice) for line in error.message.splitlines()]
    return examine(settings, least_free_bytes=least_free_bytes)


async def _examine_stores_and_redis(settings: Settings, least_free_bytes: int) -> list[Finding]:
    return [
        *await examine_redis(settings),
        *await examine_stores(settings, least_free_bytes=least_free_bytes),
    ]
