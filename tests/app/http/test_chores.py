"""What an API process does beside answering."""

import asyncio

import pytest

from app.errors import StoreUnavailable
from app.http.chores import sweeping_files
from app.telemetry.metrics import Metrics

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
    async with sweeping_files(sweeper, metrics), asyncio.timeout(20):
        await sweeper.is_sure.wait()
    num_sweeps = sweeper.num_sweeps
    await asyncio.sleep(0.1)
    assert sweeper.num_sweeps == num_sweeps
    assert metrics.registry.get_sample_value("sparke_files_swept_total") >= 4
