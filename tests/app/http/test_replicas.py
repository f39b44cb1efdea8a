"""What clients hear where a replica of Redis is behind."""

import asyncio
import time

import httpx
import pytest
from patience import PATIENCE_S

from app.domain.ids import TenantId
from app.errors import NotReplicated
from app.redis.connection import connect
from app.redis.replicas import Replicas
from app.tenants.keys import KeyStore

pytestmark = pytest.mark.anyio

BODY = {"prompt": "a star", "model": "toy"}


async def test_a_client_is_told_and_asks_again_under_its_key(replicated, serve_api, settings):
    """503 `not_replicated` with Retry-After for a job and for a webhook; once the replica follows, the key gives the job."""
    update = {
        "redis_url": replicated.url,
        "redis_replicas": 1,
        "redis_replicas_timeout_s": 0.3,
        "webhooks_allow_private": True,
    }
    url = await asyncio.to_thread(serve_api, settings.model_copy(update=update))
    headers = {"idempotency-key": "mine"}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        replicated.pause()
        refused = await client.post("/v1/jobs", json=BODY, headers=headers)
        hook = await client.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"})
        listed = (await client.get("/v1/jobs")).json()["data"]
        replicated.resume()
        answer = await client.post("/v1/jobs", json=BODY, headers=headers)
        until_s = time.monotonic() + PATIENCE_S
        while answer.status_code == 503 and time.monotonic() < until_s:
            await asyncio.sleep(0.05)
            answer = await client.post("/v1/jobs", json=BODY, headers=headers)
    for each in (refused, hook):
        assert (each.status_code, each.json()["error"]["code"]) == (503, "not_replicated")
        assert each.headers["retry-after"] == "5"
    assert answer.status_code == 202
    assert [job["id"] for job in listed] == [answer.json()["id"]]


async def test_keys_are_shown_and_revoked_once_a_replica_knows(replicated):
    """A key that no replica has is not shown; a revocation is refused, and repeated it is acknowledged."""
    redis = connect(replicated.url, timeout_s=2 * PATIENCE_S)
    quick, patient = (
        KeyStore(redis, replicas=Replicas(redis, number=1, timeout_s=timeout_s))
        for timeout_s in (0.2, PATIENCE_S)
    )
    await patient.create(TenantId("acme"))
    [record] = await patient.list_keys()
    replicated.pause()
    with pytest.raises(NotReplicated):
        await quick.create(TenantId("acme"))
    for _ in range(2):
        with pytest.raises(NotReplicated):
            await quick.revoke(record.key_id)
    replicated.resume()
    await patient.revoke(record.key_id)
    await redis.aclose()
