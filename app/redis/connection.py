"""Connections to Redis, and what is asked of a server before it is trusted with the service's state."""

import re
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.errors import ConfigurationError
from app.redis.errors import redis_errors
from app.redis.pool import PatientPool
from app.redis.sentinel_url import is_sentinel_url, parse_sentinel_url
from app.redis.sentinels import MasterPool
from app.redis.transport import check_transport, explain_refusal

MIN_VERSION = (6, 2)
_RETRIES = 3
_RETRY_BASE_S = 0.05
_RETRY_CAP_S = 0.5
_IDLE_CHECK_S = 30
_MAX_CONNECTIONS = 64


def connect(url: str, *, timeout_s: float = 10.0, max_connections: int = _MAX_CONNECTIONS) -> Redis:
    """A client of the server at a redis://, rediss:// or unix:// URL. It connects at the first command.

    One at redis+sentinel:// or rediss+sentinel:// is of the master that the sentinels there name, whichever it is.
    A lost connection is retried three times within about a second, so every command that writes must be idempotent.
    A timeout is not retried: the caller's time is up. No blocking command is ever sent through this client. It has a
    bounded number of connections, listeners among them; what wants one more waits for it, up to `timeout_s`. Over TLS the
    server's certificate and name are checked, by the CA and with the certificate of ours that the URL names. It does not name
    itself to the server, which before Redis 7.2 would log that as denied.
    """
    check_transport(url)
    retry = Retry(
        ExponentialWithJitterBackoff(base=_RETRY_BASE_S, cap=_RETRY_CAP_S),
        _RETRIES,
        supported_errors=(RedisConnectionError,),
    )
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout_s": timeout_s,
        "decode_responses": False,
        "protocol": 2,
        "driver_info": None,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": _IDLE_CHECK_S,
        "retry": retry,
    }
    try:
        if is_sentinel_url(url):
            return Redis.from_pool(MasterPool(parse_sentinel_url(url), **options))
        return Redis.from_pool(PatientPool.from_url(url, **options))
    except ValueError as error:
        raise ConfigurationError(f"SPARKE_REDIS_URL is not a URL of Redis: {error}") from error


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of a version such as `7.0.15`."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def explain_mode(info: Mapping[str, Any]) -> str | None:
    """Why a server of this kind is none for the service, by its INFO; None where it is one."""
    if info.get("redis_mode") == "sentinel":
        return (
            "SPARKE_REDIS_URL leads to a sentinel, which holds no data; begin it with redis+sentinel:// and name the master"
            " after the addresses, as in redis+sentinel://host:26379,host:26379/mymaster"
        )
    if int(info.get("cluster_enabled", 0)):
        return (
            "SPARKE_REDIS_URL leads to a node of a Redis Cluster, which the service does not work with: take one server, or one"
            " with replicas and sentinels; see docs/sentinel.md"
        )
    return None


@redis_errors
async def check_server(redis: Redis) -> str:
    """The server's Redis version.

    Raises ConfigurationError where it is a sentinel or a node of a cluster, too old or may evict memories, and where it refuses us for good: the wrong user or
    password, rights that are missing, a certificate that is not to be trusted.
    """
    try:
        info: Any = await redis.info()
    except (RedisError, OSError) as error:
        refusal = explain_refusal(error)
        if refusal is None:
            raise
        raise refusal from error
    version = str(info["redis_version"])
    mode = explain_mode(info)
    if mode is not None:
        raise ConfigurationError(mode)
    if parse_version(version) < MIN_VERSION:
        raise ConfigurationError(f"Redis is version {version}; 6.2 or newer is needed")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        raise ConfigurationError(
            f"Redis evicts any key when it is full (maxmemory-policy {policy}), so memories would be lost;"
            " set maxmemory-policy to noeviction"
        )
    return version
