"""Where webhooks may go: by https, to addresses of the public Internet, and to the very address that was looked at."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import httpx

from app.errors import InvalidValue

_MAX_URL_CHARACTERS = 2048
_MAX_ADDRESSES = 4
_THREADS = 16  # the resolver blocks; slow names keep nothing waiting but other webhooks
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that is public in IPv6, private corners included
_HOST = re.compile(rb"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")  # a name as DNS has it, or an address
_PORTS = {"http": 80, "https": 443}


class Resolver(Protocol):
    """Finds the addresses of names."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host. Raises OSError where there are none."""


class SystemResolver:
    """The system's resolver, in threads of its own. What it takes for a number, such as `0x7f.1`, is resolved too."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhook-names")

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The addresses in the system's order. Raises OSError where there are none."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _look_up, host, port)
        except UnicodeError as error:
            raise OSError(f"{host[:80]!r} is not a host's name") from error
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Ends the threads, as soon as they are idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, and the addresses that may be connected to for it."""

    url: httpx.URL
    addresses: tuple[str, ...]


class Targets:
    """Looks at URLs. `allow_private` lets private addresses and plain http pass."""

    def __init__(self, resolver: Resolver, *, allow_private: bool) -> None:
        self._resolver = resolver
        self._allow_private = allow_private

    async def find(self, text: str) -> Target:
        """The addresses of a URL, all of them public. Raises InvalidValue, and OSError where the name has none.

        To be asked before each connection: a name may lead elsewhere by then.
        """
        url = self._parse(text)
        host, port = url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]
        addresses = await self._resolver.resolve(host, port)
        if not addresses:
            raise OSError(f"{host[:80]!r} has no address")
        if not self._allow_private and not all(map(is_public, addresses)):
            raise InvalidValue(
                "the URL leads to an address that is not public; the operator can allow those by"
                " SPARKE_WEBHOOKS_ALLOW_PRIVATE",
                param="url",
            )
        return Target(url, tuple(addresses[:_MAX_ADDRESSES]))

    async def check(self, text: str) -> str:
        """The URL of a webhook to be made. Raises InvalidValue, also where its name has no address now."""
        try:
            return str((await self.find(text)).url)
        except OSError as error:
            raise InvalidValue("the host of the URL is not found", param="url") from error

    def _parse(self, text: str) -> httpx.URL:
        schemes = "https:// or http://" if self._allow_private else "https://"
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise InvalidValue(f"this is no URL: {error}", param="url") from error
        if f"{url.scheme}://" not in schemes.split(" or ") or not url.raw_host:
            raise InvalidValue(f"give a URL that begins with {schemes} and has a host", param="url")
        port = _PORTS[url.scheme] if url.port is None else url.port
        if _HOST.fullmatch(url.raw_host) is None or not 0 < port < 65_536:
            raise InvalidValue("this is no URL: its host or port is not one", param="url")
        if url.userinfo:
            raise InvalidValue("a webhook's URL holds no name or password: it is signed", param="url")
        if len(str(url)) > _MAX_URL_CHARACTERS:
            raise InvalidValue(f"a URL has at most {_MAX_URL_CHARACTERS} characters", param="url")
        return url


def is_public(address: str) -> bool:
    """True where an address is of the public Internet, and so is an IPv4 address that it stands for.

    In IPv6 only global unicast is: not what translates to IPv4 in a way that is not seen here (NAT64), not `::7f00:1`.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return _is_public_v4(found.ipv4_mapped)
        if found not in _GLOBAL_UNICAST or not found.is_global:
            return False
        return found.sixtofour is None or _is_public_v4(found.sixtofour)
    return _is_public_v4(found)


def _is_public_v4(address: ipaddress.IPv4Address) -> bool:
    return address.is_global and not address.is_multicast


def _look_up(host: str, port: int) -> list[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
