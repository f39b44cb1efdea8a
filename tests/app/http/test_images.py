"""The official client makes images, unchanged, with the real worker and the weightless toy model."""

import base64
import io
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import openai
import pytest
from leaving import asking
from patience import PATIENCE_S, wait_until
from PIL import Image

from app.settings import Settings

ServeApi = Callable[[Settings], str]

pytestmark = pytest.mark.usefixtures("worker")


def _decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_images_as_b64_json(client: openai.OpenAI):
    """Without a response_format the PNG itself comes back, with what it takes to make it again."""
    answer = client.images.generate(model="toy", prompt="a red circle", n=3, size="96x64")
    assert len(answer.data or ()) == 3
    for index, image in enumerate(answer.data or ()):
        assert image.url is None
        picture = _decode(base64.b64decode(image.b64_json or ""))
        assert (picture.format, picture.size) == ("PNG", (96, 64))
        extra = image.model_extra or {}
        assert re.fullmatch(rf"job_[0-9a-f]{{28}}-{index}", extra["id"])
        assert set(extra["diversity"]) == {"num_neighbours", "nearest_similarity", "push"}
    seeds = [(image.model_extra or {})["seed"] for image in answer.data or ()]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert (answer.size, answer.output_format, answer.background) == ("96x64", "png", "opaque")
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 3 * 6 * 4)
    assert answer.usage.total_tokens == 75
    assert answer.model_extra is not None
    assert answer.model_extra["model"] == "toy"
    assert isinstance(answer.model_extra["memory_version"], int)


def test_images_by_url(client: openai.OpenAI, api_url: str):
    """A URL works without a key and without the client; the bytes are those of the b64_json of the same replay."""
    memory = {"read": False, "write": False}
    body = {"seed": 5, "diversity": {"strength": 0, "memory": memory}}
    by_url = client.images.generate(prompt="a star", response_format="url", extra_body=body)
    inline = client.images.generate(prompt="a star", extra_body=body)
    image = (by_url.data or [])[0]
    assert image.b64_json is None
    assert (image.url or "").startswith(f"{api_url}/v1/images/job_")
    answer = httpx.get(image.url or "", timeout=PATIENCE_S)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert re.fullmatch(r"private, max-age=[0-9]+, immutable", answer.headers["cache-control"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    pixels = _decode(answer.content).tobytes()
    assert pixels == _decode(base64.b64decode((inline.data or [])[0].b64_json or "")).tobytes()


def test_a_url_is_worth_what_it_was_signed_for(client: openai.OpenAI):
    """Another tenant, image, expiry or signature is 403, and so is the URL after its time."""
    made = client.images.generate(prompt="a star", n=2, response_format="url")
    first, second = (urlsplit(image.url or "") for image in made.data or ())
    query = {name: values[0] for name, values in parse_qs(first.query).items()}
    base = f"{first.scheme}://{first.netloc}"
    wrong = [
        (first.path, {"tenant": "other"}),
        (first.path, {"expires": str(int(query["expires"]) + 1)}),
        (first.path, {"expires": "1"}),
        (first.path, {"signature": "x" * 43}),
        (first.path, {"signature": "é"}),
        (second.path, {}),
    ]
    for path, changed in wrong:
        answer = httpx.get(f"{base}{path}", params=query | changed, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), changed
    for name in query:
        answer = httpx.get(
            f"{base}{first.path}", params={k: v for k, v in query.items() if k != name}, timeout=PATIENCE_S
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_a_thumbnail_is_the_image_but_small(client: openai.OpenAI):
    """Its longer side is what was asked for, its colours are the image's, it says nothing of the prompt; and no number is too bold."""
    made = client.images.generate(prompt="a star", size="128x64", response_format="url")
    url = (made.data or [])[0].url or ""
    whole, small = httpx.get(url, timeout=PATIENCE_S), httpx.get(f"{url}&max_px=32", timeout=PATIENCE_S)
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    assert small.headers["cache-control"].startswith("private, max-age=")
    assert b"star" in whole.content
    assert b"star" not in small.content
    image = _decode(small.content).convert("RGB")
    assert image.size == (32, 16)
    expected = _decode(whole.content).convert("RGB").resize((32, 16), Image.Resampling.LANCZOS)
    turned = expected.transpose(Image.Transpose.ROTATE_180)
    near, far = (np.abs(np.asarray(image, float) - np.asarray(other, float)) for other in (expected, turned))
    assert near.mean() < far.mean() / 2, "the toy's images are noise, of which WebP loses much"
    assert _decode(httpx.get(f"{url}&max_px=1024", timeout=PATIENCE_S).content).size == (128, 64)
    for wrong in ("15", "1025", "x", ""):
        assert httpx.get(f"{url}&max_px={wrong}", timeout=PATIENCE_S).status_code == 400, wrong
    path = urlsplit(url).path
    assert (
        httpx.get(
            f"{url.partition('?')[0]}?tenant=default&expires=9999999999&signature=x&max_px=32",
            timeout=PATIENCE_S,
        ).status_code
        == 403
    ), path


def test_an_expired_url_is_403(serve_api: ServeApi, settings: Settings):
    """After its time to live the same URL shows nothing."""
    url = serve_api(settings.model_copy(update={"image_url_ttl_s": 1}))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        made = client.images.generate(prompt="a star", response_format="url")
    shown = (made.data or [])[0].url or ""
    time.sleep(2.1)
    answer = httpx.get(shown, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_urls_carry_the_public_url(serve_api: ServeApi, settings: Settings):
    """Behind a proxy the settings say how clients reach the API."""
    url = serve_api(settings.model_copy(update={"public_url": "https://images.example.org/base"}))
    made = httpx.post(
        f"{url}/v1/images/generations", json={"prompt": "a star", "response_format": "url"}, timeout=60
    )
    shown = made.json()["data"][0]
    assert shown["url"].startswith("https://images.example.org/base/v1/images/")
    assert "b64_json" not in shown
    path = shown["url"].removeprefix("https://images.example.org/base")
    assert httpx.get(f"{url}{path}", timeout=PATIENCE_S).status_code == 200


def test_the_memory_is_per_name_and_versioned(client: openai.OpenAI):
    """A first request reads version 0; the next one of the same memory finds its images; a replay is the same."""

    def make(name: str, **memory: object) -> tuple[int, int, bytes]:
        found = client.images.generate(
            prompt="a star", n=2, extra_body={"seed": 9, "diversity": {"memory": {"name": name, **memory}}}
        )
        image = (found.data or [])[0]
        extra = image.model_extra or {}
        pixels = _decode(base64.b64decode(image.b64_json or "")).tobytes()
        return (found.model_extra or {})["memory_version"], extra["diversity"]["num_neighbours"], pixels

    first = make("images-test")
    second = make("images-test")
    assert (first[0], second[0], make("images-test-other")[0]) == (0, 2, 0)
    assert (first[1], second[1]) == (0, 2)
    assert make("images-test", version=0) == first
    assert make("images-test", version=2) == second
    assert make("images-test")[0] == 4, "replays are not remembered"


def test_references_lead_and_are_replayed(client: openai.OpenAI):
    """Novelty and context change the image, also at strength 0; the versions that the answer tells give it again."""

    def make(memory: str, **diversity: object) -> tuple[dict[str, int | None], bytes]:
        members = {"strength": 0, "memory": {"name": memory, "write": True, "read": False}, **diversity}
        found = client.images.generate(prompt="a star", n=2, extra_body={"seed": 9, "diversity": members})
        versions = {name: (found.model_extra or {})[f"{name}_version"] for name in ("novelty", "context")}
        return versions, _decode(base64.b64decode((found.data or [])[0].b64_json or "")).tobytes()

    none, stock = make("published")
    make("brand")
    assert none == {"novelty": None, "context": None}
    novelty, context = {"reference": "published", "weight": 1.0}, {"reference": "brand", "weight": 0.5}
    told, pixels = make("published", novelty=novelty, context=context)
    assert told == {"novelty": 2, "context": 2}
    assert pixels != stock
    pinned = {"novelty": novelty | {"version": 2}, "context": context | {"version": 2}}
    assert make("x", **pinned) == (told, pixels)
    assert make("x", novelty=novelty | {"weight": 0}) == ({"novelty": 4, "context": None}, stock)


@pytest.mark.parametrize("member", ["novelty", "context"])
def test_a_reference_that_holds_nothing_is_404(client: openai.OpenAI, member: str):
    """The message names the memory and says how to fill it; the member at fault is told."""
    with pytest.raises(openai.NotFoundError, match="nobody") as caught:
        client.images.generate(
            prompt="x", extra_body={"diversity": {member: {"reference": "nobody", "weight": 0.5}}}
        )
    assert (caught.value.code, caught.value.param) == ("reference_not_found", f"diversity.{member}.reference")


def test_a_version_that_is_not_there_yet_is_400(client: openai.OpenAI):
    """The worker's refusal reaches the client with its meaning."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(
            prompt="x", extra_body={"diversity": {"memory": {"name": "new", "version": 7}}}
        )
    assert (caught.value.code, caught.value.param) == ("invalid_request", "diversity.memory.version")
    assert "0..0" in caught.value.message


@pytest.mark.parametrize(
    ("members", "kind", "code", "param"),
    [
        ({"prompt": ""}, openai.BadRequestError, "invalid_value", "prompt"),
        ({"n": 0}, openai.BadRequestError, "invalid_value", "n"),
        ({"n": 11}, openai.BadRequestError, "invalid_value", "n"),
        ({"size": "63x64"}, openai.BadRequestError, "invalid_value", "size"),
        ({"size": "big"}, openai.BadRequestError, "invalid_value", "size"),
        ({"model": "dall-e-3"}, openai.NotFoundError, "model_not_found", "model"),
        (
            {"extra_body": {"diversity": {"strength": 1.5}}},
            openai.BadRequestError,
            "invalid_value",
            "diversity.strength",
        ),
        ({"prompt": "x" * 1_000_000}, openai.BadRequestError, "string_above_max_length", "prompt"),
        ({"stream": "yes"}, openai.BadRequestError, "invalid_type", "stream"),
    ],
    ids=["empty prompt", "n=0", "n=11", "bad size", "no size", "model", "strength", "1 MB", "stream"],
)
def test_the_official_client_raises_its_typed_errors(
    client: openai.OpenAI,
    members: dict[str, object],
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
):
    """Each with a message, a code and the member at fault."""
    with pytest.raises(kind) as caught:
        client.images.generate(**{"prompt": "a star", **members})  # type: ignore[call-overload]
    assert (caught.value.code, caught.value.param) == (code, param)
    assert len(caught.value.message) < 2000
    assert caught.value.type == "invalid_request_error"


def test_a_wrong_key_is_an_authentication_error(api_url: str):
    """The client's own exception for it."""
    with (
        openai.OpenAI(base_url=f"{api_url}/v1", api_key="sk-sparke-wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.images.generate(prompt="a star")
    assert caught.value.code == "invalid_api_key"


def test_known_members_without_effect_are_accepted(client: openai.OpenAI):
    """Code written for the OpenAI API runs as it is."""
    answer = client.images.generate(
        prompt="a star",
        quality="high",
        style="vivid",
        background="auto",
        moderation="low",
        user="someone",
        output_format="png",
        output_compression=50,
        partial_images=0,
        size="auto",
    )
    assert answer.size == "64x64"


def test_a_model_without_a_worker_is_503(client: openai.OpenAI):
    """Not a hang: within the grace time the client learns that nothing serves the model, and when to ask again."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(model="unserved", prompt="a star")
    assert (caught.value.status_code, caught.value.code) == (503, "no_worker")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120


def test_many_wait_at_once_and_get_their_own(http: httpx.Client):
    """Forty requests at a time share one waiter, and each answer is of its own request."""

    def make(seed: int) -> dict[str, object]:
        body = {"prompt": f"star {seed}", "seed": seed, "diversity": {"memory": {"write": False}}}
        answer = http.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]

    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(make, range(40)))
    assert [image["seed"] for image in found] == list(range(40))
    assert len({image["b64_json"] for image in found}) == 40


def _in_flight(url: str) -> int:
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    found = re.search(r"^sparke_http_requests_in_flight ([0-9.]+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_who_goes_away_leaves_nothing_waiting(serve_api: ServeApi, settings: Settings):
    """A client that gives up ends its request at once, and is counted as one that got no answer."""
    url = serve_api(settings.model_copy(update={"no_worker_grace_s": 600.0}))
    with asking(f"{url}/v1/images/generations", {"model": "unserved", "prompt": "a star"}):
        wait_until(lambda: _in_flight(url) == 2)
    wait_until(lambda: _in_flight(url) == 1, "only the question itself")
    assert 'status="none"' in httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text


def test_a_job_that_takes_too_long_is_504(serve_api: ServeApi, settings: Settings):
    """The request's time is bounded, and the client is told not to send it again by itself."""
    url = serve_api(settings.model_copy(update={"request_timeout_s": 1.0, "no_worker_grace_s": 600.0}))
    answer = httpx.post(
        f"{url}/v1/images/generations", json={"model": "unserved", "prompt": "x"}, timeout=PATIENCE_S
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert answer.headers["x-should-retry"] == "false"


def test_a_full_queue_is_429(serve_api: ServeApi, settings: Settings):
    """Beyond the bound of waiting jobs a request is refused at once, with the time to wait."""
    update = {"max_waiting_jobs_per_tenant": 1, "no_worker_grace_s": 600.0, "request_timeout_s": 3.0}
    url = serve_api(settings.model_copy(update=update))

    def ask(_: int) -> httpx.Response:
        body = {"model": "unserved", "prompt": "a star"}
        return httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE_S)

    with ThreadPoolExecutor(3) as pool:
        refused = [answer for answer in pool.map(ask, range(3)) if answer.status_code == 429]
    assert refused
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    assert refused[0].json()["error"]["code"] == "queue_full"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 120
