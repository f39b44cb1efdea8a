"""Connections, checks of a server, scripts and the listener."""

import asyncio
from pathlib import Path

import pytest
from patience import PATIENCE_S, eventually
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.errors import ConfigurationError, StoreUnavailable
from app.jobs import keys
from app.redis.connection import check_server, connect, parse_version
from app.redis.errors import redis_errors
from app.redis.listener import Listener
from app.redis.scripts import load_script

pytestmark = pytest.mark.anyio


async def test_a_good_server_passes_with_its_version(redis: Redis) -> None:
    """The embedded server is accepted."""
    assert parse_version(await check_server(redis)) >= (6, 2)


async def test_a_server_that_may_evict_memories_is_refused(redis: Redis) -> None:
    """Eviction of any key is refused with the setting to change; eviction of expiring keys is not."""
    try:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigurationError, match="maxmemory-policy to noeviction"):
            await check_server(redis)
        await redis.config_set("maxmemory-policy", "volatile-ttl")
        await check_server(redis)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_a_node_of_a_cluster_is_refused(cluster_node: Redis) -> None:
    """Before anything is stored there."""
    with pytest.raises(ConfigurationError, match="node of a Redis Cluster"):
        await check_server(cluster_node)


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """A refused connection is StoreUnavailable, the service's own error."""
    client = connect(f"unix://{tmp_path}/nobody.sock", timeout_s=1)
    with pytest.raises(StoreUnavailable):
        await check_server(client)
    await client.aclose()


async def test_a_refused_user_is_a_wrong_setting_over_a_socket_too(redis_url: str) -> None:
    """Nobody is told to try again: redis-py wraps that refusal in the error of a server that is away."""
    client = connect(redis_url.replace("unix://", "unix://nobody:wrong@"))
    with pytest.raises(ConfigurationError, match="refuses the user or password"):
        await check_server(client)
    await client.aclose()


async def test_a_connection_sends_nothing_unasked(redis_6_2: Redis) -> None:
    """Not even its name, which Redis before 7.2 refuses and writes into the log of what was denied."""
    await redis_6_2.execute_command("ACL", "SETUSER", "few", "on", "nopass", "+info")
    path = redis_6_2.connection_pool.connection_kwargs["path"]
    client = connect(f"unix://few:any@{path}")
    await check_server(client)
    await client.aclose()
    assert await redis_6_2.acl_log() == []


@pytest.mark.parametrize(
    ("setting", "value", "usual"), [("min-replicas-to-write", "1", "0"), ("maxmemory", "1", "0")]
)
async def test_a_server_that_takes_no_writes_is_unavailable(
    redis: Redis, setting: str, value: str, usual: str
) -> None:
    """No replica, or no memory left: it passes, so it is StoreUnavailable, from a command and from a script."""
    script = load_script(redis, "app.jobs", "admit")
    await redis.config_set(setting, value)
    try:
        for write in (
            lambda: redis.set("some", "thing"),
            lambda: script([keys.open_key("m")], ["acme/job", 1, 10]),
        ):
            with pytest.raises(StoreUnavailable):
                await redis_errors(write)()
    finally:
        await redis.config_set(setting, usual)


async def test_a_fault_of_ours_stays_as_it_is(redis: Redis) -> None:
    """A command on a key of another type will never succeed: nobody is told to try again."""
    await redis.set("text", "thing")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await redis_errors(lambda: redis.lpush("text", "other"))()


async def test_a_url_that_is_none_is_a_wrong_setting() -> None:
    """The message names the variable."""
    with pytest.raises(ConfigurationError, match="SPARKE_REDIS_URL"):
        connect("http://example.org")


async def test_a_script_is_sent_again_to_a_server_that_forgot_it(redis: Redis) -> None:
    """A restarted or flushed server learns the script at the next call."""
    script = load_script(redis, "app.jobs", "admit")
    for _ in range(2):
        assert await script([keys.open_key("m")], ["acme/job", 1, 10]) == [1]
        await redis.script_flush()


async def test_the_listener_hears_messages_also_after_a_lost_connection(redis: Redis) -> None:
    """Messages arrive; after the server closed the connection, later ones arrive again."""
    heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    async with Listener(redis, ["bell"], lambda channel, data: heard.put_nowait((channel, data))):
        await redis.publish("bell", b"1")
        assert await asyncio.wait_for(heard.get(), PATIENCE_S) == (b"bell", b"1")
        await redis.client_kill_filter(_type="pubsub")

        async def is_heard() -> bool:
            await redis.publish("bell", b"2")
            return not heard.empty()

        await eventually(is_heard)
        assert heard.get_nowait() == (b"bell", b"2")


async def test_a_closed_listener_hears_nothing_and_closes_twice(redis: Redis) -> None:
    """Closing ends the task and the connection, twice without harm."""
    heard: list[bytes] = []
    listener = Listener(redis, ["bell"], lambda _channel, data: heard.append(data))
    async with listener:
        pass
    await listener.close()
    assert await redis.publish("bell", b"1") == 0
    assert heard == []


async def test_more_at_once_than_there_are_connections_wait(redis_url):
    """Five hundred commands at once are all answered, over a bounded number of connections, which close in the end."""
    redis = connect(redis_url)
    answers = await asyncio.gather(*(redis.incr("asked") for _ in range(500)))
    assert sorted(answers) == list(range(1, 501))
    num_clients = (await redis.info("clients"))["connected_clients"]
    assert num_clients <= 80, "the test's own client has some of them"
    await redis.aclose()
