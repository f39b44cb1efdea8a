"""API keys."""

import re

import pytest

from app.domain.ids import TenantId
from app.errors import NotFound, Unauthenticated
from app.tenants.keys import KeyStore

pytestmark = pytest.mark.anyio

ACME = TenantId("acme")


@pytest.fixture
def store(redis):
    """A store on a clock that stands."""
    return KeyStore(redis, clock_s=lambda: 1234.5)


async def test_a_key_opens_its_tenant(store):
    """The key has its published form and names its tenant, and no other key does."""
    key = await store.create(ACME)
    other = await store.create(TenantId("other"))
    assert re.fullmatch(r"sk-sparke-[0-9a-f]{8}-[A-Za-z0-9_-]{43}", key)
    assert await store.authenticate(key) == ACME
    assert await store.authenticate(other) == "other"


async def test_the_key_itself_is_not_kept(store, redis):
    """Nothing in Redis holds the secret part."""
    key = await store.create(ACME)
    [name] = await redis.keys("*")  # a test may look everywhere
    kept = b"".join((await redis.hgetall(name)).values())
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


async def test_an_unknown_key_cannot_be_revoked(store):
    """The message says how to find the right id."""
    with pytest.raises(NotFound, match="sparke keys list"):
        await store.revoke("00000000")
