"""What only a store across a network does: it refuses us, is away, and answers slowly."""

import asyncio
import time
from datetime import timedelta

import pytest

from app.errors import ConfigurationError, StoreUnavailable
from app.files.contents import FileContents

pytestmark = pytest.mark.anyio

KEY = "files/acme/a"


@pytest.fixture
def bucket(s3_server):
    """A new one."""
    return s3_server.make_bucket()


def _contents(s3_server, bucket, **changed):
    return FileContents(s3_server.store(bucket, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bucket": "nobodys"}, "NoSuchBucket.*correct the bucket in SPARKE_IMAGE_URL"),
        ({"secret_access_key": "wrong"}, "SignatureDoesNotMatch.*AWS_SECRET_ACCESS_KEY"),
        ({"access_key_id": "AKIANOBODY"}, "InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"),
        ({"client_options": {}}, "AWS_ALLOW_HTTP=true"),
    ],
)
async def test_a_store_that_refuses_us_is_a_wrong_setting(s3_server, bucket, changed, message):
    """At the start it is told in one line, with what to correct; what is asked of it later is for now, and never `not found`."""
    given = {"bucket": bucket, **changed}
    contents = _contents(s3_server, **given)
    with pytest.raises(ConfigurationError, match=message) as told:
        await contents.check()
    assert "\n" not in str(told.value)
    for ask in (contents.put(KEY, b"1"), contents.get(KEY), _write(contents)):
        with pytest.raises(StoreUnavailable) as refused:
            await ask
        assert "\n" not in str(refused.value)
        assert "Debug" not in str(refused.value)


async def _write(contents):
    writer = contents.writer(KEY)
    await writer.write(b"1")
    await writer.finish()


async def test_a_good_store_passes(s3_server, bucket):
    """And nothing is left in it."""
    await _contents(s3_server, bucket).check()
    assert s3_server.keys(bucket) == []


async def test_a_store_that_was_away_has_what_it_had(s3_server, bucket):
    """While it is stopped everything is StoreUnavailable, soon; a start then is none's fault. Later all is there."""
    contents = _contents(s3_server, bucket)
    await contents.put(KEY, b"1")
    s3_server.door.shut()
    try:
        began_s = time.monotonic()
        for ask in (contents.put(KEY, b"2"), contents.get(KEY), contents.delete(KEY), _write(contents)):
            with pytest.raises(StoreUnavailable):
                await ask
        await contents.check()
        assert time.monotonic() - began_s < 100, (
            "the library's own patience is three minutes, for each of them"
        )
    finally:
        s3_server.door.open()
    assert await contents.get(KEY) == b"1"


async def test_whoever_reads_may_be_slow(s3_server, bucket):
    """An object takes longer to read than any one request may take."""
    options = {"allow_http": True, "timeout": timedelta(seconds=4)}
    contents = _contents(s3_server, bucket, client_options=options)
    data = bytes(24 * 2**20)
    await _contents(s3_server, bucket).put(KEY, data)
    num_bytes = 0
    async for chunk in await contents.read(KEY):
        num_bytes += len(chunk)
        await asyncio.sleep(0.25)
    assert num_bytes == len(data)


async def test_retries_are_bounded():
    """What a URL opens gives up within seconds where nobody answers; the library's own patience is three minutes."""
    contents = FileContents.open("s3://nobody/at-all")
    assert contents._store.retry_config["max_retries"] == 3
    assert contents._store.retry_config["retry_timeout"] == timedelta(seconds=10)
