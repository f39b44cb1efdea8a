"""Training runs, goes on where it stood, and exports a model that serves."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sparke_engine.demo.export import load_judge
from sparke_engine.demo.train import STEPS, Workshop, train_judge
from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine, load_pipeline

ARGUMENTS = ["--device", "cpu", "--batch", "8", "--num-latents", "8", "--seed", "3"]


def _workshop(out: Path, *, num_steps: int, extend: str | None = None) -> Workshop:
    counts = {f"{name}_steps": num_steps for name in STEPS}
    return Workshop(
        argparse.Namespace(
            out=str(out), device="cpu", seed=3, batch=8, num_latents=8, seconds=0.0, extend=extend, **counts
        )
    )


def _progress(out: Path, stage: str) -> tuple[str, str]:
    with safe_open(out / f"{stage}.checkpoint.safetensors", framework="pt") as file:
        return file.metadata()["step"], file.metadata()["finished"]


def test_a_stage_trains_stays_finished_and_goes_on_when_told(tmp_path: Path) -> None:
    """Two steps; a second run with more adds none; `extend` adds them from where the first one stood."""
    train_judge(_workshop(tmp_path, num_steps=2))
    assert _progress(tmp_path, "judge") == ("2", "1")
    first = (tmp_path / "judge" / "judge.safetensors").read_bytes()
    train_judge(_workshop(tmp_path, num_steps=4))
    assert _progress(tmp_path, "judge") == ("2", "1")
    assert (tmp_path / "judge" / "judge.safetensors").read_bytes() == first
    train_judge(_workshop(tmp_path, num_steps=4, extend="judge"))
    assert _progress(tmp_path, "judge") == ("4", "1")
    assert (tmp_path / "judge" / "judge.safetensors").read_bytes() != first


def test_the_same_seed_trains_the_same_model(tmp_path: Path) -> None:
    """Two runs from nothing write equal files; a stage's draws are its own."""
    for name in ("one", "two"):
        train_judge(_workshop(tmp_path / name, num_steps=2))
    one, two = ((tmp_path / name / "judge" / "judge.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
@pytest.mark.timeout(900)  # most of it encodes every caption once
def test_all_stages_from_nothing_to_a_model_that_serves(tmp_path: Path) -> None:
    """Two steps each by the documented command, then more steps of one stage; stock diffusers loads what it exports."""
    command = [sys.executable, "-m", "sparke_engine.demo.train", "all", "--out", str(tmp_path), *ARGUMENTS]
    steps = [part for name in STEPS for part in (f"--{name}-steps", "2")]
    subprocess.run([*command, *steps], check=True, capture_output=True)
    assert [_progress(tmp_path, stage) for stage in STEPS] == [("2", "1")] * 4
    figures = json.loads((tmp_path / "judge.json").read_text(encoding="utf-8"))
    assert 0 <= figures["shape, colour and background"] < 0.5
    load_judge(torch.device("cpu"), tmp_path / "judge")
    pipe = load_pipeline(str(tmp_path / "weights"))
    assert pipe.vae.config.scaling_factor != 0.18215
    engine = load_engine(str(tmp_path / "weights"), preset="demo")
    ((sample,),) = engine.generate(
        [SampleGroup("a red star", "", (1,), 0.5, None)], DenoisingPlan(64, 64, 2, 5.0), lambda _d, _n: None
    )
    assert sample.image.size == (64, 64)
