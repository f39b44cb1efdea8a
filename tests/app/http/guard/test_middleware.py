"""What happens when something is broken behind the API."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_S
from redis.asyncio import Redis

from app.http.errors import PROBLEM_JSON
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.settings import Settings

ServeApi = Callable[[Settings], str]
KEY = "sk-sparke-00000000-" + "x" * 43


def _spoil(url: str, spoil: Callable[[Redis], Awaitable[object]]) -> None:
    async def run() -> None:
        redis = connect(url)
        await spoil(redis)
        await redis.aclose()

    asyncio.run(run())


def _assert_silent(answer: httpx.Response, code: str) -> None:
    """A 500 in the one body that tells nothing but where to look."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, code)
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert answer.json()["instance"].endswith(answer.headers["x-request-id"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    for inside in ("WRONGTYPE", "redis", "Traceback", "api-keys", "schema"):
        assert inside not in answer.text


def test_an_error_that_nobody_expected(serve_api: ServeApi, settings: Settings):
    """A key of the wrong type in Redis is a fault of ours: 500, and nothing of the inside leaves."""
    broken = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=10"})
    _spoil(broken.redis_url or "", lambda redis: redis.set("sparke:api-keys", "no hash"))
    url = serve_api(broken)
    _assert_silent(httpx.get(f"{url}/v1/models", timeout=60), "internal")
    assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).status_code == 200
    assert 'status="500"' in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text


def test_a_corrupt_record(serve_api: ServeApi, settings: Settings):
    """It has a code of its own, and is not sent again by the client."""
    broken = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=11"})
    _spoil(broken.redis_url or "", lambda redis: redis.hset("sparke:api-keys", "00000000", "{"))
    answer = httpx.get(
        f"{serve_api(broken)}/v1/models", headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S
    )
    _assert_silent(answer, "corrupt_record")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/readyz"),
        ("GET", "/readyz?exclude=workers"),
        ("POST", "/v1/images/generations"),
    ],
)
def test_redis_away(tmp_path: Path, serve_api: ServeApi, settings: Settings, method: str, path: str):
    """503 with a time to wait, from whichever route; the process lives and still counts."""
    with EmbeddedRedis.start(tmp_path) as server:
        url = serve_api(settings.model_copy(update={"redis_url": server.url}))
        assert httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).status_code == 200
    answer = httpx.request(
        method, f"{url}{path}", json={"prompt": "x"} if method == "POST" else None, timeout=PATIENCE_S
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).status_code == 200
    assert "sparke_jobs_open{" not in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
