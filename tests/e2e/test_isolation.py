"""What tenants share is the device alone: with the real model, images depend on their own request and memory only."""

import base64
import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import app
from app.worker.course.png import read_metadata

PROMPT, STEPS = "a circle", 4
FULL_BATCH = 4


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's data."""
    return tmp_path_factory.mktemp("isolation") / "data"


@pytest.fixture(scope="module")
def service(start_for_module: Callable[..., Any], data_dir: Path) -> Any:
    """The demo model on one thread, whose batches are full at four images and wait a second for company."""
    return start_for_module(
        data_dir,
        SPARKE_MODELS_FILE=str(Path(app.__file__).parent / "models.toml"),
        SPARKE_TORCH_THREADS="1",
        SPARKE_MAX_BATCH_IMAGES=str(FULL_BATCH),
        SPARKE_BATCH_WINDOW_MS="1000",
    )


def _pngs(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


def _pixels(answer: httpx.Response) -> list[bytes]:
    return [Image.open(io.BytesIO(png)).tobytes() for png in _pngs(answer)]


def test_a_replay_after_200_more_images(service: Any):
    """Same seed and `memory.version`, reproducible: the same pixels, while without the version they are others."""
    asked = {"prompt": PROMPT, "steps": STEPS, "n": 2, "seed": 77, "reproducible": True}
    service.generate(prompt=PROMPT, steps=STEPS, n=4, seed=1)
    original = service.generate(**asked, diversity={"strength": 1})
    cheap = {"prompt": PROMPT, "steps": 1, "n": 10, "diversity": {"strength": 0}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: service.generate(**cheap, seed=1000 * number), range(1, 21)))
    assert {answer.status_code for answer in answers} == {200}
    version = original.json()["memory_version"]
    replay = service.generate(**asked, diversity={"strength": 1, "memory": {"version": version}})
    anew = service.generate(**asked, diversity={"strength": 1})
    assert (version, replay.json()["memory_version"], anew.json()["memory_version"]) == (4, 4, 206)
    assert _pixels(replay) == _pixels(original)
    assert not set(_pixels(anew)) & set(_pixels(original))


def _key(data_dir: Path, tenant: str) -> str:
    command = [sys.executable, "-P", "-m", "app.cli", "keys", "create", "--tenant", tenant]
    made = subprocess.run([*command, "--data-dir", str(data_dir)], capture_output=True, text=True, check=True)
    return made.stdout.strip()


def test_a_tenant_in_the_same_batch_changes_no_bit(service: Any, data_dir: Path):
    """Whatever the other one's prompts, seed, strength and memory, the same request gives the same pixels beside it."""
    mine, theirs = _key(data_dir, "mine"), _key(data_dir, "theirs")
    assert service.generate(key=mine, prompt=PROMPT, steps=STEPS, n=4, seed=1).status_code == 200
    asked = {"prompt": PROMPT, "steps": STEPS, "n": 2, "seed": 77}
    frozen = {"strength": 1, "memory": {"write": False}}
    others = [
        {"prompt": "a green square on a snow background", "seed": 5, "diversity": {"strength": 0}},
        {"prompt": PROMPT, "seed": 77, "diversity": {"strength": 1}},
        {"prompt": PROMPT, "seed": 8, "negative_prompt": "red", "diversity": {"strength": 0.3}},
        {"prompt": "🦓 " * 40, "seed": 9, "diversity": {"strength": 1}},
    ]
    seen = set()
    with ThreadPoolExecutor(1) as pool:
        for number, other in enumerate(others):
            beside = pool.submit(service.generate, key=theirs, steps=STEPS, n=2, **other)
            answer = service.generate(key=mine, **asked, diversity=frozen)
            assert beside.result().json()["memory_version"] == 2 * number
            sizes = [read_metadata(png).num_batch_images for png in _pngs(answer) + _pngs(beside.result())]
            assert sizes == [FULL_BATCH] * 4
            diversity = [image["diversity"] for image in answer.json()["data"]]
            assert all(one["num_neighbours"] == 4 and one["push"] > 0 for one in diversity)
            assert not set(_pixels(answer)) & set(_pixels(beside.result()))
            seen.add(tuple(_pixels(answer)))
    assert len(seen) == 1
