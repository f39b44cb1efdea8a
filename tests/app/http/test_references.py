"""Pictures of one's own become a reference, with the real worker and the weightless toy model."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.settings import Settings

ServeApi = Callable[[Settings], str]

pytestmark = pytest.mark.usefixtures("worker")


def picture(seed: int, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    """A file of a picture that no other seed has."""
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).resize(size, Image.Resampling.NEAREST).save(buffer, format=kind)
    return buffer.getvalue()


def send(
    http: httpx.Client,
    name: str,
    *pictures: bytes,
    key: str | None = None,
    field: str = "image[]",
    **fields: str,
) -> httpx.Response:
    """Pictures as any client may send them."""
    headers = {} if key is None else {"idempotency-key": key}
    texts = [(member, (None, text)) for member, text in {"name": name, **fields}.items()]
    files = [(field, (f"{number}.png", data)) for number, data in enumerate(pictures)]
    return http.post("/v1/references", files=[*texts, *files], headers=headers)


def generate(http: httpx.Client, **diversity: object) -> dict[str, object]:
    """An image of one seed that no memory keeps."""
    alone = {"memory": {"read": False, "write": False}, "strength": 0}
    body = {"prompt": "a star", "seed": 7, "diversity": alone | diversity}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def sent_files(settings: Settings) -> set[Path]:
    """What was sent and is not an image yet, other tests' too."""
    return set((settings.data_dir / "images").rglob("picture-*"))


def test_pictures_lead_away_and_toward(http: httpx.Client):
    """They are shown as they are kept; novelty and context by them move an image; all count, whatever the prompts say."""
    answer = send(http, "mine", picture(1), picture(2, (128, 64), "JPEG"), picture(3, (640, 630), "WEBP"))
    assert answer.status_code == 200, answer.text
    reference = answer.json()
    assert (reference["object"], reference["id"], reference["name"]) == ("reference", "toy.mine", "mine")
    assert (reference["num_entries"], reference["version"], reference["model"]) == (3, 3, "toy")
    shown = [Image.open(io.BytesIO(http.get(image["url"]).content)) for image in reference["data"]]
    assert [image.size for image in shown] == [(64, 64), (88, 48), (64, 64)]
    assert shown[0].tobytes() == Image.open(io.BytesIO(picture(1))).tobytes()
    assert http.get(reference["data"][1]["thumbnail_url"]).headers["content-type"] == "image/webp"
    plain = generate(http)
    pushed = {}
    for member in ("novelty", "context"):
        made = generate(http, **{member: {"reference": "mine", "weight": 1}})
        assert made[f"{member}_version"] == 3
        assert made["data"][0]["diversity"]["push"] > 0
        pushed[member] = made["data"][0]["b64_json"]
    assert len({plain["data"][0]["b64_json"], *pushed.values()}) == 3


def test_a_memory_of_pictures_is_a_memory(http: httpx.Client):
    """It is listed, its entries show the prompt, images are pushed away from them where prompts are near, and they can be forgotten."""
    reference = send(http, "owned", picture(4), picture(5), prompt="a star").json()
    entries = http.get("/v1/memories/toy.owned/entries?order=asc").json()["data"]
    assert [entry["image_id"] for entry in entries] == [image["id"] for image in reference["data"]]
    assert [(entry["seed"], entry["prompt"]) for entry in entries] == [(0, "a star")] * 2
    body = {"prompt": "a star", "diversity": {"memory": {"name": "owned", "write": False}, "strength": 1}}
    near = http.post("/v1/images/generations", json=body).json()["data"][0]["diversity"]
    assert (near["num_neighbours"], near["push"] > 0) == (2, True)
    assert (
        http.post("/v1/memories/toy.owned/search", json={"prompt": "a star"}).json()["data"][0]["similarity"]
        > 0.99
    )
    gone = http.delete(f"/v1/memories/toy.owned/entries/{entries[0]['image_id']}").json()
    assert (gone["num_forgotten"], gone["num_remaining"]) == (1, 0)
    assert http.get(reference["data"][0]["url"]).status_code == 404
    assert http.get(reference["data"][1]["url"]).status_code == 200
    assert http.delete("/v1/memories/toy.owned").json()["num_remaining"] == 0
    assert http.get(reference["data"][1]["url"]).status_code == 404


def test_it_is_no_job_that_anybody_sees(http: httpx.Client):
    """No id of it was told: not listed, not shown, not cancelled."""
    image_id = send(http, "quiet", picture(6)).json()["data"][0]["id"]
    job_id = image_id.rpartition("-")[0]
    assert job_id not in {job["id"] for job in http.get("/v1/jobs?limit=100").json()["data"]}
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events"):
        assert http.get(path).status_code == 404
    assert http.post(f"/v1/jobs/{job_id}/cancel").status_code == 404


def test_sent_again_with_its_key_it_is_sent_once(http: httpx.Client, settings: Settings):
    """The same answer but for the URLs' times, also from many at once; another picture under the key is 422; nothing is left over."""
    before = sent_files(settings)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(http, "again", picture(7), key="refs-1").json(), range(4)))
    assert len({answer["data"][0]["id"] for answer in answers}) == 1
    assert answers[0]["num_entries"] == 1
    other = send(http, "again", picture(8), key="refs-1")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert http.get("/v1/memories/toy.again").json()["num_entries"] == 1
    assert sent_files(settings) <= before


@pytest.mark.parametrize(
    ("pictures", "fields", "status", "code", "param"),
    [
        ((), {}, 400, "missing_required_parameter", "image"),
        ((b"",), {}, 400, "invalid_value", "image"),
        ((picture(1), b"no picture"), {}, 400, "invalid_value", "image 2"),
        ((picture(1),) * 17, {}, 400, "invalid_value", "image"),
        ((picture(1),), {"name": "No Name"}, 400, "invalid_id", "name"),
        ((picture(1),), {"name": ""}, 400, "invalid_id", "name"),
        ((picture(1),), {"model": "none"}, 404, "model_not_found", "model"),
        ((picture(1),), {"prompt": "x" * 4001}, 400, None, "prompt"),
        ((picture(1),), {"colour": "red"}, 400, None, "colour"),
    ],
)
def test_what_cannot_be_used_is_refused(
    http: httpx.Client, settings: Settings, pictures, fields, status, code, param
):
    """With the member at fault; no memory is made, and no picture stays."""
    before = sent_files(settings)
    answer = send(http, fields.pop("name", "refused"), *pictures, **fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert code is None or error["code"] == code, error
    assert http.get("/v1/memories/toy.refused").status_code == 404
    assert sent_files(settings) <= before


def test_a_frozen_memory_takes_none(http: httpx.Client):
    """It would forget them at once: 409, and told how to go on; what came before is told again to its key."""
    first = send(http, "frozen", picture(1), key="before").raise_for_status().json()
    http.patch("/v1/memories/toy.frozen", json={"frozen": True}).raise_for_status()
    again = send(http, "frozen", picture(1), key="before").raise_for_status().json()
    assert [image["id"] for image in again["data"]] == [image["id"] for image in first["data"]]
    answer = send(http, "frozen", picture(2))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "memory_frozen")
    assert http.get("/v1/memories/toy.frozen").json()["num_entries"] == 1


def test_pictures_count_as_images_and_entries(serve_api: ServeApi, own_database: Settings):
    """Quotas of images a day and of entries hold for them; what is refused leaves nothing. No worker is needed to refuse."""
    before = sent_files(own_database)
    bounded = own_database.model_copy(update={"images_per_day": 3, "max_memory_entries": 2})
    with httpx.Client(base_url=serve_api(bounded), timeout=60) as http:
        answer = send(http, "many", *map(picture, range(4)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "memory_full")
        unbounded = own_database.model_copy(update={"images_per_day": 3})
    with httpx.Client(base_url=serve_api(unbounded), timeout=60) as http:
        answer = send(http, "many", *map(picture, range(4)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert sent_files(own_database) <= before


def test_one_field_of_a_plain_form_is_enough(http: httpx.Client):
    """As `curl -F image=@a.png -F name=one` sends it."""
    assert send(http, "one", picture(9), field="image").json()["num_entries"] == 1
