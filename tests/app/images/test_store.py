"""Image bytes in an object store."""

import pytest

from app.domain.ids import TenantId, make_job_id
from app.errors import ConfigurationError, NotFound, StoreUnavailable
from app.images.store import ImageStore, image_key

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
