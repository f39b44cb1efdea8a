"""Images as a stream, read by the official client."""

import asyncio
import base64
import io
import json
import time

import httpx
import openai
import pytest
from patience import PATIENCE_S
from PIL import Image

from app.http.course.streaming import EventStream
from app.redis.connection import connect
from sparke_engine.diffusion.toy import prompt_digest, read_toy_image

pytestmark = pytest.mark.usefixtures("worker")


def _read(b64_json: str) -> tuple[bytes, int]:
    return read_toy_image(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def test_the_official_client_gets_partial_and_final_images(client):
    """Two partial images, then the image, each of the prompt and seed that were asked for."""
    events = list(
        client.images.generate(
            prompt="a star",
            model="toy",
            stream=True,
            partial_images=2,
            extra_body={"seed": 5, "steps": 9},
        )
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(_read(event.b64_json) == (prompt_digest("a star"), 5) for event in events)
    assert (events[-1].size, events[-1].output_format) == ("64x64", "png")
    assert events[-1].usage.output_tokens == 16
    assert events[-1].model_extra["seed"] == 5
    assert events[-1].model_extra["id"].endswith("-0")


def test_a_stream_without_partial_images_has_the_images(client):
    """One completed event for each image, in order."""
    events = list(
        client.images.generate(prompt="a star", model="toy", n=3, stream=True, extra_body={"seed": 5})
    )
    assert [event.type for event in events] == ["image_generation.completed"] * 3
    assert [event.model_extra["index"] for event in events] == [0, 1, 2]
    assert [_read(event.b64_json)[1] for event in events] == [5, 6, 7]


@pytest.mark.anyio
async def test_previews_read_the_jobs_record_once(client, redis_url):
    """Nine previews of a job that is done within a second: its record is not read again for each of them."""
    redis = connect(redis_url)

    def ask() -> list[str]:
        asked = {"prompt": "a star", "model": "toy", "n": 3, "stream": True, "partial_images": 3}
        return [event.type for event in client.images.generate(**asked, extra_body={"steps": 12})]

    async with redis.monitor() as monitor:
        kinds = await asyncio.to_thread(ask)
        await redis.echo("over")
        num_reads = 0
        while (command := (await monitor.next_command())["command"]) != "ECHO over":
            num_reads += command.startswith("HGETALL") and ":job:" in command
    await redis.aclose()
    assert kinds.count("image_generation.partial_image") == 9
    assert num_reads < 9


def test_a_stream_is_the_same_job_as_an_answer(client):
    """With a key of its own, what was streamed is answered too, image for image."""
    asked = {"prompt": "a star", "model": "toy", "stream": True, "partial_images": 1}
    headers = {"idempotency-key": "streamed"}
    first = list(client.images.generate(**asked, extra_headers=headers))
    again = list(client.images.generate(**asked, extra_headers=headers))
    assert [event.b64_json for event in first] == [event.b64_json for event in again]


def test_a_failure_after_the_start_is_an_event(serve_api, settings):
    """Nobody serves the model: the client raises its error, with the code."""
    url = serve_api(settings.model_copy(update={"no_worker_grace_s": 0.2}))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.images.generate(prompt="a star", model="unserved", stream=True)
        with pytest.raises(openai.APIError) as failed:
            list(stream)
    assert failed.value.code == "no_worker"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"partial_images": 4}, "partial_images"),
        ({"response_format": "url"}, None),
        ({"model": "none"}, "model"),
    ],
)
def test_a_bad_stream_is_refused_before_it_starts(http, body, param):
    """As any other request, by its status."""
    answer = http.post("/v1/images/generations", json={"prompt": "x", "model": "toy", "stream": True, **body})
    assert answer.status_code in {400, 404}
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("cancels", [True, False])
def test_who_leaves_a_stream_cancels_only_if_it_said_so(http, api_url, cancels):
    """The job is cancelled within a step, or goes on."""
    prompt = f"a star {time.time_ns()}"
    body = {
        "prompt": prompt,
        "model": "toy",
        "steps": 1_000_000,
        "stream": True,
        "cancel_on_disconnect": cancels,
    }
    with httpx.stream("POST", f"{api_url}/v1/images/generations", json=body, timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        [job] = [job for job in http.get("/v1/jobs").json()["data"] if job["request"]["prompt"] == prompt]
    try:
        until_s = time.monotonic() + (PATIENCE_S if cancels else 1.5)
        while time.monotonic() < until_s:
            shown = http.get(f"/v1/jobs/{job['id']}").json()
            if shown["status"] == "cancelled":
                break
            time.sleep(0.05)
        assert (shown["status"] == "cancelled") == cancels
    finally:
        http.post(f"/v1/jobs/{job['id']}/cancel")


def test_previews_are_among_a_jobs_events(http):
    """A job that asked for them shows them as they come; they can be had again by whoever comes back."""
    job = http.post(
        "/v1/jobs", json={"prompt": "a star", "model": "toy", "num_previews": 2, "steps": 9}
    ).json()
    seen = []
    for _ in range(2):
        found = []
        with http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if event["type"] == "preview":
                        assert "key" not in event
                        found.append((event["number"], event["image"], _read(event["b64_json"])[0]))
        seen.append(found)
    assert seen == [[(0, 0, prompt_digest("a star")), (1, 0, prompt_digest("a star"))]] * 2


@pytest.mark.anyio
async def test_a_stream_is_closed_with_its_client():
    """A client that leaves while the server cannot send: the generator is closed at once, not by a garbage collector."""
    closed = asyncio.Event()

    async def events():
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            closed.set()

    blocked = asyncio.Event()

    async def send(message):
        if message["type"] == "http.response.body":
            blocked.set()
            await asyncio.sleep(60)

    async def receive():
        await blocked.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "headers": []}
    kept = EventStream(events())
    await asyncio.wait_for(kept(scope, receive, send), PATIENCE_S)
    assert closed.is_set()
