"""Previews reach the store and the job's events, and never hold up or spoil the job."""

import asyncio
import dataclasses
import io
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import PATIENCE_S, eventually
from PIL import Image

from app.domain.ids import WorkerId
from app.domain.job import JobState
from app.errors import StoreUnavailable
from app.jobs.events import JobEvents
from app.jobs.types import ReservedJob
from app.worker.course.previewer import Previewer
from sparke_engine.diffusion.toy import prompt_digest, read_toy_image

pytestmark = pytest.mark.anyio


def _wanting(job, num_previews):
    return dataclasses.replace(job, num_previews=num_previews)


async def _events(bench, job):
    async with JobEvents(bench.redis) as events:
        return [event async for event in events.follow(job.tenant_id, job.job_id)]


async def test_each_job_gets_its_own(bench, make_job):
    """Two of three jobs of a batch want previews: each has its own, before its end, and they show its prompt and seeds."""
    jobs = [
        _wanting(make_job(1, prompt="one", num_images=2, steps=6), 2),
        make_job(2, prompt="two", steps=6),
        _wanting(make_job(3, prompt="three", seed=9, steps=6), 1),
    ]
    assert [record.state for record in await bench.run(*jobs)] == [JobState.SUCCEEDED] * 3
    for job, number in zip(jobs, (4, 0, 1), strict=True):
        events = await _events(bench, job)
        shown = [event.fields for event in events if event.type == "preview"]
        assert events[-1].type == "succeeded"
        assert len(shown) == number
        for fields in shown:
            png = await bench.images.get(fields["key"])
            seen = read_toy_image(Image.open(io.BytesIO(png)))
            assert seen == (prompt_digest(job.request.prompt), job.request.seeds[int(fields["image"])])


async def test_a_store_that_is_away_costs_the_preview_alone(open_bench, make_job):
    """The preview is left out, the job succeeds."""

    class Away:
        """Takes images and no previews."""

        def __init__(self):
            self.found = {}

        async def put(self, key, data):
            """As told."""
            if "preview" in key:
                raise StoreUnavailable("away")
            self.found[key] = data

        async def delete(self, key):
            """Forget it."""
            self.found.pop(key, None)

    images = Away()
    bench = open_bench(images=images)
    [record] = await bench.run(_wanting(make_job(1, steps=4), 2))
    assert (record.state, len(images.found)) == (JobState.SUCCEEDED, 1)
    told = [event.type for event in await _events(bench, record.job)]
    assert list(dict.fromkeys(told)) == ["queued", "running", "progress", "succeeded"]
    assert told.count("succeeded") == told.count("running") == 1


class _Told:
    """Takes every preview; `put` does as told."""

    def __init__(self, put):
        self._put, self.num_puts = put, 0

    async def put(self, key, data):
        """Count it, and do it."""
        self.num_puts += 1
        await self._put(key, data)

    async def show(self, *_told):
        """Take it."""
        return True


async def _show_three(make_job, put, *, late_s=PATIENCE_S):
    """Three previews of one job; how often something was to be written, and how long their batch waited for them."""
    told = _Told(put)
    reserved = ReservedJob(_wanting(make_job(1), 3), 1, WorkerId("one"), "1-0")
    with ThreadPoolExecutor(1) as encoders:
        async with Previewer(told, told, encoders, late_s=late_s) as previewer:
            previews = previewer.of(reserved)
            for number in range(3):
                await asyncio.to_thread(previews.show, number, [Image.new("RGB", (8, 8))])
            await eventually(lambda: told.num_puts)
            await asyncio.sleep(0.1)  # for what must not follow
            began_s = time.monotonic()
    return told.num_puts, time.monotonic() - began_s


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("unheard of")])
async def test_whatever_goes_wrong_ends_the_previews_alone(make_job, error):
    """The first error, expected or not, is the last attempt; nothing comes out of the context."""

    async def put(_key, _data):
        raise error

    assert (await _show_three(make_job, put))[0] == 1


async def test_a_store_that_hangs_does_not_hold_up_the_batch(make_job):
    """What is not shown soon after the batch is given up."""

    async def put(_key, _data):
        await asyncio.sleep(600)

    num_puts, took_s = await _show_three(make_job, put, late_s=0.2)
    assert num_puts == 1
    assert 0.2 <= took_s < PATIENCE_S


async def test_previews_of_a_lost_job_are_not_told(bench, make_job):
    """Its fence is another's: nothing enters its events."""
    [reserved] = await bench.reserve(_wanting(make_job(1), 1))
    stale = dataclasses.replace(reserved, fence=reserved.fence - 1)
    assert await bench.queue.show(stale, 0, 0, "images/acme/x.png") is False
    assert await bench.queue.show(reserved, 0, 0, "images/acme/x.png") is True
    await bench.runner.run([reserved])
    shown = [event for event in await _events(bench, reserved.job) if event.type == "preview"]
    assert [event.fields["key"].startswith("images/acme/job_") for event in shown] == [False, True]
