"""The same batches on every kind of server: Redis 6.2, and one slot of a Redis Cluster at a time."""

import pytest

from app.domain.batch import BatchState
from app.domain.ids import TenantId

pytestmark = pytest.mark.anyio


async def _go_every_way(desk):
    """Creates, lists, drives, cancels and expires batches of two tenants; checks the ends."""
    whole = await desk.create("one", "bad", "two", "fail", tenant="acme")
    empty = await desk.create("bad", tenant="bolt")
    gone = await desk.create("x", tenant="bolt")
    await desk.batches().cancel(gone.tenant_id, gone.batch_id)
    async with desk.driving(desk.driver()), desk.working():
        states = [(await desk.wait(batch)).state for batch in (whole, empty, gone)]
    assert states == [BatchState.COMPLETED, BatchState.FAILED, BatchState.CANCELLED]
    assert [line["id"] for line in await desk.output(whole)] == ["one", "two"]
    assert [line["line"] for line in await desk.errors(whole)] == [2, 4]
    page = await desk.batches().list_batches(TenantId("bolt"), 1)
    assert (page.batches[0].batch, page.has_more) == (gone, True)
    late = await desk.create("one", "two", tenant="acme")
    desk.now_ms = late.expires_at_ms
    async with desk.driving(desk.driver()):
        assert (await desk.wait(late)).state is BatchState.EXPIRED
    assert await desk.batches().count_open() == 0


async def test_on_redis_6_2(redis_6_2, make_desk, tmp_path):
    """Every command and script works on the oldest server we promise."""
    await _go_every_way(make_desk(redis_6_2, tmp_path / "objects"))


async def test_on_a_cluster_no_command_crosses_slots(cluster_node, make_desk, tmp_path):
    """A node of a cluster refuses scripts and commands whose keys lie in two slots; none of ours do."""
    await _go_every_way(make_desk(cluster_node, tmp_path / "objects"))
