"""Every end of a batch is in its tenant's outbox, once, where the tenant has webhooks; its lines are not."""

import json

import pytest

from app.batches.held import LeaseLost
from app.domain.batch import BatchState
from app.webhooks.store import WebhookStore

pytestmark = pytest.mark.anyio

OUTBOX = "sparke:{t:acme}:outbox"


async def _told(desk):
    return [
        (fields[b"type"].decode(), fields[b"id"].decode(), json.loads(fields[b"metadata"]))
        for _, fields in await desk.redis.xrange(OUTBOX)
    ]


@pytest.mark.parametrize(
    "state", [BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED]
)
async def test_an_end_is_told_once(desk, state):
    """With the end itself: not by a process that lost the lease, and not again when the end is repeated."""
    await WebhookStore(desk.redis, clock_ms=desk.clock_ms).create("acme", "https://example.org")
    batch = await desk.create("one")
    ghost, held = desk.held(batch), desk.held(batch)
    await ghost.acquire(60)
    await desk.redis.delete(f"sparke:{{t:acme}}:batch-lease:{batch.batch_id}")
    await held.acquire(60)
    with pytest.raises(LeaseLost):
        await ghost.end(BatchState.VALIDATING, state, 60)
    assert await _told(desk) == []
    for _ in range(2):
        await held.end(BatchState.VALIDATING, state, 60)
    assert await _told(desk) == [(f"batch.{state}", batch.batch_id, {})]


async def test_lines_are_not_told_of(desk):
    """One event for a whole batch."""
    await WebhookStore(desk.redis, clock_ms=desk.clock_ms).create("acme", "https://example.org")
    batch = await desk.create("one", "two", "fail")
    async with desk.working(), desk.driving(desk.driver()):
        await desk.wait(batch)
    assert await _told(desk) == [("batch.completed", batch.batch_id, {})]


async def test_without_webhooks_nothing_is_written(desk):
    """A tenant that has none has no outbox."""
    batch = await desk.create("one")
    async with desk.working(), desk.driving(desk.driver()):
        await desk.wait(batch)
    assert await desk.redis.exists(OUTBOX) == 0
