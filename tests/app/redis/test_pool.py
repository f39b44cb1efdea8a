"""The pool of connections: who waits for one gets it, whoever else gives up."""

import asyncio
import random

import pytest
from patience import PATIENCE_S
from redis.asyncio import Redis

from app.errors import StoreUnavailable
from app.redis.connection import connect
from app.redis.errors import redis_errors
from app.redis.pool import PatientPool

pytestmark = pytest.mark.anyio


async def test_a_waiter_that_is_cancelled_as_it_is_woken_wakes_the_next(redis_url):
    """The only connection comes back, and who was to have it is gone before it ran: the next one is answered."""
    redis = connect(redis_url, max_connections=1, timeout_s=2 * PATIENCE_S)
    held = await redis.connection_pool.get_connection()
    gone, next_one = (asyncio.create_task(redis.ping()) for _ in range(2))
    await asyncio.sleep(0.05)
    await redis.connection_pool.release(held)
    gone.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert await next_one
    assert gone.cancelled()
    await redis.aclose()


async def test_a_waiter_that_is_cancelled_early_takes_no_place(redis_url):
    """It gave up long before: the one behind it is answered, and the connection is there afterwards."""
    redis = connect(redis_url, max_connections=1, timeout_s=2 * PATIENCE_S)
    held = await redis.connection_pool.get_connection()
    gone, next_one = (asyncio.create_task(redis.ping()) for _ in range(2))
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.wait((gone,))
    await redis.connection_pool.release(held)
    async with asyncio.timeout(PATIENCE_S):
        assert await next_one
        assert await redis.ping()
    await redis.aclose()


@pytest.mark.parametrize("seed", range(5))
async def test_no_waiter_hangs_among_many_that_are_cancelled(redis_url, seed):
    """Hundreds of commands over two connections, a third cancelled at random: all others are answered, both are left."""
    dice, redis = random.Random(seed), connect(redis_url, max_connections=2, timeout_s=2 * PATIENCE_S)
    asked = [asyncio.create_task(redis.incr("asked")) for _ in range(300)]
    doomed = dice.sample(asked, 100)
    for each in doomed:
        await asyncio.sleep(dice.choice((0, 0, 0.001)))
        each.cancel()
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(found[asked.index(each)], int) for each in set(asked) - set(doomed))
        assert await asyncio.gather(*(redis.ping() for _ in range(4))) == [True] * 4
    await redis.aclose()


async def test_who_waits_too_long_hears_that_the_store_is_not_available(redis_url):
    """All connections are in use for longer than a command may take; once one is back, the next command works."""
    redis = Redis.from_pool(PatientPool.from_url(redis_url, max_connections=1, timeout_s=0.2))
    held = await redis.connection_pool.get_connection()
    with pytest.raises(StoreUnavailable, match="no connection was free"):
        await redis_errors(redis.ping)()
    await redis.connection_pool.release(held)
    assert await redis.ping()
    await redis.aclose()


async def test_a_connection_that_cannot_be_made_is_no_place_lost(tmp_path):
    """Nobody listens: each attempt fails as quickly as the first, and none waits for a place that was not given back."""
    redis = connect(f"unix://{tmp_path}/nobody.sock", max_connections=1, timeout_s=1)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"nobody\.sock"):
            await redis_errors(redis.ping)()
    await redis.aclose()
