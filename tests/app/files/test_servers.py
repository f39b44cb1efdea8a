"""The same records on every kind of server: Redis 6.2, one slot of a Redis Cluster at a time, and after a kill."""

import asyncio
import os
import signal

import pytest
from patience import PATIENCE_S, eventually

from app.domain.ids import TenantId
from app.errors import NotFound, StoreUnavailable, TooManyFiles
from app.files.keys import content_key
from app.files.store import FileQuery
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio


async def _go_every_way(cabinet):
    """Adds, lists, refuses, removes and sweeps files of two tenants; checks the ends."""
    cabinet.max_files, cabinet.now_ms = 3, 10**12
    store = cabinet.store()
    files = [cabinet.file(tenant) for tenant in ("acme", "bolt") for _ in range(3)]
    for file in files:
        await cabinet.contents.put(content_key(file.tenant_id, file.file_id), b"lines")
        await store.add(file)
    with pytest.raises(TooManyFiles):
        await store.add(cabinet.file())
    await store.remove(files[0].tenant_id, files[0].file_id)
    with pytest.raises(NotFound):
        await store.get(files[0].tenant_id, files[0].file_id)
    await store.check_room(TenantId("acme"))
    for order in ("asc", "desc"):
        page = await store.list_files(TenantId("bolt"), FileQuery(limit=2, order=order))
        assert (len(page.files), page.has_more) == (2, True)
    for path in (cabinet.folder / "files").rglob("file-*"):
        os.utime(path, (1, 1))
    assert await cabinet.sweeper().sweep() == 1


async def test_on_redis_6_2(redis_6_2, make_cabinet, tmp_path):
    """Every command and script works on the oldest server we promise."""
    await _go_every_way(make_cabinet(redis_6_2, tmp_path / "objects"))


async def test_on_a_cluster_no_command_crosses_slots(cluster_node, make_cabinet, tmp_path):
    """A node of a cluster refuses scripts and commands whose keys lie in two slots; none of ours do."""
    await _go_every_way(make_cabinet(cluster_node, tmp_path / "objects"))


async def test_a_killed_server_has_every_record_it_acknowledged(tmp_path, make_cabinet):
    """SIGKILL amid adds: each acknowledged one is there after the restart, and listed."""
    server = EmbeddedRedis.start(tmp_path)
    client = connect(server.url, timeout_s=PATIENCE_S)
    cabinet = make_cabinet(client, tmp_path / "objects", max_files=10_000)
    acknowledged = []

    async def add():
        while True:
            file = cabinet.file(ttl_ms=10**9)
            await cabinet.store().add(file)
            acknowledged.append(file)

    adding = asyncio.gather(*(add() for _ in range(4)), return_exceptions=True)
    await eventually(lambda: len(acknowledged) >= 20)
    os.kill(server.pid, signal.SIGKILL)
    assert [type(end) for end in await adding] == [StoreUnavailable] * 4
    await client.aclose()
    server.stop()
    with EmbeddedRedis.start(tmp_path) as again:
        cabinet.redis = client = connect(again.url)
        page = await cabinet.store().list_files(TenantId("acme"), FileQuery(limit=10_000))
        assert set(acknowledged) <= set(page.files)
        assert len(page.files) <= len(acknowledged) + 4
        await client.aclose()
