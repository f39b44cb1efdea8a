"""Every family that is served, in miniature, from a catalogue's folders to PNG files over HTTP."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import PATIENCE_S
from PIL import Image

FLOW = "FlowMatchEulerDiscreteScheduler"
MODELS = [
    *(
        ("sd", f"{name}Scheduler")
        for name in (
            "DDIM",
            "DPMSolverMultistep",
            "EulerAncestralDiscrete",
            "EulerDiscrete",
            "HeunDiscrete",
            "KDPM2AncestralDiscrete",
            "LCM",
            "PNDM",
            "UniPCMultistep",
        )
    ),
    ("sdxl", "EulerDiscreteScheduler"),
    ("sdxl", "DPMSolverMultistepScheduler"),
    ("sd3", FLOW),
    ("flux", FLOW),
    ("pixart", "DPMSolverMultistepScheduler"),
    ("sana", "DPMSolverMultistepScheduler"),
]
# Latents of random networks are far apart: a wide kernel lets them feel each other.
WIDE = {"latent_bandwidth": 1.5}


def model_id(family: str, scheduler: str) -> str:
    """The id that the catalogue gives to a family with a scheduler."""
    return f"{family}-{scheduler.removesuffix('Scheduler').lower()}"


def _entry(family: str, scheduler: str, source: Path) -> str:
    return f"""
[[models]]
model_id = "{model_id(family, scheduler)}"
source = "{source}"
latent_space = "{family}"
scheduler = "{scheduler}"
default_steps = 5
[models.size]
default_width_px = 32
default_height_px = 32
min_px = 32
max_px = 64
multiple_px = 8
"""


@pytest.fixture(scope="module")
def service(
    start_for_module: Callable[..., Any],
    model_directories: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """One worker that serves them all."""
    folder = tmp_path_factory.mktemp("families")
    catalogue = folder / "models.toml"
    catalogue.write_text(
        "".join(_entry(family, scheduler, model_directories[family]) for family, scheduler in MODELS),
        encoding="utf-8",
    )
    return start_for_module(folder / "data", SPARKE_MODELS_FILE=str(catalogue), SPARKE_TORCH_THREADS="1")


def _pixels(answer: httpx.Response, size: tuple[int, int]) -> list[bytes]:
    """The images' pixels, after a look at format and size."""
    assert answer.status_code == 200, answer.text
    images = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in answer.json()["data"]]
    assert [(image.format, image.mode, image.size) for image in images] == [("PNG", "RGB", size)] * len(
        images
    )
    return [image.tobytes() for image in images]


def _diversity(answer: httpx.Response, member: str) -> list[Any]:
    return [image["diversity"][member] for image in answer.json()["data"]]


@pytest.mark.parametrize(("family", "scheduler"), MODELS)
def test_a_model_of_the_catalogue_generates(service: Any, family: str, scheduler: str):
    """PNG files of the size that was asked for; beside its memory the same seed is pushed, and without strength not."""
    memory = {"name": model_id(family, scheduler)}
    width = 64 if family == "sana" else 40
    asked = {
        "model": model_id(family, scheduler),
        "prompt": "a cat",
        "n": 2,
        "size": f"{width}x32",
        "seed": 3,
    }
    plain = service.generate(**asked, diversity={"strength": 0, "memory": memory})
    guided = service.generate(**asked, diversity={"strength": 0.8, "memory": memory, **WIDE})
    again = service.generate(**asked, diversity={"strength": 0, "memory": memory, **WIDE})
    first, second, third = (_pixels(answer, (width, 32)) for answer in (plain, guided, again))
    assert [answer.json()["model"] for answer in (plain, guided)] == [asked["model"]] * 2
    assert [answer.json()["memory_version"] for answer in (plain, guided, again)] == [0, 2, 4]
    assert _diversity(guided, "num_neighbours") == [2, 2]
    assert all(push > 0 for push in _diversity(guided, "push"))
    assert _diversity(plain, "push") == _diversity(again, "push") == [0, 0]
    assert len({*first, *second}) == 4
    assert third == first


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_each_family_has_a_default_size(service: Any, family: str):
    """Without a size, seed, number or diversity, the model's own and the presets' apply."""
    model = next(model_id(*one) for one in MODELS if one[0] == family)
    answer = service.generate(model=model, prompt="a dog")
    assert len(_pixels(answer, (32, 32))) == 1


def test_a_distilled_model_takes_no_negative_prompt(service: Any):
    """FLUX has no prediction to extrapolate from: a negative prompt is the client's error, and says so."""
    answer = service.generate(model=model_id("flux", FLOW), prompt="a cat", negative_prompt="a dog")
    assert answer.status_code == 400
    assert "negative prompt" in answer.json()["error"]["message"]


def test_the_models_are_listed(service: Any):
    """Every entry of the catalogue, by its id."""
    listed = httpx.get(f"{service.url}/v1/models", timeout=PATIENCE_S).json()["data"]
    assert {model["id"] for model in listed} == {model_id(*one) for one in MODELS}
