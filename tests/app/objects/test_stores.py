"""What a store of objects does, in a local folder and on S3."""

import asyncio
import time

import pytest

from app.domain.ids import TenantId, make_job_id
from app.errors import NotFound
from app.files.contents import FileContents
from app.images.store import ImageStore, image_key
from app.images.sweeper import ImageSweeper

pytestmark = pytest.mark.anyio

PIECE = bytes(range(256)) * 4096  # 1 MiB


async def _all(chunks):
    return [key for keys in [each async for each in chunks] for key in keys]


@pytest.fixture
def contents(make_folder):
    """Files."""
    return make_folder(FileContents)


async def test_what_is_put_is_read_whole_in_parts_and_in_pieces(contents):
    """Its bytes, any range of them, and all of them one chunk after the other."""
    data = PIECE * 2 + b"the end"
    await contents.put("files/acme/a", data)
    assert await contents.get("files/acme/a") == data
    assert await contents.read_range("files/acme/a", 5, 9) == data[5:9]
    assert await contents.read_range("files/acme/a", len(data) - 3, len(data)) == b"end"
    assert b"".join([chunk async for chunk in await contents.read("files/acme/a")]) == data
    await contents.put("files/acme/a", b"other")
    assert await contents.get("files/acme/a") == b"other"


async def test_an_empty_object_is_one(contents):
    """It is there, and reading it gives nothing."""
    await contents.put("files/acme/none", b"")
    assert await contents.has("files/acme/none")
    assert [chunk async for chunk in await contents.read("files/acme/none")] == []


@pytest.mark.parametrize("num_pieces", [1, 12])
async def test_what_comes_in_pieces_is_there_when_it_is_whole(contents, num_pieces):
    """Less than a part of S3, and several; before its end nobody sees it."""
    writer = contents.writer("files/acme/big")
    for _ in range(num_pieces):
        await writer.write(PIECE)
    assert not await contents.has("files/acme/big")
    await writer.finish()
    assert await contents.get("files/acme/big") == PIECE * num_pieces


async def test_what_is_given_up_is_not_there(contents):
    """Neither under its name nor in a list."""
    writer = contents.writer("files/acme/big")
    for _ in range(12):
        await writer.write(PIECE)
    writer.abandon()
    assert not await contents.has("files/acme/big")
    assert await _all(contents.list_below("files/")) == []


async def test_what_is_absent_is_not_found(contents):
    """However it is asked for; to remove it is no error."""
    for ask in (contents.get, contents.read, lambda key: contents.read_range(key, 0, 1)):
        with pytest.raises(NotFound):
            await ask("files/acme/nothing")
    with pytest.raises(NotFound):
        await contents.copy("files/acme/nothing", "files/acme/other")
    assert not await contents.has("files/acme/nothing")
    await contents.delete("files/acme/nothing")


async def test_a_copy_outlives_what_it_was_made_of(contents):
    """Both keys, then one."""
    await contents.put("files/acme/a", b"1")
    await contents.copy("files/acme/a", "batches/acme/a")
    await contents.delete("files/acme/a")
    assert await contents.get("batches/acme/a") == b"1"
    assert not await contents.has("files/acme/a")


async def test_a_tenants_place_is_listed_and_removed_and_no_other(contents):
    """More than a page of a list; a tenant whose name begins alike keeps its own."""
    mine = [f"files/acme/{number:03d}" for number in range(230)]
    others = ["files/acme2/a", "files/bolt/a", "images/acme/a"]
    for key in (*mine, *others):
        await contents.put(key, b"1")
    assert sorted(await _all(contents.list_below("files/acme/"))) == mine
    assert await contents.delete_under("acme") == 230
    left = await _all(contents.list_below("files/")) + await _all(contents.list_below("images/"))
    assert sorted(left) == sorted(others)


async def test_the_sweep_of_images_takes_what_is_old(redis, make_folder):
    """By the store's own times of writing, and of images alone."""
    images, now_s = make_folder(ImageStore), time.time()
    old, young = (image_key(TenantId("acme"), make_job_id(number, b"12345678"), 1, 0) for number in (1, 2))
    await images.put(old, b"png")
    await images.put("notes/a", b"mine")
    await asyncio.sleep(2.1)  # the store's times are whole seconds
    await images.put(young, b"png")
    sweeper = ImageSweeper(redis, images, image_ttl_s=600, clock_ms=lambda: int((now_s + 601.1) * 1000))
    assert await sweeper.sweep() == 1
    assert [await images.has(key) for key in (old, young, "notes/a")] == [False, True, True]
