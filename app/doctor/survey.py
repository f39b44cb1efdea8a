"""Asks the Redis of a set-up what is judged in `server.py` and `rights.py`."""

import time
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from app.doctor.finding import Finding, problem, shown_url
from app.doctor.rights import find_missing_rights, judge_rights
from app.doctor.server import ServerFacts, judge_embedded, judge_format, judge_keys, judge_server
from app.errors import ConfigurationError, ServiceError
from app.memory.migration import find_format
from app.redis.connection import connect
from app.redis.embedded import running_url
from app.redis.transport import SEE, explain_refusal
from app.settings import Settings
from app.tenants.keys import KeyStore

_PATIENCE_S = 5.0


async def examine_redis(settings: Settings) -> list[Finding]:
    """All that is checked of the shared Redis, or of the one that `sparke serve` runs now; of neither where none runs."""
    url = settings.redis_url or running_url(settings.data_dir)
    if url is None:
        return [judge_embedded(settings)]
    try:
        redis = connect(url, timeout_s=min(settings.redis_timeout_s, _PATIENCE_S))
    except ConfigurationError as error:
        return [problem("redis", error.message, "correct SPARKE_REDIS_URL")]
    try:
        facts = await _read_facts(redis)
        found = judge_server(facts, settings, shown_url(url))
        found += [await _examine_format(redis), judge_rights(await find_missing_rights(redis))]
        return [*found, *await _examine_keys(redis, settings)]
    except (RedisError, OSError, ServiceError) as error:
        return [_unreachable(shown_url(url), error)]
    finally:
        await redis.aclose()


async def _examine_format(redis: Redis) -> Finding:
    try:
        return judge_format(await find_format(redis))
    except ConfigurationError as error:
        return problem("redis data format", error.message, "restore Redis from a backup")
    except ResponseError as error:
        return problem("redis data format", f"it cannot be read: {error}", f"give the user its rights; {SEE}")


async def _examine_keys(redis: Redis, settings: Settings) -> list[Finding]:
    """A worker's user may not see keys, and needs none."""
    try:
        return [judge_keys(settings.host, has_keys=await KeyStore(redis).any_keys())]
    except ResponseError:
        return []


async def _read_facts(redis: Redis) -> ServerFacts:
    asked_s = time.time()
    info: Any = await redis.info()
    heard_s = time.time()
    server_s = int(info["server_time_usec"]) / 1e6 if "server_time_usec" in info else heard_s
    # The server looked between the two: what is within them is no skew that could be told.
    skew_s = asked_s - server_s if server_s < asked_s else min(0.0, heard_s - server_s)
    try:
        config: Any = await redis.config_get("appendfsync")
    except ResponseError:
        config = {}
    appendfsync = config.get("appendfsync", config.get(b"appendfsync"))
    if isinstance(appendfsync, bytes):
        appendfsync = appendfsync.decode()
    return ServerFacts(info, appendfsync, skew_s)


def _unreachable(url: str, error: Exception) -> Finding:
    refusal = explain_refusal(error)
    if refusal is not None:
        return problem(
            "redis", refusal.message, "correct SPARKE_REDIS_URL, or the user's password and rights"
        )
    return problem(
        "redis",
        f"{url} does not answer: {error}",
        "start Redis, or correct SPARKE_REDIS_URL; is a firewall between?",
    )
