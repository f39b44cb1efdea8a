"""Models of true size without their weights: how many parameters they have, and how what they need is measured."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_memory import rows_of
from model_memory_worker import fill
from model_shapes import FAMILIES, num_parameters
from resident import note_most, resident_bytes

CLIP_L, CLIP_L_PROJECTED, CLIP_G = 123_060_480, 123_650_304, 694_659_840
T5_XXL, VAE, VAE_16 = 4_762_310_656, 83_653_863, 83_819_683


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("sd", {"unet": 859_520_964, "text_encoder": CLIP_L, "vae": VAE}),
        ("sdxl", {"unet": 2_567_463_684, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "vae": VAE}),
        (
            "sd3",
            {
                "transformer": 2_028_328_000,
                "text_encoder": CLIP_L_PROJECTED,
                "text_encoder_2": CLIP_G,
                "text_encoder_3": T5_XXL,
                "vae": VAE_16,
            },
        ),
        (
            "flux",
            {
                "transformer": 11_901_408_320,
                "text_encoder": CLIP_L,
                "text_encoder_2": T5_XXL,
                "vae": VAE_16,
            },
        ),
        ("pixart", {"transformer": 610_856_096, "text_encoder": T5_XXL, "vae": VAE}),
    ],
)
def test_models_have_the_published_sizes(name, published):
    """To the parameter, part by part; and none takes memory."""
    pipe = FAMILIES[name].make()
    assert num_parameters(pipe) == published
    assert {next(getattr(pipe, part).parameters()).device.type for part in published} == {"meta"}


def test_random_weights_are_of_a_dtype_small_and_tied(tmp_path):
    """What shares its weights in the model shares them in the file."""
    encoder = FAMILIES["flux"].tiny().text_encoder_2.to("meta")
    fill(encoder, torch.float16, "cpu")
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    assert encoder.dtype == torch.float16
    assert 0.015 < encoder.shared.weight.abs().max() < 0.0201
    encoder.save_pretrained(tmp_path)
    num_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert num_bytes < 2 * sum(each.numel() for each in encoder.parameters()) + 4096


def test_memory_of_the_host_is_anonymous_or_of_files():
    """Numbers that the kernel tells of this process; of one that is gone there are none."""
    before = resident_bytes("self")
    fresh = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # an allocator may give what the process held before
    with mmap.mmap(-1, 64 * 2**20, flags=fresh) as held:
        held[:] = b"x" * len(held)
        after = resident_bytes(os.getpid())
    assert after["anonymous"] - before["anonymous"] > 60 * 2**20
    assert after["rss_peak"] >= after["rss"] >= after["anonymous"] + after["of_files"]
    assert resident_bytes(2**22 + 1) == {}
    most = {}
    note_most(most, after)
    note_most(most, before)
    assert most["anonymous"] == after["anonymous"]


def test_a_row_has_what_was_found_of_a_batch():
    """Steps and decoding are an image's share of the batch's."""
    load = {
        "phase": "load",
        "seconds": 3.21,
        "host": {"anonymous": 2_000_000_000},
        "held_bytes": 7_000_000_000,
    }
    batch = {
        "phase": "images: 4",
        "step_s": 0.4,
        "decode_s": 1.0,
        "peak_bytes": 9e9,
        "used_bytes": 10_500_000_000,
    }
    found = {
        "family": "sdxl",
        "way": "worker",
        "parameters": {"unet": 1000, "vae": 234},
        "stored_bytes": 14_000_000_000,
        "phases": [load, batch],
        "most": {"load": {"anonymous": 2_500_000_000, "rss": 15_000_000_000}},
    }
    told = "| sdxl | worker | 1,234 | 14.00 | 3.2 | 2.50 | 15.00 | 2.00 | 7.00 | 4 | 9.00 | 10.50 | 100.0 | 250.0 |"
    assert rows_of(found) == [told]


@pytest.mark.slow
def test_the_tiny_form_runs_through(tmp_path):
    """Saved, loaded as a worker loads it and by way of the host, and images made, in processes of their own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "benchmarks" / "model_memory.py"), "--tiny", "--device", "cpu"]
    more = [
        "--family",
        "sdxl",
        "--images",
        "2",
        "--steps",
        "3",
        "--out",
        tmp_path,
        "--models",
        tmp_path / "models",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    subprocess.run([*command, *more], check=True, env=environment, timeout=280)
    worker, together, host = json.loads((tmp_path / "model-memory.json").read_text())
    phases = ["libraries", "device", "load", "warm-up", "images: 2"]
    assert [[phase["phase"] for phase in found["phases"]] for found in (worker, together)] == [phases] * 2
    assert [phase["phase"] for phase in host["phases"]] == ["libraries", "device", "load"]
    assert worker["most"]["load"]["rss"] >= worker["most"]["load"]["anonymous"] > 10**8
    assert worker["phases"][-1]["step_s"] > 0
    assert not list((tmp_path / "models").glob("*/"))
