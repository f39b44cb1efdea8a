"""Images past their time to live."""

import os

import pytest

from app.domain.ids import TenantId, make_job_id
from app.errors import StoreUnavailable
from app.images.store import ImageStore, image_key, picture_key
from app.images.sweeper import ImageSweeper
from app.jobs.workers import now_ms

pytestmark = pytest.mark.anyio

TTL_S = 600


def _key(number: int) -> str:
    return image_key(TenantId("acme"), make_job_id(number, b"12345678"), 1, 0)


@pytest.fixture
def images(tmp_path):
    """A store in a folder."""
    return ImageStore.open(tmp_path.as_uri())


def _age(tmp_path, key, age_s):
    at_s = now_ms() / 1000 - age_s
    os.utime(tmp_path / key, (at_s, at_s))


async def test_old_images_go_and_younger_ones_stay(redis, images, tmp_path):
    """Nothing is left of the old ones, not even their folders; what is no image of ours is not touched."""
    keys = [_key(number) for number in range(230)]
    for number, key in enumerate(keys):
        await images.put(key, b"png")
        _age(tmp_path, key, TTL_S + 5 if number < 220 else TTL_S - 5)
    (tmp_path / "notes.txt").write_text("mine")
    _age(tmp_path, "notes.txt", 10 * TTL_S)
    sweeper = ImageSweeper(redis, images, image_ttl_s=TTL_S, clock_ms=now_ms)
    assert await sweeper.sweep() == 220
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert left == sorted(keys[220:])
    assert len(list((tmp_path / "images/acme").iterdir())) == 10
    assert (tmp_path / "notes.txt").exists()


async def test_pictures_of_edits_live_no_longer_than_images(redis, images, tmp_path):
    """Whatever their job's record says."""
    for age_s, job_id in ((TTL_S + 5, make_job_id(1, bytes(8))), (TTL_S - 5, make_job_id(2, bytes(8)))):
        for part in ("picture", "mask"):
            key = picture_key(TenantId("acme"), job_id, part)
            await images.put(key, b"png")
            _age(tmp_path, key, age_s)
    assert await ImageSweeper(redis, images, image_ttl_s=TTL_S, clock_ms=now_ms).sweep() == 2
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {make_job_id(2, bytes(8))}


async def test_what_a_killed_worker_was_writing_goes(redis, images, tmp_path):
    """Parts of an image that never became whole; the store itself does not list them."""
    await images.put(_key(1), b"png")
    (tmp_path / f"{_key(1)}#1").write_bytes(b"pn")
    _age(tmp_path, f"{_key(1)}#1", TTL_S + 5)
    assert await ImageSweeper(redis, images, image_ttl_s=TTL_S, clock_ms=now_ms).sweep() == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [_key(1).rpartition("/")[2]]


async def test_one_worker_at_a_time_sweeps(redis, images, tmp_path):
    """A second sweep within the interval looks at nothing; the next interval's does."""
    sweepers = [ImageSweeper(redis, images, image_ttl_s=TTL_S, clock_ms=now_ms) for _ in range(2)]
    assert await sweepers[0].sweep() == 0
    await images.put(_key(1), b"png")
    _age(tmp_path, _key(1), 2 * TTL_S)
    assert await sweepers[1].sweep() == 0
    assert 0 < await redis.pttl(ImageSweeper.KEY) <= sweepers[0].interval_s * 1000
    await redis.delete(ImageSweeper.KEY)
    assert await sweepers[1].sweep() == 1


@pytest.mark.parametrize(("image_ttl_s", "interval_s"), [(30 * 86_400, 3600), (60, 6)])
async def test_an_image_outlives_its_time_by_little(redis, images, image_ttl_s, interval_s):
    """An hour at most, and less where images live shortly."""
    sweeper = ImageSweeper(redis, images, image_ttl_s=image_ttl_s, clock_ms=now_ms)
    assert sweeper.interval_s == interval_s


async def test_a_store_that_cannot_be_listed_is_unavailable(redis, tmp_path):
    """The worker logs it and goes on; the next sweep tries again."""
    images = ImageStore.open(tmp_path.as_uri())
    (tmp_path / "images").symlink_to("images")
    with pytest.raises(StoreUnavailable):
        await ImageSweeper(redis, images, image_ttl_s=TTL_S, clock_ms=now_ms).sweep()
