"""What is checked of Redis, as functions of what the server told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.doctor.finding import Finding, ok, problem, shown_bytes, warning
from app.errors import ConfigurationError
from app.http.guard.auth import is_loopback
from app.memory.migration import DATA_FORMAT, refuse_other_format
from app.redis.connection import MIN_VERSION, explain_mode, parse_version
from app.redis.server_binary import find_server
from app.settings import Settings

_CLOCK_WARNING_S = 1.0
_FULL_SHARE = 0.9
_CONFIG_SET = "by CONFIG SET and in redis.conf"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself. `appendfsync` is None where this user may not read it, as it should not."""

    info: Mapping[str, Any]
    appendfsync: str | None
    skew_s: float


def judge_embedded(settings: Settings) -> Finding:
    """No Redis is set and none runs: that is as it should be, where `sparke serve` can start one."""
    try:
        binary = find_server()
    except ConfigurationError as error:
        return problem(
            "redis",
            error.message,
            "install redis-server 6.2 or newer, or set SPARKE_REDIS_URL to a shared one",
        )
    return ok(
        "redis",
        f"none runs on {settings.data_dir} now: `sparke serve` starts one ({binary.path}, {binary.version_text}), and only"
        " then its contents can be checked",
    )


def judge_server(facts: ServerFacts, settings: Settings, url: str) -> list[Finding]:
    """What INFO and the clock tell."""
    return [
        judge_version(facts.info, url),
        judge_eviction(facts.info),
        judge_persistence(facts.info, facts.appendfsync),
        judge_room(facts.info),
        judge_clock(facts.skew_s, settings.heartbeat_ttl_s),
        judge_replicas(facts.info, settings.redis_replicas),
    ]


def judge_version(info: Mapping[str, Any], url: str) -> Finding:
    """Redis 6.2 or newer, and neither a sentinel nor a node of a cluster."""
    mode = explain_mode(info)
    if mode is not None:
        return problem("redis", f"{url}: {mode}", "correct SPARKE_REDIS_URL")
    version = str(info["redis_version"])
    if parse_version(version) < MIN_VERSION:
        return problem("redis", f"{url} is version {version}", "install Redis 6.2 or newer")
    return ok("redis", f"{url} answers, version {version}")


def judge_eviction(info: Mapping[str, Any]) -> Finding:
    """Nothing is evicted."""
    name, policy = "redis eviction", str(info.get("maxmemory_policy", "noeviction"))
    found = f"maxmemory-policy is {policy}"
    advice = f"set maxmemory-policy to noeviction, {_CONFIG_SET}"
    if policy.startswith("allkeys"):
        return problem(name, f"{found}: when Redis is full, memories are lost, so no process starts", advice)
    if policy != "noeviction":
        return warning(name, f"{found}: when Redis is full, jobs and images' records go early", advice)
    return ok(name, found)


def judge_persistence(info: Mapping[str, Any], appendfsync: str | None) -> Finding:
    """What is acknowledged is on the disk."""
    name = "redis persistence"
    if not int(info.get("aof_enabled", 0)):
        return problem(
            name,
            "appendonly is no: a restart of Redis loses what was acknowledged since its last snapshot, or all",
            f"set appendonly to yes and appendfsync to always, {_CONFIG_SET}",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return problem(
            name, "Redis could not write its append-only file", "make room on the disk of Redis; see its log"
        )
    if appendfsync is None:
        return ok(name, "appendonly is yes; appendfsync cannot be read by this user: it should be always")
    if appendfsync != "always":
        return warning(
            name,
            f"appendonly is yes, appendfsync {appendfsync}: a power cut loses what was acknowledged last",
            f"set appendfsync to always, {_CONFIG_SET}",
        )
    return ok(name, "appendonly is yes, appendfsync always")


def judge_room(info: Mapping[str, Any]) -> Finding:
    """Room for what is written next. Without a bound of Redis' own, that is the machine's."""
    name, used, most = "redis memory", int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return ok(name, f"{shown_bytes(used)} used, no maxmemory")
    found = f"{shown_bytes(used)} used of {shown_bytes(most)} (maxmemory)"
    if used >= most:
        return problem(name, f"{found}: Redis takes no writes", "raise maxmemory, or forget memories")
    if used > _FULL_SHARE * most:
        return warning(name, found, "raise maxmemory before it is full: then Redis takes no writes")
    return ok(name, found)


def judge_clock(skew_s: float, heartbeat_ttl_s: float) -> Finding:
    """Processes tell one another times, so the clocks of their machines must agree."""
    name, found = "redis clock", f"this machine's clock is {skew_s:+.3f} s off that of Redis"
    advice = "keep the clocks of all machines by NTP"
    if abs(skew_s) >= heartbeat_ttl_s / 3:
        return problem(
            name, f"{found}; after {heartbeat_ttl_s:g} s of silence a worker counts as dead", advice
        )
    if abs(skew_s) >= _CLOCK_WARNING_S:
        return warning(name, found, advice)
    return ok(name, found)


def judge_replicas(info: Mapping[str, Any], num_wanted: int) -> Finding:
    """The server takes writes, and the replicas that must have them follow it."""
    name = "redis replicas"
    if info.get("role") == "slave":
        return problem(
            name,
            "this Redis is a replica itself and takes no writes",
            "name the first one in SPARKE_REDIS_URL",
        )
    online = [f"slave{number}" for number in range(int(info.get("connected_slaves", 0)))]
    num_online = sum(
        isinstance(one := info.get(slave), dict) and one.get("state") == "online" for slave in online
    )
    if num_online < num_wanted:
        return problem(
            name,
            f"SPARKE_REDIS_REPLICAS is {num_wanted}, and {num_online} follow: every write is answered with not_replicated",
            "start the replicas, or lower SPARKE_REDIS_REPLICAS; see docs/replicas.md",
        )
    return ok(name, f"{num_online} follow, {num_wanted} must have what is acknowledged")


def judge_format(found: int | None) -> Finding:
    """What is stored has the form that this release works with."""
    name = "redis data format"
    if found is None:
        return ok(name, f"nothing is stored yet; this release writes {DATA_FORMAT}")
    try:
        refuse_other_format(found)
    except ConfigurationError as error:
        advice = (
            "run `sparke redis migrate`" if found < DATA_FORMAT else "install the release that wrote them"
        )
        return problem(name, error.message, advice)
    return ok(name, str(found))


def judge_keys(host: str, *, has_keys: bool) -> Finding:
    """An API that others can reach asks for keys."""
    name = "api keys"
    if has_keys or is_loopback(host):
        return ok(name, "there are some" if has_keys else f"none, and only this machine reaches {host}")
    return problem(
        name,
        f"there are none, and others may reach {host} (SPARKE_HOST): the API refuses to start",
        "make one with `sparke keys create --tenant NAME`, or listen on 127.0.0.1",
    )
