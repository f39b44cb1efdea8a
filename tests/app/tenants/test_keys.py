"""API keys."""

import asyncio
import json
import re

import pytest
from clocks import SecondsClock

from app.domain.ids import TenantId
from app.domain.scope import USUAL_SCOPES, Scope, parse_scopes
from app.errors import InvalidValue, KeyEnded, NotFound, Unauthenticated
from app.tenants.keys import KeyStore, KeyWish

pytestmark = pytest.mark.anyio

ACME = TenantId("acme")


HOUR_S = 3600


@pytest.fixture
def clock():
    """A clock that stands."""
    return SecondsClock(1234.5)


@pytest.fixture
def store(redis, clock):
    """A store on that clock."""
    return KeyStore(redis, clock_s=clock)


async def test_a_key_opens_its_tenant(store):
    """The key has its published form and names its tenant, and no other key does."""
    key = await store.create(ACME)
    other = await store.create(TenantId("other"))
    assert re.fullmatch(r"sk-sparke-[0-9a-f]{8}-[A-Za-z0-9_-]{43}", key)
    assert (await store.authenticate(key)).tenant_id == ACME
    assert (await store.authenticate(other)).tenant_id == "other"


async def test_the_key_itself_is_not_kept(store, redis):
    """Nothing in Redis holds the secret part."""
    key = await store.create(ACME)
    assert sorted(await redis.keys("*")) == [
        b"sparke:api-keys",
        b"sparke:tenants",
    ]  # a test may look everywhere
    kept = b"".join((await redis.hgetall("sparke:api-keys")).values())
    assert key[-43:].encode() not in kept
    assert b"acme" in kept


async def test_wrong_unknown_and_revoked_keys_look_alike(store):
    """Each is refused with one message, so nothing can be learned from it."""
    key = await store.create(ACME)
    revoked = await store.create(ACME)
    await store.revoke(revoked.split("-")[2])
    flipped = "A" if key[-2] != "A" else "B"
    wrong = [
        f"{key[:-2]}{flipped}{key[-1]}",
        f"sk-sparke-00000000-{'x' * 43}",
        revoked,
        f"{key[:19]}-{revoked[20:]}",
        key.upper(),
        f"{key}x",
        f" {key}",
        "",
        "sk-sparke",
        "\ud800",
    ]
    messages = set()
    for candidate in wrong:
        with pytest.raises(Unauthenticated) as caught:
            await store.authenticate(candidate)
        messages.add(caught.value.message)
    assert len(messages) == 1


async def test_revoking_the_last_key_does_not_open_the_service(store):
    """Once a key was made there are keys, for ever."""
    assert not await store.any_keys()
    key = await store.create(ACME)
    await store.revoke(key.split("-")[2])
    assert await store.any_keys()


async def test_keys_are_listed_without_their_secrets(store):
    """By tenant or all, with times; a second revocation keeps the time of the first."""
    mine, other = await store.create(ACME), await store.create(TenantId("other"))
    await store.revoke(mine.split("-")[2])
    await store.revoke(mine.split("-")[2])
    [record] = await store.list_keys(ACME)
    assert (record.key_id, record.created_at_ms, record.revoked_at_ms) == (
        mine.split("-")[2],
        1_234_500,
        1_234_500,
    )
    assert {found.key_id for found in await store.list_keys()} == {mine.split("-")[2], other.split("-")[2]}
    assert mine[-43:] not in repr(record)


async def test_a_record_that_cannot_be_read_hides_no_other(store, redis):
    """It is left out of lists; its tenant's other keys are listed, and go when the tenant does."""
    key = await store.create(ACME)
    await redis.hset("sparke:api-keys", "00000000", "{")
    assert [record.key_id for record in await store.list_keys()] == [_id(key)]
    assert await store.list_tenants() == {ACME}
    assert await store.remove_all(ACME) == 1


async def test_an_unknown_key_cannot_be_revoked(store):
    """The message says how to find the right id."""
    with pytest.raises(NotFound, match="sparke keys list"):
        await store.revoke("00000000")


def _id(key):
    return key.split("-")[2]


async def test_a_key_has_the_name_the_scopes_and_the_life_it_was_given(store, clock):
    """It works until its life is over, and not a moment longer; the list says all three."""
    issued = await store.issue(ACME, KeyWish("ci", (Scope.READ,), life_s=60))
    assert (await store.authenticate(issued.key)).scopes == (Scope.READ,)
    [record] = await store.list_keys(ACME)
    assert (record.name, record.scopes, record.expires_at_ms) == ("ci", (Scope.READ,), 1_294_500)
    clock.now_s += 59.9
    assert await store.authenticate(issued.key) == record
    clock.now_s += 0.1
    assert record.state(int(clock.now_s * 1000)) == "expired"
    with pytest.raises(Unauthenticated):
        await store.authenticate(issued.key)


async def test_a_record_from_before_scopes_keeps_all_but_admin(store, redis):
    """As it was written then: it opens its tenant for whatever it did before."""
    key = await store.create(ACME)
    [(key_id, data)] = (await redis.hgetall("sparke:api-keys")).items()
    old = ("key_id", "tenant_id", "digest", "created_at_ms", "revoked_at_ms")
    kept = {name: value for name, value in json.loads(data).items() if name in old}
    await redis.hset("sparke:api-keys", key_id, json.dumps(kept))
    record = await store.authenticate(key)
    assert record.scopes == USUAL_SCOPES == (Scope.GENERATE, Scope.READ, Scope.MANAGE)
    assert (record.name, record.expires_at_ms) == ("", None)


async def test_a_rotated_key_works_for_its_grace(store, clock):
    """Both do until then; the new one is of the same tenant, name and scopes, and afterwards the only one."""
    old = await store.issue(ACME, KeyWish("ci", (Scope.READ, Scope.ADMIN)))
    new = await store.rotate(old.record.key_id, grace_s=60)
    assert (new.record.name, new.record.scopes, new.record.expires_at_ms) == ("ci", old.record.scopes, None)
    for key in (old.key, new.key):
        assert (await store.authenticate(key)).tenant_id == ACME
    clock.now_s += 60
    assert (await store.authenticate(new.key)).key_id == new.record.key_id
    with pytest.raises(Unauthenticated):
        await store.authenticate(old.key)


async def test_a_successor_lives_as_long_as_the_old_one_was_to_live(store, clock):
    """From its own making on, unless it is told otherwise; and grace prolongs no life."""
    old = await store.issue(ACME, KeyWish(life_s=100))
    clock.now_s += 90
    new = await store.rotate(old.record.key_id, grace_s=HOUR_S)
    assert new.record.expires_at_ms == 1_424_500
    assert (await store.get(old.record.key_id)).record.expires_at_ms == 1_334_500
    told = await store.rotate(new.record.key_id, life_s=7)
    assert told.record.expires_at_ms == 1_331_500


async def test_a_key_has_one_successor(store, clock):
    """Whoever comes second is told its id, sixteen at once too; an ended key has none."""
    key_id = _id(await store.create(ACME))
    found = await asyncio.gather(*(store.rotate(key_id) for _ in range(16)), return_exceptions=True)
    issued = [one for one in found if not isinstance(one, Exception)]
    assert len(issued) == 1
    assert {type(one) for one in found if one is not issued[0]} == {KeyEnded}
    assert len(await store.list_keys(ACME)) == 2
    with pytest.raises(KeyEnded, match=issued[0].record.key_id):
        await store.rotate(key_id)
    await store.revoke(issued[0].record.key_id)
    with pytest.raises(KeyEnded, match="revoked"):
        await store.rotate(issued[0].record.key_id)
    clock.now_s += 2 * 86_400
    with pytest.raises(KeyEnded, match="expired"):
        await store.rotate(key_id)
    with pytest.raises(NotFound):
        await store.rotate("00000000")


async def test_a_rotation_beside_a_revocation_brings_nothing_back(store):
    """In whatever order they come, the key is revoked at the end."""
    for _ in range(10):
        key_id = _id(await store.create(ACME))
        await asyncio.gather(store.revoke(key_id), store.rotate(key_id), return_exceptions=True)
        assert (await store.get(key_id)).record.revoked_at_ms is not None


async def test_uses_are_noted_once_an_hour(store, clock, redis):
    """A thousand requests are one write; the next one comes with the next hour."""
    key = await store.create(ACME)
    assert (await store.list_used(ACME))[0].last_used_at_ms is None
    await redis.config_resetstat()
    for _ in range(100):
        clock.now_s += 30
        await store.authenticate(key)
    commands = await redis.info("commandstats")
    assert commands["cmdstat_hset"]["calls"] == 1
    assert (await store.get(_id(key))).last_used_at_ms == 1_264_500
    clock.now_s += HOUR_S
    await store.authenticate(key)
    assert (await store.get(_id(key))).last_used_at_ms == int(clock.now_s * 1000)


@pytest.mark.parametrize("names", [[], ["write"], ["read", "everything"]])
def test_other_scopes_are_refused(names):
    """With the names of those that there are."""
    with pytest.raises(InvalidValue, match="generate, read, manage, admin"):
        parse_scopes(names)
    assert parse_scopes(["admin", "read", "read"]) == (Scope.READ, Scope.ADMIN)


@pytest.mark.parametrize("wish", [{"name": "x" * 101}, {"name": "a\nb"}, {"life_s": 0}, {"life_s": 10**12}])
def test_wishes_have_bounds(wish):
    """A name that would spoil a list, and a life that no calendar holds."""
    with pytest.raises(InvalidValue):
        KeyWish(**wish)
