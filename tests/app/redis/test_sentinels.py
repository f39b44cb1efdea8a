"""Connections to whichever server three sentinels name the master, while it is killed, frozen and replaced."""

import asyncio
import signal
import time
from contextlib import asynccontextmanager, suppress

import pytest
import trustme
from patience import PATIENCE_S, eventually
from redis.exceptions import RedisError
from sentinel_scene import MASTER, SentinelScene

from app.errors import ConfigurationError, StoreUnavailable
from app.redis.connection import check_server, connect
from app.redis.listener import Listener
from app.redis.scripts import load_script
from app.redis.server_binary import find_server

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory):
    """A master, two replicas and three sentinels."""
    with SentinelScene.start(tmp_path_factory.mktemp("sentinels")) as scene:
        yield scene


@pytest.fixture
def whole(sentinels):
    """The same with everything up, whatever the test before did."""
    sentinels.start_dead()
    sentinels.mend()
    return sentinels


@asynccontextmanager
async def _connected(url, **options):
    client = connect(url, **{"timeout_s": 2 * PATIENCE_S, **options})
    try:
        yield client
    finally:
        await client.aclose()


async def _until_written(client, key, value):
    """How long it took until a write was taken."""
    began_s = time.monotonic()
    while True:
        with suppress(RedisError, OSError):
            await client.set(key, value)
            return time.monotonic() - began_s
        await asyncio.sleep(0.02)


async def _until_another(scene, former):
    while await asyncio.to_thread(lambda: scene.master_port) == former:  # noqa: ASYNC110 - it rings no bell
        await asyncio.sleep(0.02)


async def test_the_master_is_found(whole):
    """What is written is on the master, and the server passes."""
    async with _connected(whole.url) as client:
        assert await check_server(client)
        await client.set("found", "1")
    with whole.server(whole.master_port) as master:
        assert master.get("found") == b"1"


async def test_a_killed_masters_work_goes_on_at_the_next(whole):
    """By the same client: what was written and waited for is there, and a script that nobody there knows is loaded."""
    async with _connected(whole.url) as client:
        script = load_script(client, "app.jobs", "admit")
        assert await script(["{m:toy}:open"], ["acme/job", 5, 10]) == [1]
        assert await client.execute_command("WAIT", 2, int(1000 * PATIENCE_S)) == 2
        killed = await asyncio.to_thread(lambda: whole.master_port)
        whole.send(killed, signal.SIGKILL)
        try:
            await client.set("too", "early")
        except RedisError:
            pass
        else:  # it took as long as the fail-over did
            assert await asyncio.to_thread(lambda: whole.master_port) != killed
        assert await _until_written(client, "after", "1") < PATIENCE_S
        assert await script(["{m:toy}:open"], ["acme/job", 5, 10]) == [1]
        assert await client.zscore("{m:toy}:open", "acme/job") == 5
        assert await asyncio.to_thread(lambda: whole.master_port) != killed


async def test_nobody_goes_on_with_a_master_that_was_replaced_while_it_lives(whole):
    """In a planned fail-over the former one takes writes for seconds: no connection of ours is there any more while it does."""
    async with _connected(whole.url) as client:
        await client.client_setname("ours")
        former = await asyncio.to_thread(lambda: whole.master_port)
        await asyncio.to_thread(whole.fail_over)
        while await asyncio.to_thread(lambda: whole.master_port) == former:
            await client.set("busy", "1")
            await asyncio.sleep(0.01)
        with whole.server(former) as server:
            await eventually(lambda: "ours" not in {one["name"] for one in server.client_list()})
            assert server.role()[0] == b"master", (
                "a server that becomes a replica ends all connections itself"
            )
        await client.set("where", "new")
        with whole.server(await asyncio.to_thread(lambda: whole.master_port)) as server:
            assert server.get("where") == b"new"


async def test_nobody_waits_for_a_frozen_master(whole):
    """What was sent to it is sent to the next as soon as that is named; thawed, it is asked nothing any more."""
    async with _connected(whole.url, timeout_s=2 * PATIENCE_S) as client:
        await client.set("count", 0)
        await client.execute_command("WAIT", 2, int(1000 * PATIENCE_S))
        frozen = await asyncio.to_thread(lambda: whole.master_port)
        whole.send(frozen, signal.SIGSTOP)
        began_s = time.monotonic()
        await client.set("count", 1)
        assert time.monotonic() - began_s < PATIENCE_S
        whole.send(frozen, signal.SIGCONT)
        for _ in range(50):
            assert await client.get("count") == b"1"
            await asyncio.sleep(0.01)


async def test_a_listener_hears_the_next_master(whole):
    """Its connection is an idle one, which notices nothing by itself; messages sent at the new master arrive."""
    heard = asyncio.Event()
    async with (
        _connected(whole.url) as client,
        Listener(client, ["news"], lambda *_: heard.set()),
    ):
        former = await asyncio.to_thread(lambda: whole.master_port)
        await asyncio.to_thread(whole.fail_over)
        async with asyncio.timeout(PATIENCE_S):
            await _until_another(whole, former)
            while not heard.is_set():
                with whole.server(whole.master_port) as master:
                    master.publish("news", "1")
                await asyncio.sleep(0.05)


async def test_without_any_sentinel_the_last_master_serves(whole):
    """All three are killed: who is connected goes on, who comes anew is told to try again."""
    async with _connected(whole.url) as client, _connected(whole.url) as late:
        await client.set("before", "1")
        for port in whole.sentinel_ports:
            whole.send(port, signal.SIGKILL)
        await asyncio.sleep(1.2)
        assert await client.get("before") == b"1"
        await asyncio.gather(*(client.get("before") for _ in range(5)))
        with pytest.raises(StoreUnavailable, match="no sentinel answers"):
            await check_server(late)


async def test_the_newest_configuration_is_believed(tmp_path, whole):
    """Of two sentinels that name different masters, the first is one that has not heard of a fail-over."""
    with SentinelScene.start(tmp_path, num_replicas=0, num_sentinels=1) as unaware:
        unaware_first = whole.url.replace("//", f"//127.0.0.1:{unaware.sentinel_ports[0]},")
        former = await asyncio.to_thread(lambda: whole.master_port)
        await asyncio.to_thread(whole.fail_over)
        await _until_another(whole, former)
        async with _connected(unaware_first) as client:
            await client.set("believed", "1")
        with whole.server(whole.master_port) as master:
            assert master.get("believed") == b"1"


async def test_an_unknown_name_is_a_wrong_setting(whole):
    """The sentinels know others, and which is told."""
    async with _connected(whole.url.replace(f"/{MASTER}", "/mymaster")) as client:
        with pytest.raises(ConfigurationError, match=f"a master called 'mymaster'; they know {MASTER}"):
            await check_server(client)


async def test_a_sentinel_that_answers_nonsense_is_one_that_is_away(whole):
    """Others are believed; alone it is an outage like any, and what looks for the master goes on looking."""

    async def answer(reader, writer):
        while await reader.read(4096):
            writer.write(b"*1\r\n*2\r\n$5\r\nflags\r\n$6\r\nmaster\r\n")  # a master without a name
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with _connected(f"redis+sentinel://127.0.0.1:{port}/{MASTER}") as client:
            with pytest.raises(StoreUnavailable, match="cannot be read"):
                await check_server(client)
            await asyncio.sleep(1)
            assert not client.connection_pool._watch.done()
        async with _connected(whole.url.replace("//", f"//127.0.0.1:{port},")) as client:
            assert await check_server(client)


async def test_a_sentinel_is_no_server(whole):
    """A plain URL that leads to one is told what it should be."""
    async with _connected(f"redis://127.0.0.1:{whole.sentinel_ports[0]}/0") as client:
        with pytest.raises(ConfigurationError, match="leads to a sentinel, which holds no data"):
            await check_server(client)


@pytest.mark.parametrize("oldest", [False, True])
async def test_a_demoted_servers_refusal_is_no_answer(tmp_path, oldest, redis_6_2_path):
    """Redis 7 and 6, whose scripts word it otherwise: it passes, and the same call works once there is a master again."""
    binary = redis_6_2_path if oldest else find_server().path
    with SentinelScene.start(tmp_path, num_replicas=0, num_sentinels=1, binary=binary) as scene:
        async with _connected(scene.url) as client:
            script = load_script(client, "app.jobs", "admit")
            assert await script(["{m:toy}:open"], ["acme/job", 5, 10]) == [1]
            with scene.server(scene.ports[0]) as server:
                server.execute_command("REPLICAOF", "127.0.0.1", "1")
                for write in (
                    lambda: client.set("a", "b"),
                    lambda: script(["{m:toy}:open"], ["acme/two", 5, 10]),
                ):
                    with pytest.raises(RedisError, match="is a replica now"):
                        await write()
                server.execute_command("REPLICAOF", "NO", "ONE")
            assert await script(["{m:toy}:open"], ["acme/two", 5, 10]) == [1]


async def test_servers_and_sentinels_have_passwords_of_their_own(tmp_path):
    """Both are sent where they belong; a wrong or missing one is told by whose it is, and never shown."""
    with SentinelScene.start(
        tmp_path, num_replicas=0, num_sentinels=1, password="first-one", sentinel_password="second-one"
    ) as scene:
        async with _connected(scene.url) as client:
            assert await check_server(client)
            assert "-one" not in repr(client)
        for wrong, message in (
            (scene.url.replace("second-one", "bad-one"), "sentinels of SPARKE_REDIS_URL refuse"),
            (scene.url.partition("?")[0], "sentinels of SPARKE_REDIS_URL refuse"),
            (scene.url.replace("first-one", "bad-one"), "refuses the user or password"),
        ):
            async with _connected(wrong) as client:
                with pytest.raises(ConfigurationError, match=message) as told:
                    await check_server(client)
                assert "-one" not in str(told.value)


async def test_all_of_it_over_tls(tmp_path):
    """Servers and sentinels show certificates of one CA; with another one neither is trusted."""
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    try:
        scene = SentinelScene.start(tmp_path, num_replicas=1, num_sentinels=1, tls=tmp_path)
    except TimeoutError:
        pytest.skip("this Redis server was built without TLS")
    with scene:
        async with _connected(scene.url) as client:
            assert await check_server(client)
            scene.send(scene.master_port, signal.SIGKILL)
            assert await _until_written(client, "after", "1") < PATIENCE_S
        async with _connected(scene.url.replace("ca.pem", "other.pem")) as client:
            with pytest.raises(ConfigurationError, match="not to be trusted"):
                await check_server(client)
