"""Writes that count only once a replica has them, between two real servers."""

import pytest
from patience import PATIENCE_S

from app.errors import NotReplicated
from app.redis.connection import connect
from app.redis.replicas import Replicas
from app.redis.scripts import load_script

pytestmark = pytest.mark.anyio

PAIR = ["{t:acme}:some", "{t:acme}:other", "{t:acme}:third", "{t:acme}:fourth"]


@pytest.fixture
async def primary(replicated):
    """A client of the first server."""
    client = connect(replicated.url, timeout_s=2 * PATIENCE_S)
    yield client
    await client.aclose()


async def test_what_a_replica_has_is_acknowledged(replicated, primary):
    """Command and script give their answers, and the replica has what they wrote by then."""
    replicas, replica = Replicas(primary, number=1, timeout_s=PATIENCE_S), connect(replicated.replica_url)
    assert (await replicas.command("HSET", "some", "member", "1")).checked() == 1
    assert await replica.hget("some", "member") == b"1"
    remove = load_script(primary, "app.jobs", "admit")
    assert (await replicas.run(remove, ["{m:toy}:open"], ["acme/job", 5, 10])).checked() == [1]
    assert await replica.zscore("{m:toy}:open", "acme/job") == 5
    await replica.aclose()


async def test_what_it_has_not_is_refused_and_stands(replicated, primary):
    """The replica is frozen: NotReplicated says how many have it, the write is there, and repeated later it is acknowledged."""
    replicas = Replicas(primary, number=1, timeout_s=0.2)
    replicated.pause()
    written = await replicas.command("SET", "some", "thing")
    with pytest.raises(NotReplicated, match="0 of 1 replicas"):
        written.checked()
    assert await primary.get("some") == b"thing"
    replicated.resume()
    assert (await Replicas(primary, number=1, timeout_s=PATIENCE_S).command("SET", "some", "thing")).checked()


async def test_a_repetition_that_changes_nothing_is_no_acknowledgement(replicated):
    """Over a connection that wrote nothing else, a command whose first call the frozen replica lacks is refused again."""
    replicated.pause()
    first, second = (connect(replicated.url, timeout_s=2 * PATIENCE_S) for _ in range(2))
    for client in (first, second):
        written = await Replicas(client, number=1, timeout_s=0.2).command("HSETNX", "some", "member", "1")
        with pytest.raises(NotReplicated):
            written.checked()
        await client.aclose()
    assert written.reply == 0


async def test_the_mark_lies_in_the_slot_and_goes(primary):
    """Beside what was written lies a key of the same hash tag, which expires."""
    await Replicas(primary, number=1, timeout_s=PATIENCE_S).command("SET", "sparke:{t:acme}:thing", "1")
    [mark] = [name for name in await primary.keys("*") if not name.endswith(b":thing")]
    assert b"{t:acme}" in mark
    assert 0 < await primary.pttl(mark) <= 60_000


async def test_none_are_asked_for_by_default(replicated, primary):
    """Nothing is waited for though the replica is frozen, and no mark is left."""
    replicated.pause()
    replicas = Replicas(primary)
    assert (await replicas.command("SET", "some", "thing")).checked()
    assert await primary.keys("*") == [b"some"]


async def test_a_server_that_forgot_the_script_learns_it(primary):
    """The script's text is sent where its digest is not known."""
    script = load_script(primary, "app.jobs", "admit")
    for _ in range(2):
        await primary.script_flush()
        written = await Replicas(primary, number=1, timeout_s=PATIENCE_S).run(
            script, ["{m:toy}:open"], ["a/b", 5, 10]
        )
        assert written.checked() == [1]
