"""Images that no job ended with are found and removed, and nobody else's are."""

import os
import time

import pytest

from app.domain.result import Failure
from app.errors import StoreUnavailable
from app.images.store import ImageStore, image_key, picture_key, preview_key
from app.jobs import keys
from app.jobs.orphans import OrphanSweeper
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio

GRACE_S = 3600.0
FAILURE = Failure("out_of_memory", "no room")


@pytest.fixture
def images(tmp_path):
    """A store in a folder."""
    return ImageStore.open(tmp_path.as_uri(), flush=lambda _path: None)


@pytest.fixture
def sweeper(bench, images, tmp_path):
    """A sweeper at a time when all that was written up to now is old enough."""
    (tmp_path / "now").write_text("")
    at_ms = (tmp_path / "now").stat().st_mtime_ns // 1_000_000
    return OrphanSweeper(bench.redis, images, clock_ms=lambda: at_ms + int(GRACE_S * 1000) + 60_000)


async def _reserve(bench, job):
    await bench.store().accept(job)
    (reserved,) = await bench.queue().reserve((job.request.model,), await bench.live("w1"), 4, 0)
    return reserved


async def _put(images, job, fence):
    names = [image_key(job.tenant_id, job.job_id, fence, index) for index in range(job.request.num_images)]
    for name in names:
        await images.put(name, b"png")
    return names


def _stored(tmp_path):
    return {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}


async def test_a_zombies_images_go_and_the_jobs_own_stay(bench, images, sweeper, tmp_path):
    """A worker wrote under a fence that it had lost, before and after another one committed."""
    job = bench.job(num_images=2)
    await _reserve(bench, job)
    await _put(images, job, 1)
    await bench.reclaimer().reclaim(job.request.model)
    (again,) = await bench.queue().reserve((job.request.model,), await bench.live("w2"), 4, 0)
    own = await _put(images, job, again.fence)
    assert await bench.queue().commit(again, bench.result(again), bench.entries(again)) is not None
    assert await sweeper.sweep() == 2
    assert _stored(tmp_path) == set(own)


async def test_previews_go_once_their_job_has_ended(bench, images, sweeper, tmp_path):
    """They were shown while it ran; until its end they stay."""
    reserved = await _reserve(bench, bench.job())
    job = reserved.job
    preview = preview_key(job.tenant_id, job.job_id, reserved.fence, 0, number=1)
    await images.put(preview, b"png")
    own = await _put(images, job, reserved.fence)
    assert await sweeper.sweep() == 0
    await bench.redis.delete(OrphanSweeper.KEY)
    await bench.queue().commit(reserved, bench.result(reserved), [])
    assert await sweeper.sweep() == 1
    assert _stored(tmp_path) == set(own)


@pytest.mark.parametrize("state", ["queued", "running", "failed", "cancelled", "succeeded"])
async def test_a_picture_stays_until_its_job_has_ended(bench, images, sweeper, tmp_path, state):
    """However it ended; of one that still waits or runs it goes only with the record."""
    job = bench.job()
    pictures = [picture_key(job.tenant_id, job.job_id, part) for part in ("picture", "mask")]
    for name in pictures:
        await images.put(name, b"png")
    if state in ("queued", "cancelled"):
        await bench.store().accept(job)
        if state == "cancelled":
            await bench.store().cancel(job.tenant_id, job.job_id)
    else:
        reserved = await _reserve(bench, job)
        if state == "failed":
            await bench.queue().fail(reserved, FAILURE)
        if state == "succeeded":
            pictures += await _put(images, job, reserved.fence)
            await bench.queue().commit(reserved, bench.result(reserved), [])
    is_over = state not in ("queued", "running")
    assert await sweeper.sweep() == (2 if is_over else 0)
    assert _stored(tmp_path) == set(pictures[2:] if is_over else pictures)
    if is_over:
        return
    await bench.redis.delete(OrphanSweeper.KEY, keys.job_key(job.tenant_id, job.job_id))
    assert await sweeper.sweep() == 2
    assert _stored(tmp_path) == set(pictures[2:])


async def test_a_picture_whose_job_never_was_goes_after_the_grace(bench, images, sweeper, tmp_path):
    """An API died between the picture and its job; one that is about to be accepted is younger than the grace."""
    job = bench.job()
    await images.put(picture_key(job.tenant_id, job.job_id, "picture"), b"png")
    young = OrphanSweeper(bench.redis, images, clock_ms=lambda: int(time.time() * 1000))
    assert await young.sweep() == 0
    await bench.redis.delete(OrphanSweeper.KEY)
    assert await sweeper.sweep() == 1
    assert _stored(tmp_path) == set()


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_job_that_ended_without_images_keeps_none(bench, images, sweeper, tmp_path, how):
    """It wrote some of them before it failed, or before its cancel was seen."""
    reserved = await _reserve(bench, bench.job())
    await _put(images, reserved.job, reserved.fence)
    if how == "cancelled":
        await bench.store().cancel(reserved.job.tenant_id, reserved.job.job_id)
    assert (await bench.queue().fail(reserved, FAILURE)).value == how
    assert await sweeper.sweep() == 1
    assert _stored(tmp_path) == set()


async def test_a_job_that_has_not_ended_keeps_all(bench, images, sweeper, tmp_path):
    """One runs, one was taken back and waits: their images may be committed yet, or are judged when they have ended."""
    kept = set()
    for is_taken_back in (False, True):
        reserved = await _reserve(bench, bench.job())
        kept.update(await _put(images, reserved.job, reserved.fence))
        if is_taken_back:
            await bench.queue().give_back(reserved)
    assert await sweeper.sweep() == 0
    assert _stored(tmp_path) == kept


async def test_what_cannot_be_judged_stays(bench, images, sweeper, tmp_path):
    """Images whose record is gone, or cannot be read, live as long as any image; what is none of ours is not touched."""
    kept = set(await _put(images, bench.job(), 1))
    for name, value in (("result", "{"), ("state", "asleep")):
        reserved = await _reserve(bench, bench.job())
        kept.update(await _put(images, reserved.job, 7))
        await bench.queue().commit(reserved, bench.result(reserved), [])
        await bench.redis.hset(keys.job_key(reserved.job.tenant_id, reserved.job.job_id), name, value)
    for foreign in ("images/notes.png", "images/acme/holiday/1-0.png"):
        await images.put(foreign, b"png")
        kept.add(foreign)
    assert await sweeper.sweep() == 0
    assert _stored(tmp_path) == kept


async def test_what_is_young_stays(bench, images, sweeper, tmp_path):
    """It may belong to a run that is under way; a part of an image, whose writer lives, as well."""
    reserved = await _reserve(bench, bench.job(num_images=2))
    old, young = await _put(images, reserved.job, reserved.fence)
    await bench.queue().fail(reserved, FAILURE)
    at_s = (tmp_path / young).stat().st_mtime + 120
    parts = {f"{young}#1": at_s, f"{old}#1": at_s - 120}
    for part in parts:
        (tmp_path / part).write_bytes(b"pn")
    for name, written_at_s in {young: at_s, **parts}.items():
        os.utime(tmp_path / name, (written_at_s, written_at_s))
    assert await sweeper.sweep() == 2
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png*"))
    assert left == [young, f"{young}#1"]


async def test_one_worker_of_all_sweeps(bench, images, sweeper, tmp_path):
    """A second sweep within the interval looks at nothing; the next interval's does, also through many pages."""
    assert await sweeper.sweep() == 0
    for number in range(130):
        reserved = await _reserve(bench, bench.job())
        await _put(images, reserved.job, reserved.fence + number % 2)
        await bench.queue().commit(reserved, bench.result(reserved), [])
    assert await sweeper.sweep() == 0
    assert 0 < await bench.redis.pttl(OrphanSweeper.KEY) <= OrphanSweeper.INTERVAL_S * 1000
    await bench.redis.delete(OrphanSweeper.KEY)
    assert await sweeper.sweep() == 65
    assert len(_stored(tmp_path)) == 65


async def test_without_redis_nothing_goes(bench, images, tmp_path):
    """Nobody can say what is an orphan then; the worker logs it and tries again."""
    with EmbeddedRedis.start(tmp_path / "own") as server:
        redis = connect(server.url, timeout_s=1.0)
    own = await _put(images, bench.job(), 1)
    with pytest.raises(StoreUnavailable):
        await OrphanSweeper(redis, images, clock_ms=lambda: 2**45).sweep()
    await redis.aclose()
    assert _stored(tmp_path) == set(own)
