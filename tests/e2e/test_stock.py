"""Strength 0 is the stock pipeline, whatever the service does around it."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import app
from sparke_engine.diffusion.pipelines import demo_weights

SEED, STEPS, GUIDANCE_SCALE = 41, 4, 5.0
PROMPT, NEGATIVE_PROMPT = "a red circle on a blue background", "a green square"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The order of sums depends on the number of threads, so both sides take one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("negative_prompt", ["", NEGATIVE_PROMPT], ids=["plain", "negative prompt"])
def test_strength_0_through_http_is_the_stock_pipeline(
    start: Callable[..., Any], tmp_path: Path, negative_prompt: str
):
    """Same seeds, same batch shape: every pixel is equal, also beside a memory full of the same prompt's images."""
    catalogue = Path(app.__file__).parent / "models.toml"
    service = start(tmp_path / "data", SPARKE_MODELS_FILE=str(catalogue), SPARKE_TORCH_THREADS="1")
    asked = {"prompt": PROMPT, "n": 3, "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "seed": SEED}
    asked["negative_prompt"] = negative_prompt
    pushed, plain = (service.generate(**asked, diversity={"strength": strength}) for strength in (1.0, 0.0))
    stock = diffusers.StableDiffusionPipeline.from_pretrained(
        demo_weights(), use_safetensors=True, dtype=torch.float32
    )
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompt=PROMPT,
        negative_prompt=negative_prompt or None,
        num_images_per_prompt=3,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=[torch.Generator("cpu").manual_seed(SEED + index) for index in range(3)],
    ).images
    assert [image["diversity"]["num_neighbours"] for image in plain.json()["data"]] == [3, 3, 3]
    for made, image in zip(_images(plain), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(made), np.asarray(image))
    assert any(
        not np.array_equal(np.asarray(made), np.asarray(image))
        for made, image in zip(_images(pushed), expected, strict=True)
    )


def _images(answer: Any) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text
    return [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in answer.json()["data"]]
