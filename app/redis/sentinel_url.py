"""URLs of a Redis that sentinels watch: redis+sentinel://[user:password@]host[:26379],host[:26379]/MASTER[/DB][?members]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import parse_url

SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
_PORT = 26379


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """Where sentinels are, how the master is called there, and what connections to it and to them are made with.

    `repr` shows neither: there are passwords among them.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    tls: bool
    master_options: Mapping[str, Any]
    sentinel_options: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"SentinelUrl(sentinels={self.sentinels}, master={self.master!r})"


def is_sentinel_url(url: str) -> bool:
    """Whether a URL names sentinels."""
    return url.startswith(SCHEMES)


def plain_url(url: str) -> str:
    """The redis:// or rediss:// URL with the same user, members and database, of one server that has no name.

    Several addresses with ports, or in brackets, are no host for the standard library. Any other URL stays as it is.
    """
    if not is_sentinel_url(url):
        return url
    scheme, _, rest = url.partition("://")
    authority, path, members = _split(rest)
    credentials, at, _ = authority.rpartition("@")
    database = path.partition("/")[2]
    return f"{scheme.removesuffix('+sentinel')}://{credentials}{at}sentinels/{database}{members}"


def shown_sentinel_url(url: str) -> str:
    """Such a URL without user, password and members."""
    scheme, _, rest = url.partition("://")
    authority, path, _ = _split(rest)
    return f"{scheme}://{authority.rpartition('@')[2]}/{path}"


def sentinel_hosts(url: str) -> tuple[str, ...]:
    """The hosts of its sentinels. Raises ValueError as `parse_sentinel_url` does."""
    return tuple(host for host, _ in parse_sentinel_url(url).sentinels)


def parse_sentinel_url(url: str) -> SentinelUrl:
    """What such a URL says. Raises ValueError that says what is wrong, without what may be secret.

    User, password, database and members are those of the master's connections, as in any URL of Redis, but for the members
    `sentinel_username` and `sentinel_password`. What is for TLS is for both.
    """
    authority, path, _ = _split(url.partition("://")[2])
    sentinels = tuple(_parse_address(part) for part in authority.rpartition("@")[2].split(","))
    name, _, database = path.partition("/")
    if not name:
        raise ValueError(
            "the master's name is missing; give it after the sentinels, as in redis+sentinel://host:26379,host:26379/mymaster"
        )
    if database and not database.isdecimal():
        raise ValueError(f"the database after the master's name is a number, not {database!r}")
    members: dict[str, Any] = dict(parse_url(plain_url(url)))
    del members["host"]
    tls = members.pop("connection_class", None) is not None
    for_sentinels = {
        name: members.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in members
    }
    for_sentinels |= {name: value for name, value in members.items() if name.startswith("ssl_")}
    return SentinelUrl(sentinels, unquote(name), tls, members, for_sentinels)


def _split(rest: str) -> tuple[str, str, str]:
    """Authority, path without its first slash, and the question mark with what follows."""
    before, mark, members = rest.partition("?")
    authority, _, path = before.partition("/")
    return authority, path, mark + members


def _parse_address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("an address of a sentinel is empty; give host:26379, separated by commas")
    return parts.hostname, parts.port or _PORT
