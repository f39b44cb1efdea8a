"""Which webhooks there are."""

import asyncio
import base64
import json

import pytest

from app.domain.ids import TenantId, WebhookId
from app.domain.webhook import MAX_WEBHOOKS
from app.errors import NotFound, TooManyWebhooks
from app.webhooks import keys

pytestmark = pytest.mark.anyio

ACME = TenantId("acme")
URL = "https://example.org/hook"


async def test_a_webhook_is_made_listed_and_deleted(office):
    """Its secret is 32 random bytes in the form of the specification, and shows in no text by itself."""
    store = office.store()
    one = await store.create(ACME, URL)
    office.ahead_ms += 1  # within one millisecond they have no order
    other = await store.create(ACME, URL)
    assert await store.list_webhooks(ACME) == [one, other]
    assert await store.list_webhooks(TenantId("bolt")) == []
    assert len(base64.b64decode(one.secret.removeprefix("whsec_"), validate=True)) == 32
    assert one.secret != other.secret
    assert one.secret not in repr(one)
    await store.delete(ACME, one.webhook_id)
    assert await store.list_webhooks(ACME) == [other]
    for call in (store.delete, store.get, store.enable, store.disable):
        with pytest.raises(NotFound):
            await call(ACME, one.webhook_id)
    with pytest.raises(NotFound):
        await store.delete(TenantId("bolt"), other.webhook_id)


async def test_a_tenant_has_ten_at_most(office):
    """However many are made at once; deleting one makes room."""
    ends = await asyncio.gather(
        *(office.store().create(ACME, URL) for _ in range(2 * MAX_WEBHOOKS)), return_exceptions=True
    )
    assert [type(end) for end in ends].count(TooManyWebhooks) == MAX_WEBHOOKS
    [first, *_] = await office.store().list_webhooks(ACME)
    await office.store().delete(ACME, first.webhook_id)
    await office.store().create(ACME, URL)


async def test_disabling_keeps_the_secret(office):
    """Disabled and enabled again it is what it was; a deleted one does not come back by either."""
    store = office.store()
    made = await store.create(ACME, URL)
    await store.disable(ACME, made.webhook_id)
    assert (await store.get(ACME, made.webhook_id)).disabled_at_ms is not None
    await store.enable(ACME, made.webhook_id)
    assert await store.get(ACME, made.webhook_id) == made
    with pytest.raises(NotFound):
        await store.enable(ACME, WebhookId("wh_" + "0" * 28))


async def test_secrets_replaced_one_after_another_hold_for_their_time(office):
    """Three at most sign beside the newest, none longer than the last change grants; without grace all end at once."""
    store = office.store()
    made = [await store.create(ACME, URL)]
    made += [await store.rotate(ACME, made[0].webhook_id, grace_s=3600) for _ in range(5)]
    assert len({webhook.secret for webhook in made}) == 6
    found, now_ms = await store.get(ACME, made[0].webhook_id), office.clock_ms()
    assert found.secrets_at(now_ms) == [webhook.secret for webhook in reversed(made[2:])]
    assert not any(webhook.secret in repr(found) for webhook in made)
    assert found.secrets_at(now_ms + 3_600_000) == [made[-1].secret]
    shorter = await store.rotate(ACME, made[0].webhook_id, grace_s=60)
    assert shorter.secrets_at(now_ms + 100_000) == [shorter.secret]
    last = await store.rotate(ACME, made[0].webhook_id, grace_s=0)
    assert (await store.get(ACME, made[0].webhook_id)).secrets_at(0) == [last.secret]
    with pytest.raises(NotFound):
        await store.rotate(TenantId("bolt"), made[0].webhook_id, grace_s=0)


async def test_changes_at_once_all_hold(office):
    """Rotated six times and disabled at once: no change undoes another."""
    store = office.store()
    made = await store.create(ACME, URL)
    rotated = await asyncio.gather(
        *(store.rotate(ACME, made.webhook_id, grace_s=3600) for _ in range(6)),
        store.disable(ACME, made.webhook_id),
    )
    found = await store.get(ACME, made.webhook_id)
    assert found.disabled_at_ms is not None
    newest = [each for each in rotated[:-1] if each.secret == found.secret]
    assert len(newest) == 1
    assert len(found.secrets_at(office.clock_ms())) == 4


async def test_a_record_of_an_earlier_release_is_read(office, redis):
    """It has no replaced secrets, and can be given a new one."""
    store = office.store()
    made = await store.create(ACME, URL)
    record = json.loads(await redis.hget(keys.webhooks_key(ACME), made.webhook_id))
    del record["retired"]
    await redis.hset(keys.webhooks_key(ACME), made.webhook_id, json.dumps(record))
    assert await store.get(ACME, made.webhook_id) == made
    rotated = await store.rotate(ACME, made.webhook_id, grace_s=60)
    assert rotated.secrets_at(office.clock_ms()) == [rotated.secret, made.secret]


async def test_a_tenant_without_webhooks_is_listed_no_more_but_not_at_once(office):
    """It may be making one: it is listed before it has one, and then for an hour."""
    store, deliverer = office.store(), office.deliverer()
    made = await store.create(ACME, URL)
    await store.delete(ACME, made.webhook_id)
    await deliverer.look()
    assert await store.list_tenants() == [ACME]
    office.ahead_ms += 3_700_000
    kept = await store.create(ACME, URL)
    await deliverer.look()
    office.ahead_ms += 3_700_000
    await deliverer.look()
    assert await store.list_tenants() == [ACME]
    await store.delete(ACME, kept.webhook_id)
    await deliverer.look()
    assert await store.list_tenants() == []
