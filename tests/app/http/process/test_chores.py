"""What an API process does beside answering."""

import asyncio

import pytest
from patience import PATIENCE_S

from app.domain.ids import TenantId
from app.errors import StoreUnavailable
from app.http.process.chores import delivering_webhooks, erasing, metering, sweeping_files
from app.jobs.workers import now_ms
from app.redis.connection import connect
from app.telemetry.metrics import Metrics
from app.tenants.usage import UsageMeter, UsageStore

pytestmark = pytest.mark.anyio


class _Sweeper:
    """Fails in both ways, then finds two objects at each sweep."""

    INTERVAL_S = 0.01

    def __init__(self):
        self.num_sweeps = 0
        self.is_sure = asyncio.Event()

    async def sweep(self):
        self.num_sweeps += 1
        if self.num_sweeps == 1:
            raise StoreUnavailable("Redis is away")
        if self.num_sweeps == 2:
            raise RuntimeError("a fault of ours")
        if self.num_sweeps == 5:
            self.is_sure.set()
        return 2


async def test_a_sweep_that_fails_is_not_the_last():
    """Whatever it fails with; and none comes after the context has ended."""
    sweeper, metrics = _Sweeper(), Metrics()
    async with sweeping_files(sweeper, metrics), asyncio.timeout(PATIENCE_S):
        await sweeper.is_sure.wait()
    num_sweeps = sweeper.num_sweeps
    await asyncio.sleep(0.1)
    assert sweeper.num_sweeps == num_sweeps
    assert metrics.registry.get_sample_value("sparke_files_swept_total") >= 4


class _Deliverer:
    """Notes what is done with it."""

    def __init__(self):
        self.heard = []
        self.is_heard = asyncio.Event()
        self.ends = []

    def hear(self, _channel, member):
        self.heard.append(member)
        self.is_heard.set()

    async def run(self):
        try:
            await asyncio.Event().wait()
        finally:
            self.ends.append("run")

    async def close(self):
        self.ends.append("close")


async def test_a_deliverer_hears_of_ends_and_is_stopped_in_order(redis_url):
    """It runs for as long as the context lasts, hears each job that ends, and is closed once it has stopped."""
    redis, deliverer = connect(redis_url), _Deliverer()
    async with delivering_webhooks(deliverer, redis), asyncio.timeout(PATIENCE_S):
        while not deliverer.is_heard.is_set():
            await redis.publish("sparke:finished", "acme/job_1")
            await asyncio.sleep(0.02)
    assert deliverer.heard[0] == b"acme/job_1"
    assert deliverer.ends == ["run", "close"]
    await redis.aclose()


async def test_requests_are_written_down_at_the_end(redis):
    """What was counted since the last time is there when the process ends in order."""
    usage = UsageStore(redis, ttl_s=86_400, image_ttl_s=86_400, clock_ms=now_ms)
    meter = UsageMeter(usage)
    async with metering(meter):
        for _ in range(7):
            meter.count(TenantId("acme"))
    [today] = await usage.read_days(TenantId("acme"), 1)
    assert today.num_requests == 7


async def test_an_eraser_that_fails_is_not_the_last_and_lists_tenants_once():
    """Whatever it fails with; what must be done once is done until it succeeds."""

    class Eraser:
        num_lists, num_looks = 0, 0

        async def list_known(self):
            self.num_lists += 1
            if self.num_lists == 1:
                raise RuntimeError("a fault of ours")

        async def look(self):
            self.num_looks += 1
            if self.num_looks == 1:
                raise StoreUnavailable("Redis is away")

    eraser = Eraser()
    async with erasing(eraser, pause_s=0.01), asyncio.timeout(PATIENCE_S):
        while eraser.num_looks < 3:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
    assert eraser.num_lists == 2
