"""Image bytes in an object store."""

from pathlib import Path

import pytest

from app.domain.ids import TenantId, make_job_id
from app.errors import ConfigurationError, NotFound, StoreUnavailable
from app.images.store import ImageStore, image_key
from app.objects.folder import flush_to_disk

pytestmark = pytest.mark.anyio

JOB = make_job_id(5, b"12345678")
KEY = image_key(TenantId("acme"), JOB, 2, 0)


@pytest.mark.parametrize("scheme", ["file", "memory"])
async def test_an_image_comes_back_as_it_was(tmp_path, scheme):
    """In a folder that is made where it is missing, blanks in its name, and in another kind of store."""
    url = (tmp_path / "new folder" / "images").as_uri() if scheme == "file" else "memory:///"
    store = ImageStore.open(url)
    data = bytes(range(256)) * 100
    await store.put(KEY, data)
    assert await store.get(KEY) == data
    if scheme == "file":
        assert (tmp_path / "new folder" / "images" / KEY).read_bytes() == data


async def test_a_removed_image_is_not_found(tmp_path):
    """Removing is idempotent, and afterwards there is nothing to get."""
    store = ImageStore.open(tmp_path.as_uri())
    await store.put(KEY, b"1")
    await store.delete(KEY)
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await store.get(KEY)


async def test_a_worker_that_lost_its_job_overwrites_nothing():
    """Two starts of a job write to different places."""
    assert f"images/acme/{JOB}/2-0.png" == KEY
    assert image_key(TenantId("acme"), JOB, 3, 0) != KEY


async def test_a_store_that_cannot_be_written_is_unavailable(tmp_path):
    """A failing disk is the service's own error, which names the image."""
    store = ImageStore.open(tmp_path.as_uri())
    (tmp_path / "images").write_text("a file where a folder is needed", encoding="utf-8")
    with pytest.raises(StoreUnavailable, match=KEY):
        await store.put(KEY, b"1")


@pytest.mark.parametrize("url", ["gopher://x/y", "file:///proc/none/images"])
def test_a_url_that_cannot_be_opened_is_a_wrong_setting(url):
    """The process does not start, and the message names the URL."""
    with pytest.raises(ConfigurationError, match=url):
        ImageStore.open(url)


async def test_an_image_is_on_the_disk_before_put_returns(tmp_path):
    """The whole file under its name first, then each folder that may be new, up to the store's own."""
    folder = tmp_path / "images here"
    flushed: list[tuple[Path, bytes | None]] = []

    def flush(path: Path) -> None:
        flush_to_disk(path)
        flushed.append((path, path.read_bytes() if path.is_file() else None))

    store = ImageStore.open(folder.as_uri(), flush=flush)
    await store.put(KEY, b"whole")
    file = folder / KEY
    folders = [file.parent, file.parent.parent, folder / "images", folder]
    assert flushed == [(file, b"whole"), *((place, None) for place in folders)]


async def test_a_disk_that_loses_what_is_written_is_unavailable(tmp_path):
    """What the system says at the flush is as if the write had failed; other stores are durable without one."""

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with pytest.raises(StoreUnavailable, match=KEY):
        await ImageStore.open(tmp_path.as_uri(), flush=fail).put(KEY, b"1")
    await ImageStore.open("memory:///", flush=fail).put(KEY, b"1")


def test_the_flush_asks_the_system():
    """What cannot be flushed, as a device without storage, is refused by the system."""
    with pytest.raises(OSError, match="Invalid argument"):
        flush_to_disk(Path("/dev/null"))
