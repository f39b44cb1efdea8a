"""What an API process reads from Redis when it is scraped."""

import asyncio
import os
import re
import signal

import httpx
from patience import PATIENCE_S, wait_until

from app.domain.ids import ModelId, WorkerId
from app.http.routes.health import STORE_S
from app.jobs.place import JobPlace
from app.jobs.queue import JobQueue
from app.jobs.types import JobLimits, WorkerInfo
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.keys import COUNTED_KEY
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis


def _value(url, name):
    return _found(url, rf'^sparke_{name}{{model="toy"}} ([0-9.]+)$')


def _found(url, pattern):
    """As soon as it is told: a process that was held up too long tells nothing of Redis."""
    found = wait_until(
        lambda: re.search(pattern, httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text, re.MULTILINE)
    )
    return float(found[1])


async def _with_queue(redis_url, act):
    redis = connect(redis_url)
    try:
        return await act(redis)
    finally:
        await redis.aclose()


def test_what_waits_and_what_runs_are_the_backlog(serve_api, own_database):
    """Two of three jobs are taken by a worker: three are open, one waits; every process says so."""
    urls = [serve_api(own_database), serve_api(own_database)]
    for number in range(3):
        asked = httpx.post(f"{urls[0]}/v1/jobs", json={"prompt": f"star {number}"}, timeout=PATIENCE_S)
        assert asked.status_code == 202, asked.text
    assert [_value(url, "jobs_waiting") for url in urls] == [3, 3]

    async def take(redis):
        queue = JobQueue(redis, JobLimits())
        return [(await queue.reserve([ModelId("toy")], WorkerId("w"), 1, 2000))[0] for _ in range(2)]

    reserved = asyncio.run(_with_queue(own_database.redis_url, take))
    assert len({JobPlace.of(one.job).job_id for one in reserved}) == 2
    for url in urls:
        assert (_value(url, "jobs_open"), _value(url, "jobs_waiting")) == (3, 1)
        assert _value(url, "jobs_oldest_seconds") > 0


def test_entries_are_told_once_they_were_counted(serve_api, own_database):
    """By whichever process counts, and by all of them."""
    urls = [serve_api(own_database), serve_api(own_database)]
    told = [_value(url, "memory_entries") for url in urls]
    assert told == [0, 0]


def test_a_scrape_says_where_workers_of_this_machine_serve_theirs(serve_api, own_database):
    """Those on a loopback address alone: others are found as the API is."""
    url = serve_api(own_database)
    assert "# worker" not in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    near, far = "http://127.0.0.1:9464/metrics", "http://0.0.0.0:9464/metrics"

    async def beat(redis):
        registry = WorkerRegistry(redis)
        for number, where in enumerate((near, far, None)):
            info = WorkerInfo(WorkerId(f"w{number}"), "ready", (ModelId("toy"),), now_ms(), metrics_url=where)
            await registry.beat(info)

    asyncio.run(_with_queue(own_database.redis_url, beat))
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    assert text.startswith(f"# worker w0: {near}\n")
    assert text.count("# worker") == 1


def _plain(url, name):
    return _found(url, rf"^sparke_{name} ([0-9.e+]+)$")


def test_how_full_redis_is(serve_api, own_database):
    """What it uses, and its maxmemory; where that is not set, what the machine has."""
    url = serve_api(own_database)
    machine_bytes = _plain(url, "redis_memory_limit_bytes")
    assert 0 < _plain(url, "redis_memory_used_bytes") < machine_bytes

    async def bound(redis):
        await redis.config_set("maxmemory", 2**30)
        told = _plain(url, "redis_memory_limit_bytes")
        await redis.config_set("maxmemory", 0)
        return told

    assert asyncio.run(_with_queue(own_database.redis_url, bound)) == 2**30
    assert _plain(url, "redis_memory_limit_bytes") == machine_bytes


def test_a_redis_that_hangs_does_not_hold_a_scrape(serve_api, settings, tmp_path):
    """The process tells of itself within seconds, and of Redis nothing; once it answers again, all."""
    with EmbeddedRedis.start(tmp_path) as server:
        url = serve_api(
            settings.model_copy(update={"redis_url": server.url, "redis_timeout_s": 2 * PATIENCE_S})
        )
        assert _value(url, "jobs_open") == 0
        os.kill(server.pid, signal.SIGSTOP)
        try:
            text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
            assert STORE_S < 4, "Prometheus waits for five seconds"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert re.search(r'^sparke_store_errors_total{store="redis"} [1-9]', text, re.MULTILINE)
        assert "sparke_redis_memory_used_bytes NaN" in text
        assert _value(url, "jobs_open") == 0


def test_a_count_that_cannot_be_read_takes_only_what_redis_tells(serve_api, own_database):
    """The process tells of itself all the same."""
    url = serve_api(own_database)
    _value(url, "memory_entries")  # nobody counts again soon after

    async def spoil(redis):
        await redis.set(COUNTED_KEY, b"no count")

    asyncio.run(_with_queue(own_database.redis_url, spoil))
    answer = httpx.get(f"{url}/metrics", timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert "sparke_http_requests_total" in answer.text
