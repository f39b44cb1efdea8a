"""The end of a batch is counted once, as what it was, by whoever brought it about."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from app.batches.drive import BatchDrive
from app.domain.batch import Batch, BatchState
from app.errors import NotFound, StoreUnavailable
from app.files.keys import content_key
from tests.aids.lossy_way import lossy_client

pytestmark = pytest.mark.anyio


def _counted(desk):
    value = desk.metrics.registry.get_sample_value
    found = {state.value: value("sparke_batches_ended_total", {"state": state.value}) for state in BatchState}
    return {name: number for name, number in found.items() if number}


async def _run(drive):
    """What a driver does: the same again after an outage."""
    for _ in range(4):
        try:
            return await drive.run()
        except StoreUnavailable:
            continue
    raise AssertionError("no answer after four calls")


@pytest.mark.parametrize("num_lost", [1, 4])
async def test_an_end_whose_answer_was_lost_is_counted_once(desk, num_lost):
    """Whether the client repeats the command, or the driver finds that the batch has ended under its lease."""
    batch = await desk.create("w1")
    await desk.contents.delete(content_key(batch.tenant_id, batch.input_file_id))
    async with lossy_client(desk.redis) as (client, way):
        held = desk.held(batch, client)
        assert await held.acquire(60)
        drive = desk.drive(held, client)
        way.word, way.num_to_lose = b"batches-open", num_lost  # a key that ends alone touch
        assert await _run(drive)
        assert way.num_to_lose == 0
        assert await drive.run()
    assert _counted(desk) == {"failed": 1}


async def test_an_end_of_anothers_is_not_counted(desk):
    """Who had the batch before, and finds that it has ended since, did not end it."""
    batch = await desk.create("w1")
    await desk.contents.delete(content_key(batch.tenant_id, batch.input_file_id))
    held = desk.held(batch)
    assert await held.acquire(60)
    assert await _run(desk.drive(held))
    assert await _run(desk.drive(desk.held(batch)))
    assert _counted(desk) == {"failed": 1}


@dataclass
class _CancelledAmid:
    """An input that is gone, and whose batch is cancelled in the moment before that shows."""

    inputs: Any
    cancel: Any

    def __getattr__(self, name):
        return getattr(self.inputs, name)

    async def copy(self, *_keys):
        """Not found."""
        await self.cancel()
        raise NotFound("gone")


async def test_an_end_that_did_not_happen_is_not_counted(desk):
    """A batch was about to fail when it was cancelled: that is how it ended."""
    batch: Batch = await desk.create("w1")
    held = desk.held(batch)
    assert await held.acquire(60)
    inputs = _CancelledAmid(desk.inputs, lambda: desk.batches().cancel(batch.tenant_id, batch.batch_id))
    drive = BatchDrive(held, replace(desk.stores(), inputs=inputs), desk.limits, desk.metrics)
    assert await _run(drive)
    assert _counted(desk) == {"cancelled": 1}
