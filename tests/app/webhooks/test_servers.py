"""The same way of an event on every kind of server: Redis 6.2, one slot of a Redis Cluster at a time, after a kill."""

import asyncio
import os
import signal

import pytest
from patience import PATIENCE_S, eventually

from app.domain.ids import TenantId
from app.errors import StoreUnavailable
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio


async def _go_every_way(office, make_receiver):
    """Two tenants' events are told, told again, dropped with their webhook; one webhook is gone, and enabled again."""
    receivers = [await make_receiver(500), await make_receiver(410)]
    hooks = [
        await office.hook(receiver, TenantId(tenant))
        for receiver, tenant in zip(receivers, ("acme", "bolt"), strict=True)
    ]
    jobs = [await office.end_job(TenantId(tenant)) for tenant in ("acme", "bolt") for _ in range(2)]
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    await office.deliver(deliverer, after_s=60)
    assert {message.told["data"]["id"] for message in receivers[0].messages} == set(jobs[:2])
    assert len(receivers[0].messages) == 3
    await office.store().enable(hooks[1].tenant_id, hooks[1].webhook_id)
    last = await office.end_job(TenantId("bolt"))
    await office.deliver(deliverer, after_s=60)
    assert receivers[1].messages[-1].told["data"]["id"] == last
    for hook in hooks:
        await office.store().delete(hook.tenant_id, hook.webhook_id)
    await office.deliver(deliverer, after_s=3_700)
    assert await office.store().list_tenants() == []
    assert await office.leftovers() == []
    await deliverer.close()


async def test_on_redis_6_2(redis_6_2, make_office, make_receiver):
    """Every command and script works on the oldest server we promise."""
    await _go_every_way(make_office(redis_6_2), make_receiver)


async def test_on_a_cluster_no_command_crosses_slots(cluster_node, make_office, make_receiver):
    """A node of a cluster refuses scripts and commands whose keys lie in two slots; none of ours do."""
    await _go_every_way(make_office(cluster_node), make_receiver)


async def test_a_killed_server_has_every_end_it_acknowledged(tmp_path, make_office, make_receiver):
    """SIGKILL of Redis amid ends: each acknowledged one is told after the restart."""
    server = EmbeddedRedis.start(tmp_path)
    client = connect(server.url, timeout_s=PATIENCE_S)
    office, receiver = make_office(client), await make_receiver()
    await office.hook(receiver)
    ended = []

    async def end():
        while True:
            ended.append(await office.end_job())

    ending = asyncio.gather(end(), end(), return_exceptions=True)
    await eventually(lambda: len(ended) >= 20)
    os.kill(server.pid, signal.SIGKILL)
    assert [type(error) for error in await ending] == [StoreUnavailable] * 2
    await client.aclose()
    server.stop()
    with EmbeddedRedis.start(tmp_path) as again:
        office.redis = client = connect(again.url)
        deliverer = office.deliverer()
        for _ in range(len(ended)):
            await office.deliver(deliverer)
            if len(receiver.messages) >= len(ended):
                break
        assert set(ended) <= {message.told["data"]["id"] for message in receiver.messages}
        await deliverer.close()
        await client.aclose()
