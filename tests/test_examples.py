"""The examples of the documents run, and do what the text around them says."""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from patience import PATIENCE_S
from PIL import Image
from standardwebhooks import Webhook

from app.catalogue import parse_catalogue
from sparke_engine.demo.evaluate import judge_pictures
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.scene import BACKGROUNDS, COLOURS, SHAPES
from tests.documents import example

BIN = Path(sys.executable).parent
READY = "SPARKE is ready: "


def clean_env(**variables: str) -> dict[str, str]:
    """The environment of a person who has just cloned the repository, with the tests' Python first.

    One thread for torch: on a busy machine several threads wait for one another at every step, for minutes.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    return {**env, "PATH": f"{BIN}{os.pathsep}{env['PATH']}", "OMP_NUM_THREADS": "1", **variables}


def run(command: list[str], folder: Path, **variables: str) -> str:
    """What a command prints; it must end well."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=clean_env(**variables),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service keeps its data."""
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def service(data_dir: Path) -> Iterator[str]:
    """The URL of `sparke serve` with the demo model."""
    command = [
        str(BIN / "sparke"),
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(data_dir),
    ]
    with subprocess.Popen(command, env=clean_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(READY), "the service did not start"
        yield line.removeprefix(READY).strip()
        process.terminate()
        assert process.wait(60) == 0


def at(service: str, code: str) -> str:
    """An example that asks this service in place of the one at port 8000."""
    assert "http://localhost:8000" in code
    return code.replace("http://localhost:8000", service)


def what_it_shows(path: Path) -> tuple[str, str, str]:
    """Shape, colour and background of a picture, as the shipped judge sees them."""
    judge = load_judge(torch.device("cpu"))
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (64, 64))
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255)
    shape, colour, background, _ = judge_pictures(judge, pixels.permute(2, 0, 1)[None]).attributes[0].tolist()
    return SHAPES[shape], COLOURS[colour], BACKGROUNDS[background]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")
def test_the_curl_example_draws_what_it_asks_for(service: str, tmp_path: Path):
    """The command writes a PNG of a red star on snow."""
    run(["bash", "-euo", "pipefail", "-c", at(service, example("curl"))], tmp_path)
    assert what_it_shows(tmp_path / "star.png") == ("star", "red", "snow")


def test_the_python_example_runs(service: str, tmp_path: Path):
    """With the standard library alone: two images with consecutive seeds."""
    said = run([sys.executable, "-I", "-c", at(service, example("python"))], tmp_path)
    assert [line.split()[0] for line in said.splitlines()] == ["7", "8"]
    assert what_it_shows(tmp_path / "star-1.png") == ("star", "red", "snow")


def test_the_openai_example_runs(service: str, tmp_path: Path):
    """The official client: four URLs that show an image, and our members."""
    *images, version = run([sys.executable, "-c", at(service, example("openai"))], tmp_path).splitlines()
    assert [line.split()[1] for line in images] == ["1", "2", "3", "4"]
    for line in images:
        assert httpx.get(line.split()[0], timeout=PATIENCE_S).content.startswith(b"\x89PNG")
    assert re.fullmatch(r"the memory that was read had version \d+", version)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")
def test_the_edit_examples_draw_what_they_ask_for(service: str, tmp_path: Path):
    """A green star of the red one; then a blue heart, around which every pixel is the star's own."""
    commands = [example("curl"), example("edit")]
    run(["bash", "-euo", "pipefail", "-c", at(service, "\n".join(commands))], tmp_path)
    assert what_it_shows(tmp_path / "green.png") == ("star", "green", "snow")
    run([sys.executable, "-c", at(service, example("mask"))], tmp_path)
    assert what_it_shows(tmp_path / "heart.png") == ("heart", "blue", "snow")
    star, heart = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("star", "heart")
    )
    assert np.array_equal(star[:8], heart[:8])


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")
def test_the_references_example_runs(service: str, tmp_path: Path):
    """A picture of one's own is a memory of one entry, and an image is led away from it."""
    run(["bash", "-euo", "pipefail", "-c", at(service, example("curl"))], tmp_path)
    said = run(["bash", "-euo", "pipefail", "-c", at(service, example("references"))], tmp_path)
    assert json.loads(said)["id"] == "demo.brand"
    answer = json.loads((tmp_path / "unlike.json").read_text())
    assert answer["novelty_version"] == 1
    assert answer["data"][0]["diversity"]["push"] > 0


def test_the_stream_example_draws_what_it_asks_for(service: str, tmp_path: Path):
    """Two pictures on the way and the image, which is as asked; the ways there differ from it."""
    run([sys.executable, "-c", at(service, example("stream"))], tmp_path)
    assert what_it_shows(tmp_path / "moon.png")[::2] == ("moon", "night")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("moon-0", "moon-1", "moon")}) == 3


def test_the_jobs_example_runs(service: str, tmp_path: Path):
    """The events from acceptance to end, URLs that show an image, and the job in the list; a second time the same job."""
    code = at(service, example("jobs"))
    *events, urls, metadata = run([sys.executable, "-I", "-c", code], tmp_path).splitlines()
    kinds = [line.split()[0] for line in events]
    assert (kinds[:2], kinds[-1], metadata) == (["queued", "running"], "succeeded", "{'campaign': 'spring'}")
    for url in ast.literal_eval(urls):
        assert httpx.get(url, timeout=PATIENCE_S).content.startswith(b"\x89PNG")
    again = run([sys.executable, "-I", "-c", code], tmp_path).splitlines()
    assert again[: len(events)] == events


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")
def test_the_memories_example_runs(service: str, tmp_path: Path):
    """Three images, two entries shown, one forgotten, none that is like another prompt, then the rest, then the memory."""
    said = run(["bash", "-c", at(service, example("memories"))], tmp_path)
    answers = [json.loads(line) for line in said.replace("}{", "}\n{").splitlines()]
    assert [entry["version"] for entry in answers[0]["data"]] == [3, 2]
    assert [answer["num_forgotten"] for answer in answers[1:]] == [1, 0, 2, 0]
    assert answers[4]["deleted"] is True


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")
def test_the_questions_example_runs(service: str, tmp_path: Path):
    """Red stars are found before blue squares, and what is previewed is what guides the next image."""
    code = at(service, example("questions")).replace(".venv/bin/sparke", str(BIN / "sparke"))
    said = [line.split("\t") for line in run(["bash", "-euo", "pipefail", "-c", code], tmp_path).splitlines()]
    assert [row[-1] for row in said[:8]] == ["a red star"] * 4 + ["a blue square"] * 4
    similarities = [float(row[0]) for row in said[:8]]
    assert similarities == sorted(similarities, reverse=True)
    versions = {row[3] for row in said if row[-1] == "a red star" and len(row) == 8}
    assert versions == {"5", "6", "7", "8"}
    stats = {row[0]: row[1] for row in said if len(row) == 2}
    assert 1 <= float(stats["cond_vendi"]) <= float(stats["vendi"]) <= 8 == int(stats["num_sampled"])
    asked = {"prompt": "a red star", "diversity": {"strength": 0.5}}
    preview = httpx.post(f"{service}/v1/memories/demo.asked/preview", json=asked, timeout=100).json()
    asked["diversity"]["memory"] = {"name": "asked", "version": preview["memory_version"]}
    image = httpx.post(f"{service}/v1/images/generations", json=asked, timeout=100).json()["data"][0]
    assert (
        image["diversity"]["num_neighbours"] == preview["num_neighbours"] == len(preview["neighbours"]) == 4
    )
    share = image["diversity"]["push"] / preview["expected_push"]
    assert 1 / 3 < share < 3, "an estimate of many images, held against a single one"


def test_the_files_example_runs(service: str, tmp_path: Path):
    """The official client sends a file, sees it in the list, reads it as it was, and deletes it."""
    first, line, deleted = run([sys.executable, "-c", at(service, example("files"))], tmp_path).splitlines()
    assert re.fullmatch(r"file-[0-9a-f]{36} \d+ \['tasks.jsonl'\]", first)
    assert (json.loads(line)["custom_id"], deleted) == ("1", "True")


def test_the_batches_example_runs(service: str, tmp_path: Path):
    """The official client gets an image for each good line, and hears what is wrong with the bad one."""
    said = run([sys.executable, "-c", at(service, example("batches"))], tmp_path).splitlines()
    assert said[0] == "completed 2 1"
    assert [line.split()[0] for line in said[1:3]] == ["p0", "p1"]
    for line in said[1:3]:
        assert httpx.get(line.split()[1], timeout=PATIENCE_S).content.startswith(b"\x89PNG")
    assert json.loads(said[3])["error"]["param"] == "body.prompt"


def test_the_archive_example_runs(service: str, tmp_path: Path):
    """A memory goes out, is checked, and comes in under another name."""
    body = {"prompt": "a star", "diversity": {"memory": {"name": "default"}}}
    assert httpx.post(f"{service}/v1/images/generations", json=body, timeout=100).status_code == 200
    code = at(service, example("archive")).replace(".venv/bin/sparke", str(BIN / "sparke"))
    said = run(["bash", "-euo", "pipefail", "-c", code], tmp_path).splitlines()
    assert (said[0], said[1], said[-1]) == ("default.sparke", "memory\tdemo.default", "demo.again")
    again = httpx.get(f"{service}/v1/memories/demo.again", timeout=PATIENCE_S).json()
    assert (
        again["num_entries"]
        == httpx.get(f"{service}/v1/memories/demo.default", timeout=PATIENCE_S).json()["num_entries"]
        > 0
    )


def test_the_shaping_example_runs(service: str, tmp_path: Path):
    """One memory is made, another forked and renamed, and settings are changed."""
    body = {"prompt": "a star", "diversity": {"memory": {"name": "default"}}}
    assert httpx.post(f"{service}/v1/images/generations", json=body, timeout=100).status_code == 200
    code = at(service, example("shaping")).replace(".venv/bin/sparke", str(BIN / "sparke"))
    said = run(["bash", "-euo", "pipefail", "-c", code], tmp_path).splitlines()
    assert said[:3] == ["demo.autumn", "demo.trial", "demo.trial-of-one"]
    assert said[3:] == ["max_entries\t1000", "max_age_s\t2592000", "keep_prompts\tFalse", "frozen\tFalse"]


def test_the_webhooks_example_runs(tmp_path: Path):
    """A signed message is taken once, though it comes twice; one that somebody else signed is refused."""
    secret, at = "whsec_" + base64.b64encode(bytes(32)).decode(), datetime.now(UTC)
    body = '{"type":"job.succeeded","data":{"id":"job_1"}}'
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(at.timestamp()))}
    calls = []
    for signer in (Webhook(secret), Webhook(secret), Webhook(bytes(range(32)))):
        signed = headers | {"webhook-signature": signer.sign("msg_1", at, body)}
        calls.append(f"receive({signed!r}, {body.encode()!r})")
    refused = "\ntry:\n    " + calls.pop() + "\nexcept Exception as error:\n    print(type(error).__name__)\n"
    code = "\n".join([example("webhooks").replace("whsec_SECRET", secret), *calls]) + refused
    assert run([sys.executable, "-c", code], tmp_path) == "job.succeeded job_1\nWebhookVerificationError\n"


def test_the_doctor_finds_no_problem_beside_a_running_service(service: str, data_dir: Path, tmp_path: Path):
    """It ends with 0, and sees that this service answers at the port."""
    command = example("doctor").replace(".venv/bin/", "").strip() + " --least-free-bytes 0"
    here = {"SPARKE_PORT": service.rpartition(":")[2], "SPARKE_DATA_DIR": str(data_dir)}
    said = run(["bash", "-c", command], tmp_path, **here)
    assert "problems 0" in said
    assert re.search(r"^ok +port +this service answers at .*, and is ready$", said, re.MULTILINE), said
    assert re.search(r"^ok +redis persistence +appendonly is yes, appendfsync always$", said, re.MULTILINE), (
        said
    )


def test_the_key_example_prints_a_key_alone(tmp_path: Path):
    """Standard output is the key and nothing else."""
    code = example("keys").replace(".venv/bin/sparke", str(BIN / "sparke"))
    said = run(["bash", "-c", code], tmp_path, SPARKE_DATA_DIR=str(tmp_path / "data"))
    assert re.fullmatch(r"sk-sparke-[0-9a-f]{8}-[A-Za-z0-9_-]{43}\n", said)


def test_the_library_example_runs(tmp_path: Path):
    """Its last round made four images, pushed away from the eight before, and the bank holds all twelve."""
    code = example("library") + "\nprint(len(bank), len(images), images[0].size)\n"
    assert run([sys.executable, "-c", code], tmp_path) == "12 4 (64, 64)\n"


def test_the_librarys_references_example_runs(tmp_path: Path):
    """Four stars and four images that were led away from them are in the bank; the reference holds its four pictures."""
    code = example("library-references") + "\nprint(len(bank), len(brand), len(images))\n"
    assert run([sys.executable, "-c", code], tmp_path) == "8 4 4\n"


def test_the_librarys_keeping_example_runs(tmp_path: Path):
    """Run twice, the second run begins with the four stars of the first; of eight then the newest six are kept."""
    code = example("library-keeping") + "\nprint(len(bank), len(MemoryBank.load(path)))\n"
    assert [run([sys.executable, "-c", code], tmp_path) for _ in range(2)] == ["4 4\n", "6 6\n"]


def test_the_catalogue_example_is_one():
    """The entry for SDXL is accepted as it stands, and with the LoRA below it."""
    (spec,) = parse_catalogue(example("catalogue"), folder=None, name="models.md").values()
    assert (spec.model_id, spec.dtype) == ("sdxl", "float16")
    (spec,) = parse_catalogue(example("catalogue") + example("loras"), folder=None, name="models.md").values()
    assert [(lora.name, lora.default_scale) for lora in spec.loras] == [("ink", 0.8)]
