"""What a person and a probe see while a model is downloaded, loaded and warmed up: in a real terminal, in the log, in `/readyz`."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from patience import PATIENCE_S, wait_until
from processes import free_port

from tests.e2e.local_hub import local_hub

CATALOGUE = """
[[models]]
model_id = "tiny"
source = "acme/tiny"
latent_space = "tiny"
default_steps = 2
diversity_preset = "demo"
[models.size]
default_width_px = 32
default_height_px = 32
min_px = 32
max_px = 64
multiple_px = 8
[[models.loras]]
name = "star"
source = "acme/tiny"
weight_name = "star.safetensors"
"""
PIPELINE, LORA = "unet/diffusion_pytorch_model.safetensors", "star.safetensors"
"""Of the hub's files, one that is downloaded as such, and one that loading asks for."""
STAGES = ["waiting", "downloading", "loading", "warming_up", "ready"]


@contextmanager
def serving(folder: Path, hub: str, *, err: int, port: int) -> Iterator[subprocess.Popen[str]]:
    """`sparke serve` with a model of the hub, whose cache is empty, and whose standard error is `err`."""
    (folder / "models.toml").write_text(CATALOGUE, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPARKE_", "HF_"))}
    env |= {"SPARKE_MODELS_FILE": str(folder / "models.toml"), "SPARKE_DEVICE": "cpu"}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub"), "COLUMNS": "100"}
    env |= dict.fromkeys(("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"), f"{PATIENCE_S:g}")
    command = ["serve", "--port", str(port), "--data-dir", str(folder / "data")]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.cli", *command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=err,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


@dataclass(frozen=True)
class Probe:
    """Asks /readyz, and keeps all different answers."""

    url: str
    seen: list[dict[str, Any]] = field(default_factory=list)

    def look(self) -> dict[str, Any]:
        """The answer now; an empty one while nothing listens."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=PATIENCE_S)
        except httpx.TransportError:
            return {}
        body: dict[str, Any] = answer.json()
        body |= {"retry_after": answer.headers.get("retry-after"), "http": answer.status_code}
        if not self.seen or self.seen[-1] != body:
            self.seen.append(body)
        return body

    def model(self) -> dict[str, Any]:
        """What the answer now tells of the model."""
        found: dict[str, Any] = self.look().get("models", {}).get("tiny", {})
        return found


def watch_until_ready(url: str, held_back: Mapping[str, Event]) -> list[dict[str, Any]]:
    """All different answers of /readyz until it is 200. What is held back comes once the stage that waits for it was seen."""
    probe = Probe(url)
    wait_until(probe.look)
    wait_until(lambda: (probe.model().get("total_bytes") or 0) > 100_000)
    held_back[PIPELINE].set()
    wait_until(lambda: probe.model().get("stage") == "loading")
    held_back[LORA].set()
    wait_until(lambda: probe.look().get("http") == 200)
    return probe.seen


def read_all(file: int, into: list[str]) -> Thread:
    """Reads a terminal, or a pipe, until its other side is gone."""

    def read() -> None:
        with suppress(OSError):
            while data := os.read(file, 65_536):
                into.append(data.decode(errors="replace"))

    thread = Thread(target=read, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def hub(
    model_directories: dict[str, Path], save_lora: Callable[..., Path], tmp_path: Path
) -> Callable[..., Any]:
    """A hub that has one tiny Stable Diffusion with a LoRA, and holds back what it is told to."""
    folder = tmp_path / "acme"
    shutil.copytree(model_directories["sd"], folder)
    save_lora(folder, folder / LORA, seed=0)
    return lambda held_back: local_hub("acme/tiny", folder, held_back=held_back)


@pytest.fixture
def held_back() -> dict[str, Event]:
    """What lets go of the files without which a stage is not over."""
    return {PIPELINE: Event(), LORA: Event()}


def test_a_terminal_and_readyz_show_each_stage(
    hub: Callable[..., Any], held_back: dict[str, Event], tmp_path: Path
):
    """Bytes as they come, then the other stages with their time, then a line that stays; `/readyz` says the same."""
    controller, terminal = pty.openpty()
    screen: list[str] = []
    reading = read_all(controller, screen)
    port = free_port()
    with hub(held_back) as (url, _), serving(tmp_path, url, err=terminal, port=port):
        os.close(terminal)
        seen = watch_until_ready(f"http://127.0.0.1:{port}", held_back)
    reading.join(PATIENCE_S)
    os.close(controller)

    loading = [body for body in seen if body.get("state") == "loading" and "models" in body]
    assert {body["http"] for body in loading} == {503}
    assert {body["retry_after"] for body in loading} == {"10"}
    stages = [body["models"]["tiny"]["stage"] for body in loading]
    assert stages == sorted(stages, key=STAGES.index)
    assert {"downloading", "loading"} <= set(stages)
    downloads = [
        body["models"]["tiny"] for body in loading if body["models"]["tiny"]["stage"] == "downloading"
    ]
    done = [each["done_bytes"] for each in downloads]
    assert done == sorted(done)
    assert max(each["total_bytes"] for each in downloads) > 100_000
    assert all(each["done_bytes"] <= each["total_bytes"] for each in downloads)
    assert loading[-1]["error"]["code"] == "no_worker"

    text = "".join(screen)
    assert re.search(r"tiny: downloading +\d+% \|.*\d[\d.]*k?/\d[\d.]*k", text), text
    assert re.search(r"tiny: loading \.\.\. 00:0\d", text)
    assert re.search(r"tiny: ready after \d+\.\d s", text)
    assert "\x1b[A" not in text  # nor does ours leave room for bars that are hidden
    assert "it/s]" not in text  # no other bar than ours
    assert not [line for line in text.splitlines() if line.startswith("{")]


def test_where_nobody_watches_the_log_says_it(
    hub: Callable[..., Any], held_back: dict[str, Event], tmp_path: Path
):
    """One line for each stage, in order, and no bar among them."""
    reader, writer = os.pipe()
    written: list[str] = []
    reading = read_all(reader, written)
    port = free_port()
    with hub(held_back) as (url, fetched), serving(tmp_path, url, err=writer, port=port):
        os.close(writer)
        watch_until_ready(f"http://127.0.0.1:{port}", held_back)
        made = httpx.post(
            f"http://127.0.0.1:{port}/v1/images/generations", json={"prompt": "a star"}, timeout=PATIENCE_S
        )
    reading.join(PATIENCE_S)
    os.close(reader)
    assert made.status_code == 200, made.text
    lines = [line for line in "".join(written).splitlines() if line]
    assert [line for line in lines if not line.startswith(("{", "Loading tiny ..."))] == []
    told = [json.loads(line) for line in lines if line.startswith("{")]
    stages = [line["stage"] for line in told if line["event"] == "model_progress"]
    assert list(dict.fromkeys(stages)) == ["downloading", "loading", "warming_up", "ready"]
    assert {"model_warmed_up", "sign in to be served faster"} <= {line["event"] for line in told}
    assert {PIPELINE, LORA} <= set(fetched)
    assert len(fetched) == len(set(fetched))
