"""What a worker says of itself, and when."""

import asyncio
from contextlib import suppress

import pytest
from patience import PATIENCE_S

from app.domain.ids import ModelId, WorkerId
from app.errors import StoreUnavailable
from app.jobs.types import WorkerInfo
from app.telemetry.metrics import Metrics
from app.worker.heartbeat import Heartbeat, repeat

pytestmark = pytest.mark.anyio

INFO = WorkerInfo(WorkerId("one"), "loading", (ModelId("toy"),), started_at_ms=5)


class NotingRegistry:
    """Notes phases, and is away for the first beats."""

    def __init__(self, num_failures=0):
        self.phases: list[str] = []
        self.num_failures = num_failures
        self.heard = asyncio.Event()

    async def beat(self, info):
        """Note the phase, or fail."""
        self.heard.set()
        if self.num_failures > 0:
            self.num_failures -= 1
            raise StoreUnavailable("away")
        self.phases.append(info.phase)

    async def next_beat(self):
        """Wait for another beat."""
        self.heard.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self.heard.wait()


async def _end(task):
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_new_phase_is_told_at_once():
    """A worker that drains does not wait for its next beat to say so."""
    registry = NotingRegistry()
    heartbeat = Heartbeat(registry, INFO, interval_s=600, metrics=Metrics())
    task = asyncio.create_task(heartbeat.run())
    for phase in ("ready", "draining"):
        await registry.next_beat()
        heartbeat.enter(phase)
    await registry.next_beat()
    await _end(task)
    assert registry.phases == ["loading", "ready", "draining"]


async def test_how_models_edit_is_told_once_it_is_known():
    """From the phase on in which it was said."""
    told = []

    class Noting:
        async def beat(self, info):
            """Note it."""
            told.append(info.edits)

    heartbeat, able = (
        Heartbeat(Noting(), INFO, interval_s=600, metrics=Metrics()),
        {INFO.models[0]: frozenset({"image"})},
    )
    await heartbeat.beat()
    heartbeat.enter("ready", edits=able)
    await heartbeat.beat()
    heartbeat.enter("draining")
    await heartbeat.beat()
    assert told == [{}, able, able]


async def test_a_beat_that_is_lost_is_followed_by_others():
    """An outage ends no heartbeat."""
    registry = NotingRegistry(num_failures=2)
    task = asyncio.create_task(Heartbeat(registry, INFO, interval_s=0.01, metrics=Metrics()).run())
    for _ in range(4):
        await registry.next_beat()
    await _end(task)
    assert registry.num_failures == 0
    assert registry.phases


async def test_the_first_beat_tells_of_an_outage():
    """Who starts must know that nobody heard of it."""
    with pytest.raises(StoreUnavailable):
        await Heartbeat(NotingRegistry(num_failures=1), INFO, interval_s=1, metrics=Metrics()).beat()


async def test_an_operation_is_repeated_through_errors_of_the_service_only():
    """StoreUnavailable is logged and passed over; a fault of the code is raised."""
    errors = [StoreUnavailable("away"), None, ValueError("a fault")]

    async def operation():
        error = errors.pop(0)
        if error is not None:
            raise error

    with pytest.raises(ValueError, match="a fault"):
        await repeat(operation, "operation_failed", interval_s=0.001)
    assert errors == []
