"""A worker on each of two GPUs: both are used, and what one has made guides and is repeated by the other."""

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import pytest
from patience import PATIENCE_S, wait_until
from PIL import Image

DEMO = """
[[models]]
model_id = "sparke-demo"
source = "builtin:demo"
latent_space = "demo"
default_steps = 12
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""

pytestmark = pytest.mark.gpu


@pytest.fixture
def num_gpus():
    """Two, or the test is skipped: of torch a process of tests asks no more than their number."""
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("there are not two CUDA devices")
    return 2


@pytest.mark.usefixtures("num_gpus")
@pytest.mark.timeout(300)
def test_two_gpus_make_the_images_of_one_service(start, tmp_path):
    """Forty requests at once are served by both, every image is remembered once, and a seed has the same pixels everywhere."""
    catalogue = tmp_path / "demo.toml"
    catalogue.write_text(DEMO)
    service = start(tmp_path / "data", SPARKE_DEVICE="cuda:0,cuda:1", SPARKE_MODELS_FILE=str(catalogue))
    wait_until(lambda: _readyz(service)["workers"]["ready"] == 2, "the second worker is not ready")
    alone = {
        "prompt": "a red star on snow",
        "diversity": {"strength": 0, "memory": {"write": False}},
        "seed": 7,
    }
    with ThreadPoolExecutor(40) as pool:
        made = list(
            pool.map(lambda seed: service.generate(prompt="a red star", n=2, seed=1000 * seed), range(40))
        )
        same = list(pool.map(lambda _: service.generate(**alone, reproducible=True), range(24)))
    assert {answer.status_code for answer in [*made, *same]} == {200}
    last = service.generate(prompt="a red star").json()
    assert last["memory_version"] == 80
    assert last["data"][0]["diversity"]["num_neighbours"] == 80
    assert len({_pixels(answer) for answer in same}) == 1
    images = _images_by_device(service)
    assert set(images) == {"cuda:0", "cuda:1"}
    assert min(images.values()) > 0


def _readyz(service):
    return httpx.get(f"{service.url}/readyz", timeout=PATIENCE_S).json()


def _images_by_device(service):
    """How many each worker has made; the first lines of the API's metrics tell where theirs are."""
    urls = re.findall(r"^# .*(http://\S+/metrics)", httpx.get(f"{service.url}/metrics").text, re.MULTILINE)
    images = {}
    for url in urls:
        told = httpx.get(url, timeout=PATIENCE_S).text
        [device] = re.findall(r'^sparke_device_memory_used_bytes{device="(.*)"}', told, re.MULTILINE)
        [number] = re.findall(r"^sparke_images_total{.*} (.*)$", told, re.MULTILINE)
        images[device] = float(number)
    return images


def _pixels(answer):
    [image] = answer.json()["data"]
    return Image.open(BytesIO(base64.b64decode(image["b64_json"]))).tobytes()
