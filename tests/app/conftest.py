"""A real Redis for the tests of the service."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis


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
