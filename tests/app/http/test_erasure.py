"""A tenant is deleted while it makes images, through a real server with a real worker."""

import asyncio
from urllib.parse import urlsplit

import httpx
import pytest
from patience import wait_until

from app.domain.ids import TenantId
from app.http.process.wiring import open_deps
from app.jobs.workers import now_ms
from app.redis.connection import connect
from app.tenants.names import DELETIONS_KEY
from app.tenants.registry import TenantRegistry

NOBODY = "http://127.0.0.1:9/"  # where a webhook finds no receiver
LONG = {"prompt": "a star", "steps": 20, "n": 10}


@pytest.fixture
def make_tenant(keyed_service):
    """A function that makes a tenant with something of everything; a client of it, and paths that show what it has."""
    admin, _ = keyed_service
    clients = []

    def make(name):
        admin.put(f"/v1/admin/tenants/{name}/quotas", json={})
        key = admin.post(f"/v1/admin/tenants/{name}/keys", json={}).json()["key"]
        quotas = {"requests_per_minute": 10_000, "max_stored_bytes": 10**9, "max_memory_entries": 10**6}
        assert admin.put(f"/v1/admin/tenants/{name}/quotas", json=quotas).status_code == 200
        client = httpx.Client(base_url=admin.base_url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        clients.append(client)
        assert client.post("/v1/webhooks", json={"url": NOBODY}).status_code == 201
        made = client.post(
            "/v1/images/generations",
            json={"prompt": "a star", "n": 2, "response_format": "url"},
            headers={"idempotency-key": "mine"},
        )
        url = urlsplit(made.json()["data"][0]["url"])
        line = '{"custom_id": "%d", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a ring"}}'
        form = {
            "file": ("a.jsonl", "\n".join(line % n for n in range(40)).encode()),
            "purpose": (None, "batch"),
        }
        file_id = client.post("/v1/files", files=form).json()["id"]
        batch = {"input_file_id": file_id, "endpoint": "/v1/images/generations", "completion_window": "24h"}
        batch_id = client.post("/v1/batches", json=batch).json()["id"]
        job_id = client.get("/v1/jobs").json()["data"][0]["id"]
        return client, [
            f"{url.path}?{url.query}",
            f"/v1/jobs/{job_id}",
            f"/v1/files/{file_id}",
            f"/v1/files/{file_id}/content",
            f"/v1/batches/{batch_id}",
        ]

    yield make
    for client in clients:
        client.close()


async def _find_traces(settings, tenant):
    """Keys with the tenant's tag, members that name it, and files in folders of its name."""
    redis = connect(settings.redis_url)
    try:
        names = [name.decode() async for name in redis.scan_iter()]  # a test may look everywhere
        found = [name for name in names if f"{{t:{tenant}}}" in name]
        for name in names:
            if (await redis.type(name)) == b"zset" and name != "sparke:tenants":
                members = [member.decode() for member in await redis.zrange(name, 0, -1)]
                found += [f"{name}: {each}" for each in members if each.partition("/")[0] == tenant]
        return found + [path.as_posix() for path in settings.data_dir.rglob("*") if tenant in path.parts]
    finally:
        await redis.aclose()


async def _end_lingering(settings, tenant):
    """Lets the time go by in which somebody may still write: the deletion was asked for long ago."""
    redis = connect(settings.redis_url)
    try:
        registry = TenantRegistry(redis, clock_ms=lambda: now_ms() - 10**8)
        await redis.hdel(DELETIONS_KEY, tenant)
        deletion = await registry.ask_deletion(TenantId(tenant))
        await registry.note(
            TenantId(tenant), type(deletion)(deletion.requested_at_ms, deletion.found_at_ms, now_ms())
        )
    finally:
        await redis.aclose()


def test_a_tenant_is_deleted_amid_its_work(keyed_service, make_tenant):
    """Jobs run, a batch is on its way, a webhook waits: all of it goes, and another tenant loses nothing."""
    admin, settings = keyed_service
    (keep, kept_paths), (gone, gone_paths) = make_tenant("keep"), make_tenant("gone")
    for _ in range(3):
        assert gone.post("/v1/jobs", json=LONG).status_code == 202
    wait_until(
        lambda: gone.get(gone_paths[4]).json()["request_counts"]["total"] == 40, "the batch has not begun"
    )
    follower = gone.post("/v1/jobs", json={**LONG, "num_previews": 3}).json()["id"]
    with gone.stream("GET", f"/v1/jobs/{follower}/events") as events:
        deleted = admin.delete("/v1/admin/tenants/gone")
        assert (deleted.status_code, deleted.json()["state"]) == (202, "deleting")
        assert {gone.get(path).status_code for path in gone_paths[1:]} == {401}
        told = [line for line in events.iter_lines() if line.startswith("event:")]
    assert told[:1] == ["event: queued"]
    state = "/v1/admin/tenants/gone"
    wait_until(
        lambda: admin.get(state).json()["deletion"]["state"] == "watching",
        "something is found again and again",
    )
    assert gone.get(gone_paths[0]).status_code == 404  # a signed URL shows nothing any more
    wait_until(
        lambda: keep.get(kept_paths[4]).json()["status"] == "completed",
        "the other tenant's batch stands still",
    )
    asyncio.run(_end_lingering(settings, "gone"))
    wait_until(lambda: admin.get(state).status_code == 404, "the deletion does not end")
    assert asyncio.run(_find_traces(settings, "gone")) == []
    assert asyncio.run(_find_traces(settings, "keep")) != []
    assert [keep.get(path).status_code for path in kept_paths] == [200] * 5
    assert keep.get("/v1/usage").json()["memory_entries"] == 42


def test_a_deletion_outlives_the_process_that_was_asked(keyed_service, make_tenant):
    """What one process was asked for another brings to its end."""
    admin, settings = keyed_service
    make_tenant("left")

    async def ask():
        async with open_deps(settings, settings.redis_url) as deps:
            await deps.desk.registry.ask_deletion(TenantId("left"))

    asyncio.run(ask())
    state = "/v1/admin/tenants/left"
    wait_until(lambda: admin.get(state).json()["deletion"]["state"] == "watching", "nobody goes on with it")
    asyncio.run(_end_lingering(settings, "left"))
    wait_until(lambda: admin.get(state).status_code == 404, "the deletion does not end")
    assert asyncio.run(_find_traces(settings, "left")) == []
