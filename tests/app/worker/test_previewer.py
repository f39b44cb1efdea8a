"""Previews reach the store and the job's events, and never hold up or spoil the job."""

import dataclasses
import io

import pytest
from PIL import Image

from app.domain.job import JobState
from app.errors import StoreUnavailable
from app.jobs.events import JobEvents
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
    assert [event.type for event in await _events(bench, record.job)] == [
        "queued",
        "running",
        "progress",
        "succeeded",
    ]


async def test_previews_of_a_lost_job_are_not_told(bench, make_job):
    """Its fence is another's: nothing enters its events."""
    [reserved] = await bench.reserve(_wanting(make_job(1), 1))
    stale = dataclasses.replace(reserved, fence=reserved.fence - 1)
    assert await bench.queue.show(stale, 0, 0, "images/acme/x.png") is False
    assert await bench.queue.show(reserved, 0, 0, "images/acme/x.png") is True
    await bench.runner.run([reserved])
    shown = [event for event in await _events(bench, reserved.job) if event.type == "preview"]
    assert [event.fields["key"].startswith("images/acme/job_") for event in shown] == [False, True]
