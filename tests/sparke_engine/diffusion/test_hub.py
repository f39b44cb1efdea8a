"""A hub that does not answer costs seconds where the model is here, and says what to do where it is not."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from patience import PATIENCE_S
from serving import serving

from sparke_engine.diffusion.pipelines import demo_weights

LOAD = """
import time
import diffusers.pipelines.stable_diffusion  # what importing takes is no wait for the hub
from sparke_engine.diffusion.fetching import fetch_pipeline
from sparke_engine.diffusion.pipelines import load_pipeline
began_s = time.monotonic()
print(fetch_pipeline("acme/tiny", None, lambda done, total: None))
print(time.monotonic() - began_s)
print(type(load_pipeline("acme/tiny")).__name__)
"""
FIND = """
import time
from sparke_engine.diffusion.loras import find_lora
import huggingface_hub
began_s = time.monotonic()
print(find_lora("acme/tiny", "style.safetensors").name, time.monotonic() - began_s)
"""
ASK = f"""
from sparke_engine.diffusion.hub import hub_answers
print(hub_answers(within_s={PATIENCE_S}))
"""


@contextmanager
def silent() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    """A port that nobody listens at; it stays this test's, so nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers everything in one way."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"


def run(code: str, home: object, endpoint: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program with that hub and that cache."""
    given = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), **variables}
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | given
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture
def cached(tmp_path):
    """A home of the hub's client that has all of acme/tiny: the demo model, as a download leaves it."""
    repository, commit = tmp_path / "hub" / "models--acme--tiny", "a" * 40
    shutil.copytree(demo_weights(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return tmp_path


@pytest.mark.parametrize("hub", [silent, refusing])
def test_a_model_that_is_here_is_loaded_from_here(cached, hub):
    """Without the client's own patience, which is minutes where nothing comes back."""
    began_s = time.monotonic()
    with hub() as endpoint:
        done = run(LOAD, cached, endpoint)
    is_answered, fetch_s, name = done.stdout.split()
    assert (is_answered, name) == ("False", "StableDiffusionPipeline"), done.stderr
    assert float(fetch_s) < 3 + 20  # what a busy machine adds; the client alone would need longer
    assert (
        time.monotonic() - began_s < 200
    )  # imports on a busy machine, and nothing like the client's patience
    assert "Retrying" not in done.stderr


def test_a_lora_that_is_here_is_taken_from_here(cached):
    """As a model is: each would cost the client's patience by itself."""
    [snapshot] = cached.glob("hub/*/snapshots/*")
    (snapshot / "style.safetensors").write_bytes(b"any")
    with silent() as endpoint:
        done = run(FIND, cached, endpoint)
    name, took_s = done.stdout.split()
    assert name == "style.safetensors"
    assert float(took_s) < 3 + 5  # and what a busy machine adds; the client alone takes 10 and more


def test_a_lora_that_is_not_here_comes_with_what_to_do(cached):
    """As a model does."""
    with refusing() as endpoint:
        done = run(FIND, cached, endpoint)
    assert done.returncode == 1
    assert "ModelNotLoadable: no LoRA style.safetensors could be had" in done.stderr
    assert "`hf download acme/tiny`" in done.stderr.splitlines()[-1]


def test_a_model_of_which_words_are_missing_is_not_all_here(cached):
    """A download that was broken off may have all weights and no tokenizer."""
    [tokenizer] = cached.glob("hub/*/snapshots/*/tokenizer")
    shutil.rmtree(tokenizer)
    with refusing() as endpoint:
        done = run(LOAD, cached, endpoint)
    assert done.returncode == 1
    assert "ModelNotLoadable" in done.stderr
    assert "`hf download acme/tiny`" in done.stderr.splitlines()[-1]


def test_a_model_that_is_not_here_comes_with_what_to_do(tmp_path):
    """The message names the hub, the cache and the way."""
    with refusing() as endpoint:
        done = run(LOAD, tmp_path, endpoint)
    assert done.returncode == 1
    assert "ModelNotLoadable" in done.stderr
    for part in (endpoint, str(tmp_path / "hub"), "HF_ENDPOINT", "`hf download acme/tiny`", "HF_HOME"):
        assert part in done.stderr.splitlines()[-1], part


@pytest.mark.parametrize(
    ("status", "answers"), [(200, "True"), (401, "True"), (404, "True"), (429, "False"), (503, "False")]
)
def test_what_counts_as_an_answer(tmp_path, status, answers):
    """Any, but that it can do no more: then the client would try again and again."""
    with answering(status) as endpoint:
        assert run(ASK, tmp_path, endpoint).stdout.strip() == answers


def test_nobody_is_asked_offline(tmp_path):
    """HF_HUB_OFFLINE leaves all to the client, which asks nobody: the port would not answer."""
    with silent() as endpoint:
        assert run(ASK, tmp_path, endpoint, HF_HUB_OFFLINE="1").stdout.strip() == "True"
