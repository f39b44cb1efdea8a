"""A Redis whose master is named by sentinels, and may be another one at any moment."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any
from weakref import proxy

import structlog
from redis.asyncio import Redis, Sentinel
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from app.redis.cancelling import end_task
from app.redis.pool import PatientPool
from app.redis.sentinel_url import SentinelUrl

LOOK_EVERY_S = 0.5
_SENTINEL_TIMEOUT_S = 1.0
_READ_ONLY = re.compile(r": -READONLY\b")  # Redis 6 wraps what a script meets
_AWAY = (RedisError, OSError)
Address = tuple[str, int]
_log = structlog.get_logger(__name__)


class SentinelsRefuse(RedisConnectionError):
    """What sentinels say will be the same the next time: the name is wrong, or they do not know us."""


class Sentinels(Sentinel):
    """Asks all of them at once, and believes the newest configuration.

    redis-py's own takes the first that answers. After a fail-over that may be one that has not heard of it.
    """

    @classmethod
    def of(cls, url: SentinelUrl) -> "Sentinels":
        """Clients of all sentinels of a URL."""
        options = {
            **url.sentinel_options,
            "ssl": url.tls,
            "decode_responses": True,
            "protocol": 2,
            "driver_info": None,
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
            "retry": None,
        }
        make: Any = cls
        made: Sentinels = make(url.sentinels, sentinel_kwargs=options)
        return made

    async def discover_master(self, service_name: str) -> Address:
        """The address of the master. Raises MasterNotFoundError, or SentinelsRefuse."""
        answers = await asyncio.gather(*(_ask(each, service_name) for each in self.sentinels))
        told = [answer for answer in answers if isinstance(answer, tuple)]
        if told:
            return max(told, key=lambda one: one[0])[1]
        raise _no_master(service_name, [answer for answer in answers if not isinstance(answer, tuple)])


async def _ask(sentinel: Redis, name: str) -> tuple[int, Address] | frozenset[str] | RedisError | OSError:
    """The epoch and the address that one sentinel tells; else the masters that it knows, or why it does not answer.

    While a fail-over goes on, the one that leads it names the promoted server as soon as that takes writes.
    """
    client: Any = sentinel
    try:
        masters = await client.sentinel_masters()
        address = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", name)
        epoch = int(masters[name]["config-epoch"]) if name in masters else 0
    except _AWAY as error:
        return error
    except (KeyError, TypeError, ValueError) as error:
        return RedisConnectionError(f"what a sentinel answers cannot be read: {error!r}")
    if name not in masters or address is None:
        return frozenset(masters)
    return epoch, address


def _no_master(name: str, answers: Sequence[frozenset[str] | RedisError | OSError]) -> RedisConnectionError:
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    known = {one for answer in answers if isinstance(answer, frozenset) for one in answer}
    reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
    if len(errors) < len(answers):
        return SentinelsRefuse(
            f"no sentinel of SPARKE_REDIS_URL knows a master called {name!r}; they know"
            f" {', '.join(sorted(known)) or 'none'}"
        )
    refusal = next(
        (error for error in errors if isinstance(error, ResponseError | AuthenticationError)), None
    )
    if refusal is not None:
        return SentinelsRefuse(
            f"the sentinels of SPARKE_REDIS_URL refuse to tell who is the master: {refusal}; give their user and password as"
            " sentinel_username and sentinel_password in the URL's query"
        )
    found = MasterNotFoundError(f"no sentinel answers: {reasons}")
    found.__cause__ = errors[-1]
    return found


class MasterConnection(Connection):
    """A connection to whoever is the master when it is made, and to nobody else.

    In place of redis-py's own, which goes back to the former address where it connects again amid a command.
    """

    def __init__(self, *, master_pool: "MasterPool", **options: Any) -> None:
        self._pool = master_pool
        super().__init__(**options)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """An answer. That of a server which was demoted is a lost connection, so what was sent is sent to the new master."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if _READ_ONLY.search(str(error)) is None and not isinstance(error, ReadOnlyError):
                raise
            await self.disconnect(nowait=True)
            raise RedisConnectionError("the former master is a replica now") from error

    async def _connect(self) -> None:
        address = await self._pool.find_master()
        self.host, self.port = address
        await super()._connect()  # type: ignore[no-untyped-call]
        if not self._pool.is_master(address):
            await self.disconnect(nowait=True)
            raise RedisConnectionError("the master changed while it was connected to")


class MasterTlsConnection(MasterConnection, SSLConnection):
    """The same over TLS."""


class MasterPool(PatientPool):
    """Connections to the master that sentinels name.

    A task asks the sentinels twice a second, from the first connection to `aclose`. Where they name another master, every
    connection to the former one is closed, also one that is waited on: whoever asked there asks the new one. So nobody goes
    on with a server that was demoted but answers, nor waits for one that is frozen. While no sentinel answers, the last that
    was named is the master.
    """

    def __init__(
        self, url: SentinelUrl, *, max_connections: int, timeout_s: float, **connection: Any
    ) -> None:
        connection |= url.master_options
        super().__init__(max_connections=max_connections, timeout_s=timeout_s, **connection)
        self._name, self._is_tls = url.master, url.tls
        self._sentinels = Sentinels.of(url)
        self._master: Address | None = None
        self._first_look = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    def make_connection(self) -> Any:
        """A connection that is not connected yet."""
        kind = MasterTlsConnection if self._is_tls else MasterConnection
        return kind(master_pool=proxy(self), **self.connection_kwargs)

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection to the master that is ready for a command."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._keep_looking(), name="redis-master-watch")
        return await super().get_connection()

    async def find_master(self) -> Address:
        """The master as of the last look."""
        async with self._first_look:
            return await self._look() if self._master is None else self._master

    def is_master(self, address: Address) -> bool:
        """Whether a server is the master as of the last look."""
        return address == self._master

    async def aclose(self) -> None:
        """Closes all connections, those to sentinels among them."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await end_task(watch)
        await super().aclose()
        await self._sentinels.aclose()

    async def _keep_looking(self) -> None:
        are_away = False
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._look()
            except _AWAY as error:  # whoever needs a connection is told
                if not are_away:
                    _log.warning("redis_sentinels_away", error=str(error), last_master=self._master)
                are_away = True
            else:
                are_away = False

    async def _look(self) -> Address:
        master = await self._sentinels.discover_master(self._name)
        former, self._master = self._master, master
        if former not in (None, master):
            _log.warning("redis_master_changed", former=former, master=master)
            connections: list[Any] = [*self._available_connections, *self._in_use_connections]
            for connection in connections:
                if not self.is_master((connection.host, connection.port)):
                    await connection.disconnect(nowait=True)
        return master
