"""LoRAs of the catalogue over HTTP, by a real worker with tiny pipelines."""

import base64
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import PATIENCE_S
from PIL import Image

ENTRY = """
[[models]]
model_id = "{family}"
source = "{source}"
latent_space = "{family}"
default_steps = 4
default_strength = 0.0
[models.size]
default_width_px = 32
default_height_px = 32
min_px = 32
max_px = 64
multiple_px = 8
"""
LORA = """
[[models.loras]]
name = "{name}"
source = "./{path}"
default_scale = 0.75
"""
WINDOW_MS = 400
INK, OIL = [{"name": "ink"}], [{"name": "oil", "scale": 1.0}]


@pytest.fixture(scope="module")
def service(
    start_for_module: Callable[..., Any],
    model_directories: dict[str, Path],
    save_lora: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """`sd` with two LoRAs and one of SD3, `sd3` with one; batches wait long enough for company."""
    folder = tmp_path_factory.mktemp("loras")
    text = ""
    for family, names in (("sd", ["ink", "oil", "torn"]), ("sd3", ["ink"])):
        text += ENTRY.format(family=family, source=model_directories[family])
        for seed, name in enumerate(names):
            path = save_lora(
                model_directories["sd3" if name == "torn" else family],
                folder / family / f"{name}.safetensors",
                seed=seed,
            )
            text += LORA.format(name=name, path=path.relative_to(folder))
    catalogue = folder / "models.toml"
    catalogue.write_text(text, encoding="utf-8")
    return start_for_module(
        folder / "data",
        SPARKE_MODELS_FILE=str(catalogue),
        SPARKE_TORCH_THREADS="1",
        SPARKE_BATCH_WINDOW_MS=str(WINDOW_MS),
    )


def made(answer: httpx.Response) -> tuple[bytes, dict[str, Any]]:
    """The first image's pixels, and what its PNG tells."""
    assert answer.status_code == 200, answer.text
    return read(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def read(png: bytes) -> tuple[bytes, dict[str, Any]]:
    """Pixels and metadata."""
    image = Image.open(io.BytesIO(png))
    return image.tobytes(), json.loads(image.text["sparke"])


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_lora_is_chosen_by_a_request_and_leaves_no_trace(service: Any, family: str):
    """It changes the image; without it the image is what it was before, to the bit; its images are remembered alike."""
    asked = {"model": family, "prompt": "a cat", "seed": 3, "diversity": {"memory": {"name": "loras"}}}
    answers = [
        service.generate(**asked, **more)
        for more in ({}, {"loras": INK}, {"loras": []}, {"loras": [{"name": "ink", "scale": -0.5}]}, {})
    ]
    plain, inked, again, other, last = (made(answer) for answer in answers)
    assert plain[0] == again[0] == last[0]
    assert len({plain[0], inked[0], other[0]}) == 3
    assert [one[1]["loras"] for one in (plain, inked, other)] == [
        [],
        [{"name": "ink", "scale": 0.75}],
        [{"name": "ink", "scale": -0.5}],
    ]
    assert [answer.json()["memory_version"] for answer in answers] == [0, 1, 2, 3, 4]
    assert [answer.json()["data"][0]["diversity"]["num_neighbours"] for answer in answers] == [0, 1, 2, 3, 4]


def test_images_under_loras_and_without_push_each_other(service: Any):
    """A prompt is near itself whatever an image of it was made with, so each is pushed away from the other."""
    memory = {"name": "mixed"}
    asked = {"model": "sd", "prompt": "a dog", "seed": 5}
    wide = {"strength": 0.8, "memory": memory, "latent_bandwidth": 1.5}
    for loras in (INK, [], OIL):
        service.generate(**asked, loras=loras, diversity={"strength": 0, "memory": memory})
    for number, loras in enumerate((INK, [])):
        shaped = service.generate(**asked, loras=loras, diversity=wide).json()["data"][0]["diversity"]
        assert shaped["num_neighbours"] == 3 + number
        assert shaped["push"] > 0
        assert shaped["nearest_similarity"] == pytest.approx(1, abs=0.3)


def test_requests_with_different_loras_never_share_a_batch(service: Any):
    """Sent at once, those with the same set run together; each image has only its own kind beside it."""
    sets = [INK, OIL, [], [{"name": "ink", "scale": 1.0}], INK, [], OIL + INK, INK + OIL]
    memory = {"name": "crowd", "read": False, "write": False}

    def ask(loras: list[dict[str, Any]]) -> tuple[str, int]:
        told = made(service.generate(model="sd", seed=3, loras=loras, diversity={"memory": memory}))[1]
        return json.dumps(told["loras"]), told["num_batch_images"]

    with ThreadPoolExecutor(len(sets)) as pool:
        found = list(pool.map(ask, sets))
    kinds = [kind for kind, _ in found]
    assert len(set(kinds)) == 5
    assert all(num_images <= kinds.count(kind) for kind, num_images in found)
    assert max(num_images for _, num_images in found) > 1


def test_a_lora_that_does_not_fit_fails_its_own_requests(service: Any):
    """The error names it; the same model goes on with the others and without."""
    before = made(service.generate(model="sd", seed=9, loras=INK))[0]
    answer = service.generate(model="sd", loras=[{"name": "torn"}])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "lora_not_loadable")
    assert "'torn' does not fit the model sd" in error["message"]
    assert made(service.generate(model="sd", seed=9, loras=INK))[0] == before


def test_what_there_is_is_told(service: Any):
    """By `/v1/models`, and by the error for a name that the model does not have: another model's is none of its own."""
    listed = {
        model["id"]: model["loras"]
        for model in httpx.get(f"{service.url}/v1/models", timeout=PATIENCE_S).json()["data"]
    }
    assert [lora["name"] for lora in listed["sd"]] == ["ink", "oil", "torn"]
    assert listed["sd3"] == [{"name": "ink", "default_scale": 0.75}]
    answer = service.generate(model="sd3", loras=OIL)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras.0.name")
    assert "no LoRA 'oil'; there are: ink" in answer.json()["error"]["message"]


def test_a_job_and_a_line_of_a_batch_choose_loras_too(service: Any):
    """A job tells its choice with the scale filled in; a batch's line has the image that the endpoint gives."""
    asked = {"model": "sd", "prompt": "a cat", "seed": 11, "loras": INK}
    expected = made(service.generate(**asked))[0]
    with httpx.Client(base_url=service.url, timeout=60) as client:
        job = client.post("/v1/jobs", json=asked).json()
        job = _until(client, f"/v1/jobs/{job['id']}", "succeeded")
        assert job["request"]["loras"] == [{"name": "ink", "scale": 0.75}]
        assert read(client.get(job["result"]["data"][0]["url"]).content)[0] == expected
        lines = [
            {"custom_id": f"{number}", "method": "POST", "url": "/v1/images/generations", "body": body}
            for number, body in enumerate([asked, asked | {"loras": [{"name": "none"}]}])
        ]
        text = "\n".join(map(json.dumps, lines)).encode()
        file = client.post("/v1/files", files={"file": ("a.jsonl", text)}, data={"purpose": "batch"}).json()
        body = {
            "input_file_id": file["id"],
            "endpoint": "/v1/images/generations",
            "completion_window": "24h",
        }
        batch = _until(
            client, f"/v1/batches/{client.post('/v1/batches', json=body).json()['id']}", "completed"
        )
        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        line = json.loads(client.get(f"/v1/files/{batch['output_file_id']}/content").text)
        assert read(client.get(line["response"]["body"]["data"][0]["url"]).content)[0] == expected
        fault = json.loads(client.get(f"/v1/files/{batch['error_file_id']}/content").text)
        assert "there are: ink, oil, torn" in json.dumps(fault)


def _until(client: httpx.Client, path: str, status: str) -> dict[str, Any]:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        found: dict[str, Any] = client.get(path).json()
        if found["status"] == status:
            return found
        assert time.monotonic() < until_s, found
        time.sleep(0.1)
