"""`/v1/files` as the official client uses it."""

import asyncio
import io
import re
import time
from collections.abc import Callable
from urllib.parse import unquote

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S

from app.domain.file import FilePurpose, StoredFile
from app.domain.ids import TenantId, make_file_id
from app.files.contents import FileContents
from app.files.keys import content_key
from app.files.store import FileStore
from app.http.forms.uploads import clean_filename
from app.http.routes.files import disposition
from app.jobs.workers import now_ms
from app.redis.connection import connect
from app.settings import Settings
from app.tenants.keys import KeyStore

ServeApi = Callable[[Settings], str]

LINES = b'{"custom_id": "1"}\n{"custom_id": "2"}\n'
DEFAULT = TenantId("default")


def test_a_file_goes_through_all_that_a_client_does(client: openai.OpenAI):
    """Created, waited for, found, listed, read to the byte, deleted; then it is nowhere, also the second time."""
    before_s = int(time.time())
    made = client.files.create(file=("tasks.jsonl", LINES), purpose="batch")
    assert made.id.startswith("file-")
    assert (made.object, made.bytes, made.filename) == ("file", len(LINES), "tasks.jsonl")
    assert (made.purpose, made.status) == ("batch", "processed")
    assert before_s <= made.created_at <= time.time()
    assert made.expires_at == made.created_at + 30 * 86_400
    assert client.files.wait_for_processing(made.id, poll_interval=0.01) == made
    assert client.files.retrieve(made.id) == made
    assert made in list(client.files.list())
    assert client.files.content(made.id).read() == LINES
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    for again in (client.files.delete, client.files.retrieve, client.files.content):
        with pytest.raises(openai.NotFoundError) as caught:
            again(made.id)
        assert caught.value.code == "not_found"
    assert made.id not in [file.id for file in client.files.list()]


def test_a_file_expires_when_it_was_told_to(client: openai.OpenAI):
    """The bracketed fields arrive as what they mean."""
    made = client.files.create(
        file=("a.jsonl", LINES), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600


@pytest.mark.parametrize(
    ("expires_after", "param", "code"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds", "invalid_value"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds", "invalid_value"),
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after.anchor", "invalid_value"),
        ({"anchor": "created_at"}, "expires_after.seconds", "missing_required_parameter"),
        ({"seconds": 3600}, "expires_after.anchor", "missing_required_parameter"),
    ],
)
def test_an_expiry_outside_its_range_is_refused(client: openai.OpenAI, expires_after, param, code):
    """An hour to thirty days after its creation, with both members."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a.jsonl", LINES), purpose="batch", expires_after=expires_after)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision", "user_data", "evals", "lunch"])
def test_another_purpose_is_refused(client: openai.OpenAI, purpose):
    """With a message that says which one is taken."""
    with pytest.raises(openai.BadRequestError, match="'batch'") as caught:
        client.files.create(file=("a.jsonl", LINES), purpose=purpose)
    assert (caught.value.param, caught.value.code) == ("purpose", "invalid_value")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_client_pages_through_all_files(serve_api: ServeApi, settings: Settings, order):
    """In order, each once, though files go while it reads: the one that its cursor names among them."""
    url = serve_api(settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=4"}))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        made = [client.files.create(file=(f"{n}.jsonl", LINES), purpose="batch").id for n in range(7)]
        expected = made if order == "asc" else made[::-1]
        seen = []
        for file in client.files.list(limit=2, order=order):
            seen.append(file.id)
            client.files.delete(file.id)
        assert seen == expected
        assert client.files.list().data == []


def test_a_page_says_whether_there_are_more(serve_api: ServeApi, settings: Settings):
    """`has_more` is exact, also at the last full page; a purpose of which there are no files has none."""
    url = serve_api(settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=5"}))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        made = [client.files.create(file=(f"{n}.jsonl", LINES), purpose="batch").id for n in range(4)]
        first = client.files.list(limit=2, order="asc")
        assert ([file.id for file in first.data], first.has_more) == (made[:2], True)
        last = client.files.list(limit=2, order="asc", after=made[1])
        assert ([file.id for file in last.data], last.has_more) == (made[2:], False)
        assert [file.id for file in client.files.list(purpose="batch")] == made[::-1]
        assert client.files.list(purpose="batch_output").data == []
        assert client.files.list(purpose="vision").data == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("purpose=x", "purpose"),
    ],
)
def test_a_wrong_query_is_refused(http: httpx.Client, query, param):
    """With the member that is at fault."""
    answer = http.get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_cannot_be_an_id_names_no_file(client: openai.OpenAI):
    """404, as for an id that nobody ever had."""
    for file_id in ("file-abc123", "batch_1", make_file_id(1, bytes(12))):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file_id)


def test_another_tenants_file_is_not_found(serve_api: ServeApi, settings: Settings):
    """Neither seen, read, listed nor deleted, and it is still there for its own."""
    own = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=6"})
    url = serve_api(own)
    acme, bolt = _keys_of(url, own, "acme", "bolt")
    made = acme.files.create(file=("a.jsonl", LINES), purpose="batch")
    for deed in (bolt.files.retrieve, bolt.files.content, bolt.files.delete):
        with pytest.raises(openai.NotFoundError):
            deed(made.id)
    assert bolt.files.list().data == []
    assert acme.files.content(made.id).read() == LINES
    nobody = httpx.get(f"{url}/v1/files/{made.id}/content", timeout=PATIENCE_S)
    assert nobody.status_code == 401


def _keys_of(url, settings, *tenants):
    async def make():
        redis = connect(settings.redis_url)
        keys = [await KeyStore(redis).create(TenantId(tenant)) for tenant in tenants]
        await redis.aclose()
        return keys

    return [openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in asyncio.run(make())]


def test_content_comes_as_a_download(client: openai.OpenAI, http: httpx.Client):
    """Bytes that no browser takes for a page, under the file's own name, whatever it is."""
    name = 'über "50%" \\ <b>.jsonl'
    made = client.files.create(file=(name, LINES), purpose="batch")
    answer = http.get(f"/v1/files/{made.id}/content", headers={"accept": "application/binary"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(len(LINES))
    said = answer.headers["content-disposition"]
    assert said.startswith('attachment; filename="')
    assert said.isascii()
    assert "\r" not in said


@given(st.text(min_size=1, max_size=60))
def test_a_name_in_a_header_is_the_name(text):
    """Every name that is kept stands there exactly, in ASCII, for clients that read `filename*`."""
    name = clean_filename(text)
    said = disposition(name)
    assert said.isascii()
    assert said.isprintable()
    assert unquote(said.partition("filename*=UTF-8''")[2]) == name
    assert re.fullmatch(r'attachment; filename="[^"\\]*"; filename\*=[^";]*', said)


def test_the_document_says_how_to_upload(http: httpx.Client):
    """The form with its bracketed fields, the download's type, and that a key is needed."""
    paths = http.get("/openapi.json").json()["paths"]
    upload = paths["/v1/files"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
    assert form["required"] == ["file", "purpose"]
    content = paths["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/octet-stream"}
    operations = [
        operation for path in paths if path.startswith("/v1/files") for operation in paths[path].values()
    ]
    assert len(operations) == 5
    assert all(operation["security"] for operation in operations)


def test_a_file_larger_than_a_chunk_comes_back(client: openai.OpenAI):
    """Several parts to the store and several chunks from it."""
    data = bytes(range(256)) * 20_000
    made = client.files.create(file=("big.jsonl", io.BytesIO(data)), purpose="batch")
    assert made.bytes == len(data)
    with client.files.with_streaming_response.content(made.id) as answer:
        assert b"".join(answer.iter_bytes()) == data


async def _put_expiring(settings, ttl_ms):
    redis = connect(settings.redis_url)
    store = FileStore(redis, max_files=10_000, clock_ms=now_ms)
    at_ms = now_ms()
    file = StoredFile(
        DEFAULT, make_file_id(at_ms, b"123456789abc"), "a", FilePurpose.BATCH, 2, at_ms, at_ms + ttl_ms
    )
    await FileContents.open(settings.file_store_url).put(content_key(DEFAULT, file.file_id), b"{}")
    await store.add(file)
    await redis.aclose()
    return file.file_id


@pytest.mark.anyio
async def test_an_expired_file_is_nowhere(settings: Settings, client: openai.OpenAI):
    """Neither read, listed nor deleted, from the moment of its expiry on and before any sweep."""
    file_id = await _put_expiring(settings, 600_000)
    assert client.files.content(file_id).read() == b"{}"
    file_id = await _put_expiring(settings, 500)
    await asyncio.sleep(0.6)
    for deed in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            deed(file_id)
    assert file_id not in [file.id for file in client.files.list()]
