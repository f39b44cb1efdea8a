"""Every end of a job is in its tenant's outbox, once, where the tenant has webhooks."""

import json
from dataclasses import replace

import pytest

from app.domain.ids import ModelId, TenantId
from app.domain.job import Lane
from app.domain.result import Failure
from app.webhooks.store import WebhookStore

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
MODELS = (MODEL,)


async def _told(bench, tenant="acme"):
    """What the outbox says, in order."""
    entries = await bench.redis.xrange(f"sparke:{{t:{tenant}}}:outbox")
    return [(fields[b"type"].decode(), fields[b"id"].decode()) for _, fields in entries]


async def _hook(bench, tenant="acme"):
    await WebhookStore(bench.redis, clock_ms=bench.clock_ms).create(TenantId(tenant), "https://example.org")


async def _start(bench, queue, job, worker_id):
    await bench.store().accept(job)
    [held] = await queue.reserve(MODELS, worker_id, 1, 0)
    return held


async def test_every_way_to_end_is_told_once(bench):
    """Success, failure, expiry, a dead letter, and a cancel at every point; and not again when a step is repeated."""
    await _hook(bench)
    bench.limits = replace(bench.limits, max_attempts=1)
    store, worker_id = bench.store(), await bench.live("w1")
    queue, expected = bench.queue(), []
    for _ in range(2):  # committed
        held = await _start(bench, queue, bench.job(), worker_id)
        for _ in range(2):
            assert await queue.commit(held, bench.result(held), bench.entries(held))
        expected.append(("job.succeeded", held.job.job_id))
    held = await _start(bench, queue, bench.job(), worker_id)
    for _ in range(2):
        assert await queue.fail(held, Failure("oom", "out of memory"))
    expected.append(("job.failed", held.job.job_id))
    late = bench.job(timeout_ms=5)
    await store.accept(late)
    bench.now_ms += 10
    assert await queue.reserve(MODELS, worker_id, 1, 0) == []
    expected.append(("job.expired", late.job_id))
    waiting = bench.job()
    await store.accept(waiting)
    for _ in range(2):
        await store.cancel(waiting.tenant_id, waiting.job_id)
    expected.append(("job.cancelled", waiting.job_id))
    for way in ("commit", "fail", "give_back"):
        held = await _start(bench, queue, bench.job(), worker_id)
        await store.cancel(held.job.tenant_id, held.job.job_id)
        assert await _told(bench) == expected
        if way == "commit":
            await queue.commit(held, bench.result(held), bench.entries(held))
        elif way == "fail":
            await queue.fail(held, Failure("oom", "out of memory"))
        else:
            await queue.give_back(held)
        expected.append(("job.cancelled", held.job.job_id))
    held = await _start(bench, queue, bench.job(), worker_id)
    await queue.begin(held)
    await bench.reclaimer().reclaim(MODEL)
    assert await _told(bench) == expected
    assert await bench.queue().reserve(MODELS, worker_id, 1, 0) == []
    expected.append(("job.failed", held.job.job_id))
    await bench.sweeper().sweep(MODELS)
    assert await _told(bench) == expected


async def test_nothing_is_written_without_webhooks(bench):
    """Neither for a tenant that has none, nor for the lines of batches, which their batch tells of."""
    await _hook(bench, "bolt")
    for job in (bench.job("acme"), replace(bench.job("bolt"), lane=Lane.BATCH)):
        await bench.store().accept(job)
        await bench.store().cancel(job.tenant_id, job.job_id)
    assert await bench.redis.exists("sparke:{t:acme}:outbox", "sparke:{t:bolt}:outbox") == 0


async def test_an_entry_holds_metadata_and_ends_with_the_outbox(bench):
    """The time is the end's, metadata is the client's, whatever is in it; the outbox has a time to live."""
    await _hook(bench)
    metadata = {"1": "a", 'quoted "': "/ä\\u0000", "empty": ""}
    job = replace(bench.job(), metadata=metadata)
    await bench.store().accept(job)
    await bench.store().cancel(job.tenant_id, job.job_id)
    [(_, fields)] = await bench.redis.xrange("sparke:{t:acme}:outbox")
    assert json.loads(fields[b"metadata"]) == metadata
    assert int(fields[b"at_ms"]) == bench.now_ms
    assert 0 < await bench.redis.ttl("sparke:{t:acme}:outbox") <= 2 * 86_400


async def test_a_job_that_cannot_be_read_is_told_of_too(bench):
    """Its metadata is lost, its end is not."""
    await _hook(bench)
    job = bench.job()
    await bench.store().accept(job)
    await bench.redis.hset(f"sparke:{{t:acme}}:job:{job.job_id}", "job", b"{broken")
    assert await bench.queue().reserve(MODELS, await bench.live("w1"), 1, 0) == []
    assert await _told(bench) == [("job.failed", job.job_id)]
