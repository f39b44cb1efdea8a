"""The official client edits pictures, unchanged, with the real worker and the weightless toy model."""

import asyncio
import base64
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from patience import PATIENCE_S, wait_until
from PIL import Image

from app.domain.ids import ModelId, WorkerId, parse_job_id
from app.images.store import picture_key
from app.jobs.types import WorkerInfo
from app.jobs.workers import WorkerRegistry, now_ms
from app.redis.connection import connect
from app.settings import Settings

ServeApi = Callable[[Settings], str]

pytestmark = pytest.mark.usefixtures("worker")


def png(image: Image.Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decoded(b64_json: str | None) -> Image.Image:
    """An answer's image."""
    return Image.open(io.BytesIO(base64.b64decode(b64_json or "")))


GREY = png(Image.new("RGB", (96, 64), (30, 30, 30)))
HOLE = Image.new("RGBA", (96, 64), "black")
HOLE.paste((0, 0, 0, 0), (0, 0, 48, 64))
MASK = png(HOLE)
UNSEEN = {"diversity": {"memory": {"read": False, "write": False}}}


def send(url: str, *, image: bytes = GREY, key: str | None = None, **fields: str) -> httpx.Response:
    """An edit as any client may send it."""
    headers = {} if key is None else {"idempotency-key": key}
    data = {"prompt": "a star", **fields}
    return httpx.post(
        f"{url}/v1/images/edits",
        files={"image": ("a.png", image)},
        data=data,
        headers=headers,
        timeout=PATIENCE_S,
    )


def stored(settings: Settings) -> set[str]:
    """The pictures and masks in the store."""
    folder = settings.data_dir / "images"
    return {
        (Path(where) / name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
        if name.startswith(("picture", "mask"))
    }


def test_an_edit_by_the_official_client(client: openai.OpenAI, http: httpx.Client):
    """Of the image's own size, near it at low strength; our members go into `extra_body`; it is a job like any."""
    extra = {
        "seed": 7,
        "steps": 10,
        "edit_strength": 0.1,
        "diversity": {"strength": 0, "memory": {"name": "edits"}},
    }
    answer = client.images.edit(
        model="toy", image=io.BytesIO(GREY), prompt="a red circle", n=2, size="auto", extra_body=extra
    )
    images = [decoded(image.b64_json) for image in answer.data or ()]
    assert [image.size for image in images] == [(96, 64)] * 2
    assert all(np.asarray(image, float)[16:].mean() < 60 for image in images)
    assert (answer.size, answer.model_extra["memory_version"]) == ("96x64", 0)
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == 6 * 4
    assert answer.usage.total_tokens == 3 + 6 * 4 + 2 * 6 * 4
    job_id = answer.data[0].id.rpartition("-")[0]
    job = http.get(f"/v1/jobs/{job_id}").json()
    assert (job["kind"], job["request"]["edit"]["strength"]) == ("edit", 0.1)
    assert job["request"]["memory"] == "edits"
    assert job_id in {found["id"] for found in http.get("/v1/jobs?limit=100").json()["data"]}
    later = client.images.generate(
        model="toy", prompt="a red circle", extra_body={"diversity": {"memory": {"name": "edits"}}}
    )
    assert later.data[0].model_extra["diversity"]["num_neighbours"] == 2


def test_a_mask_keeps_what_it_does_not_mark(client: openai.OpenAI):
    """The opaque half is the image's own, to the bit; without a strength the marked half is all the prompt's."""
    made = client.images.edit(image=("a.png", GREY), mask=("m.png", MASK), prompt="a star", extra_body=UNSEEN)
    pixels = np.asarray(decoded(made.data[0].b64_json))
    assert (pixels[:, 48:] == 30).all()
    assert (pixels[:, :48] != 30).mean() > 0.9


def test_one_image_in_a_list(client: openai.OpenAI):
    """The client then calls it `image[]`."""
    made = client.images.edit(image=[("a.png", GREY)], prompt="a star", size="48x32")
    assert made.size == "48x32"


def test_a_stream_has_the_events_of_edits(client: openai.OpenAI):
    """As the client's types have them: pictures on the way, then the images."""
    with client.images.edit(
        image=("a.png", GREY), prompt="a star", stream=True, partial_images=2, extra_body={"steps": 10}
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert decoded(events[-1].b64_json).size == (96, 64)
    assert events[-1].usage.input_tokens_details.image_tokens == 24


def test_by_url(client: openai.OpenAI):
    """The image by its signed URL."""
    made = client.images.edit(image=("a.png", GREY), prompt="a star", response_format="url")
    assert httpx.get(made.data[0].url or "", timeout=PATIENCE_S).content.startswith(b"\x89PNG")


def test_a_key_covers_the_images_bytes(api_url: str, settings: Settings):
    """Sent again it is the same job, and stores nothing more; with another image, mask or field it is refused."""
    first = send(api_url, key="spring")
    before = stored(settings)
    again = send(api_url, key="spring")
    assert first.status_code == again.status_code == 200, first.text
    assert first.json()["data"][0]["id"] == again.json()["data"][0]["id"]
    other = png(Image.new("RGB", (96, 64), (30, 30, 31)))
    files = {"image": ("a.png", GREY), "mask": ("m.png", MASK)}
    masked = httpx.post(
        f"{api_url}/v1/images/edits",
        files=files,
        data={"prompt": "a star"},
        headers={"idempotency-key": "spring"},
        timeout=PATIENCE_S,
    )
    for answer in (send(api_url, image=other, key="spring"), send(api_url, key="spring", n="2"), masked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert stored(settings) == before
    job_id = parse_job_id(first.json()["data"][0]["id"].rpartition("-")[0])
    mine = {Path(key).name for key in stored(settings) if job_id in key}
    assert mine == {"picture.png"}


def test_models_say_how_they_edit(http: httpx.Client):
    """What the worker that has it loaded can; nothing of a model that none has."""
    found = {model["id"]: model["edits"] for model in http.get("/v1/models").json()["data"]}
    assert found == {"toy": ["image", "mask"], "unserved": []}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"strength": "0.5"}, "unknown_parameter", "strength"),
        ({"n": "two"}, "invalid_type", "n"),
        ({"n": "11"}, "invalid_value", "n"),
        ({"diversity[strength]": "2"}, "invalid_value", "diversity.strength"),
        ({"prompt": " "}, "invalid_value", "prompt"),
        ({"size": "1000x1000"}, "invalid_value", "size"),
        ({"size": "64x64"}, "invalid_value", "size"),
        ({"model": "nobody"}, "model_not_found", "model"),
        ({"steps": "3", "edit_strength": "0.3"}, "invalid_value", "edit_strength"),
        ({"output_format": "webp"}, "invalid_value", "output_format"),
    ],
)
def test_wrong_fields_are_refused(api_url: str, settings: Settings, fields: dict, code: str, param: str):
    """In the one error shape, with the member at fault; nothing is stored."""
    before = stored(settings)
    answer = send(api_url, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        404 if code == "model_not_found" else 400,
        code,
        param,
    )
    assert stored(settings) == before


@pytest.mark.parametrize(
    ("files", "code", "param", "said"),
    [
        ([("image", GREY), ("image", GREY)], "invalid_value", "image", "exactly one"),
        ([("image[]", GREY), ("image[]", GREY)], "invalid_value", "image", "exactly one"),
        ([("mask", MASK)], "missing_required_parameter", "image", "required"),
        ([("image", b"")], "invalid_value", "image", "empty"),
        ([("image", b"GIF89a")], "invalid_value", "image", "PNG, JPEG or WebP"),
        ([("image", GREY), ("mask", GREY)], "invalid_value", "mask", "fully transparent"),
        ([("image", GREY), ("mask", png(HOLE.resize((64, 64))))], "invalid_value", "mask", "96x64"),
        ([("image", png(Image.new("RGB", (200, 200))))], "invalid_value", "image", "200x200"),
        ([("image", GREY), ("markup", MASK)], "unknown_parameter", "markup", "unknown member"),
        ([("image", GREY), ("masks", MASK)], "unknown_parameter", "masks", "did you mean 'mask'?"),
    ],
)
def test_wrong_files_are_refused(
    api_url: str, settings: Settings, files: list, code: str, param: str, said: str
):
    """Likewise."""
    before = stored(settings)
    sent = [(name, ("a.png", data)) for name, data in files]
    answer = httpx.post(
        f"{api_url}/v1/images/edits", files=sent, data={"prompt": "a star"}, timeout=PATIENCE_S
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert said in error["message"]
    assert stored(settings) == before


def test_a_file_where_a_field_belongs_and_the_reverse(api_url: str):
    """400 that says so."""
    asked = httpx.post(
        f"{api_url}/v1/images/edits",
        files={"prompt": (None, "a star"), "image": (None, "x")},
        timeout=PATIENCE_S,
    )
    error = asked.json()["error"]
    assert (asked.status_code, error["code"]) == (400, "invalid_multipart")
    assert error["message"].endswith("its part has no filename")
    asked = httpx.post(f"{api_url}/v1/images/edits", json={"prompt": "a star"}, timeout=PATIENCE_S)
    assert asked.status_code == 415


@pytest.fixture
def own(own_database: Settings, tmp_path: Path) -> Settings:
    """Settings of an API with images and a database of the test's own, and nobody who makes them."""
    models = own_database.models_file
    return own_database.model_copy(
        update={"data_dir": tmp_path, "models_file": models, "max_picture_bytes": 50_000}
    )


def test_files_above_the_bound_are_refused(serve_api: ServeApi, own: Settings):
    """413 that tells the limit; at the limit what is in the file decides."""
    url = serve_api(own)
    answer = send(url, image=b"1" * 50_001)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert "50000" in answer.json()["error"]["message"]
    assert send(url, image=b"1" * 50_000).status_code == 400
    assert send(url, image=b"1" * 3_000_000).status_code == 413
    assert send(url, prompt="a" * 20_000).json()["error"]["code"] == "invalid_multipart"
    assert stored(own) == set()


@contextmanager
def half_sent(
    url: str, *, pause_s: float = PATIENCE_S, is_seen: bool = True
) -> Iterator[Future[httpx.Response]]:
    """An edit of which the rest comes at the end of the context, or after the pause; and its answer.

    The context begins when the API says that it reads it, unless it may have ended that by then.
    """
    go_on = threading.Event()
    form = httpx.Request("POST", url, files={"image": ("a.png", GREY)}, data={"prompt": "a star"})
    body, kind = form.read(), form.headers["content-type"]

    def pieces() -> Iterator[bytes]:
        yield body[:100]
        go_on.wait(pause_s)
        yield body[100:]

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(
            httpx.post, f"{url}/v1/images/edits", content=pieces(), headers={"content-type": kind}, timeout=30
        )
        if is_seen:
            gauge = "sparke_file_uploads_in_flight 1.0"
            wait_until(
                lambda: gauge in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text,
                "the API does not read it",
            )
        try:
            yield sending
        finally:
            go_on.set()


def test_a_tenant_sends_so_many_at_once(serve_api: ServeApi, own: Settings):
    """Files and pictures together; one more is told to come a little later, and the first goes on."""
    url = serve_api(own.model_copy(update={"max_uploads_per_tenant": 1, "request_timeout_s": 1.0}))
    with half_sent(url) as sending:
        refused = send(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
        assert refused.headers["retry-after"] == "5"
    assert sending.result().json()["error"]["code"] in {"timeout", "no_worker"}


def test_a_body_that_comes_too_slowly_is_refused(serve_api: ServeApi, own: Settings):
    """408, and the connection is closed."""
    url = serve_api(own.model_copy(update={"upload_timeout_s": 0.5}))
    with half_sent(url, pause_s=4, is_seen=False) as sending:
        answer = sending.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    assert stored(own) == set()


def test_a_full_queue_keeps_no_picture(serve_api: ServeApi, own: Settings):
    """The job that waits has its own; the refused one leaves nothing."""
    url = serve_api(own.model_copy(update={"max_waiting_jobs_per_tenant": 1, "request_timeout_s": 1.0}))
    asyncio.run(_beat(own, frozenset({"image"})))
    assert send(url).status_code == 504
    (kept,) = stored(own)
    refused = send(url)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert stored(own) == {kept}
    (job,) = httpx.get(f"{url}/v1/jobs", timeout=PATIENCE_S).json()["data"]
    assert kept.endswith(picture_key("default", job["id"], "picture"))


def test_a_model_that_cannot_edit_so_is_refused(serve_api: ServeApi, own: Settings):
    """With what it can do, before anything is stored."""
    url = serve_api(own)
    asyncio.run(_beat(own, frozenset({"image"})))
    files = {"image": ("a.png", GREY), "mask": ("m.png", MASK)}
    answer = httpx.post(f"{url}/v1/images/edits", files=files, data={"prompt": "a star"}, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_cannot_edit")
    assert "an image alone" in answer.json()["error"]["message"]
    asyncio.run(_beat(own, frozenset()))
    assert send(url).json()["error"]["message"] == "model toy cannot edit pictures"
    assert stored(own) == set()


async def _beat(settings: Settings, edits: frozenset) -> None:
    """A worker that lives, can edit so, and does nothing."""
    redis, model = connect(settings.redis_url or ""), ModelId("toy")
    info = WorkerInfo(WorkerId("idle"), "ready", (model,), now_ms(), {model: edits})
    await WorkerRegistry(redis).beat(info)
    await redis.aclose()
