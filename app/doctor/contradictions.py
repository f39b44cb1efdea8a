"""Settings that are each right, and do not go together."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from app.doctor.finding import Finding, ok, problem, warning
from app.http.guard.auth import is_loopback
from app.redis.sentinel_url import is_sentinel_url, sentinel_hosts
from app.settings import Settings

_NAME = "settings"


def judge_settings(settings: Settings, unknown: Mapping[str, str]) -> list[Finding]:
    """What does not go together, and variables that nothing heeds."""
    found = [
        *_judge_variables(unknown),
        *_judge_sharing(settings),
        *_judge_times(settings),
        *_judge_network(settings),
    ]
    return found or [ok(_NAME, "they are valid, and go together")]


def _judge_variables(unknown: Mapping[str, str]) -> list[Finding]:
    return [
        warning(
            _NAME,
            f"no setting is called {name}, so nothing heeds it",
            f"correct the name, or remove it: {meant}",
        )
        for name, meant in unknown.items()
    ]


def _judge_sharing(settings: Settings) -> list[Finding]:
    """What is shared with other machines is shared as a whole."""
    if settings.redis_url is not None and settings.image_store_url.startswith("file:"):
        return [
            warning(
                _NAME,
                f"Redis is shared, and images and files lie in a folder of this machine ({settings.image_store_url})",
                "where API and workers run on several machines, set SPARKE_IMAGE_URL to a store that all of them reach",
            )
        ]
    if settings.redis_url is None and settings.image_url and not settings.image_url.startswith("file:"):
        return [
            warning(
                _NAME,
                "images and files lie in a shared store, and Redis on this machine alone",
                "set SPARKE_REDIS_URL too where other machines take part; else all is well",
            )
        ]
    return []


def _judge_times(settings: Settings) -> list[Finding]:
    found = []
    if settings.heartbeat_ttl_s >= settings.request_timeout_s:
        found.append(
            warning(
                _NAME,
                f"SPARKE_HEARTBEAT_TTL_S ({settings.heartbeat_ttl_s:g}) is not below SPARKE_REQUEST_TIMEOUT_S"
                f" ({settings.request_timeout_s:g}): a job of a dead worker is given to another only when nobody waits",
                "raise SPARKE_REQUEST_TIMEOUT_S, or lower SPARKE_HEARTBEAT_TTL_S",
            )
        )
    if settings.redis_timeout_s >= settings.heartbeat_ttl_s:
        found.append(
            warning(
                _NAME,
                f"SPARKE_REDIS_TIMEOUT_S ({settings.redis_timeout_s:g}) is not below SPARKE_HEARTBEAT_TTL_S"
                f" ({settings.heartbeat_ttl_s:g}): one slow command, and a worker counts as dead",
                "lower SPARKE_REDIS_TIMEOUT_S, or raise SPARKE_HEARTBEAT_TTL_S",
            )
        )
    return found


def _judge_network(settings: Settings) -> list[Finding]:
    found = []
    if settings.port and settings.worker_metrics_port == settings.port:
        found.append(
            problem(
                _NAME,
                f"SPARKE_WORKER_METRICS_PORT and SPARKE_PORT are both {settings.port}",
                "give the worker's metrics another port",
            )
        )
    reached_by = [host for host in _clear_hosts(settings.redis_url or "") if not is_loopback(host)]
    if reached_by:
        found.append(
            warning(
                _NAME,
                f"all that goes to Redis at {', '.join(reached_by)} goes in the clear, its password too",
                "use rediss:// (rediss+sentinel://) unless the network between is trusted; see docs/redis-security.md",
            )
        )
    if settings.webhooks_allow_private and not is_loopback(settings.host):
        found.append(
            warning(
                _NAME,
                f"SPARKE_WEBHOOKS_ALLOW_PRIVATE is on, and others reach {settings.host}: they can have this machine ask any"
                " address of its network",
                "leave it out in production",
            )
        )
    return found


def _clear_hosts(url: str) -> tuple[str, ...]:
    """The hosts that a URL without TLS names; none where it is no URL, which is told elsewhere."""
    if not url.startswith(("redis://", "redis+sentinel://")):
        return ()
    try:
        return sentinel_hosts(url) if is_sentinel_url(url) else (urlsplit(url).hostname or "localhost",)
    except ValueError:
        return ()
