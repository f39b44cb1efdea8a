"""What a library user gives is looked at: a wrong type is an InvalidArgument that says what was expected and found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparke_engine import MemoryBank, guided, load_demo_pipeline, remember_pictures
from sparke_engine.diffusion.families import embed_prompt
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.presets import preset_named
from sparke_engine.scores import (
    CosineKernel,
    clip_score,
    cond_rke,
    cond_vendi,
    frechet_distance,
    prdc,
    rke,
    similarity_gain,
    vendi,
)

pytestmark = pytest.mark.usefixtures("unchecked_types")
ROWS = torch.eye(3)
KERNEL = CosineKernel()


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The model that ships."""
    return load_demo_pipeline()


def filled() -> MemoryBank:
    """A bank of the demo model's kind."""
    bank = MemoryBank()
    bank.append(torch.randn(2, 16), torch.randn(2, 192))
    return bank


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bank": []}, "bank is a MemoryBank, got a list"),
        ({"bank": None}, "bank is a MemoryBank, got a NoneType"),
        ({"strength": "0.5"}, r"strength is in \[0, 1\], got '0.5'"),
        ({"strength": None}, r"strength is in \[0, 1\], got None"),
        ({"preset": 5}, "preset is a DiversityPreset or the name of one, got a int"),
        ({"preset": "demmo"}, "no diversity preset 'demmo'"),
        ({"novelty": filled()}, r"novelty is a pair \(bank, weight\), got a MemoryBank"),
        ({"context": (filled(),)}, r"context is a pair \(bank, weight\), got a tuple"),
        ({"novelty": ([], 0.5)}, "the bank of novelty is a MemoryBank, got a list"),
        ({"context": (filled(), "0.5")}, r"the weight of context is in \[0, 1\], got '0.5'"),
        ({"context": (0.5, filled())}, "the bank of context is a MemoryBank, got a float"),
    ],
)
def test_what_a_block_is_given(pipe: Any, given: dict[str, Any], said: str) -> None:
    """On entry, before anything is wrapped."""
    bank = given.pop("bank", MemoryBank())
    with pytest.raises(InvalidArgument, match=said), guided(pipe, bank, "a star", **given):
        pytest.fail("the block must not be entered")
    assert "step" not in vars(pipe.scheduler)


def test_a_preset_by_name(pipe: Any) -> None:
    """A block and pictures take a preset's name for the preset."""
    bank, picture = MemoryBank(), Image.new("RGB", (64, 64), "red")
    with guided(pipe, bank, "a star", preset="demo-fine") as guide:
        pipe("a star", num_inference_steps=1, output_type="latent")
    assert guide.groups[0].preset == preset_named("demo-fine")
    remember_pictures(pipe, bank, [picture], preset="demo-fine")
    assert bank.features.shape == (2, 1024)


@pytest.mark.parametrize(
    "pictures",
    [
        Image.new("RGB", (64, 64)),
        "star.png",
        Path("star.png"),
        ["star.png"],
        torch.rand(1, 3, 64, 64),
        np.zeros((1, 64, 64, 3), np.uint8),
        [np.zeros((64, 64, 3), np.uint8)],
        None,
    ],
)
def test_pictures_are_a_list_of_pillows(pipe: Any, pictures: Any) -> None:
    """One by itself, paths, and arrays are refused, and nothing is added."""
    bank = MemoryBank()
    with pytest.raises(InvalidArgument, match=r"pictures are a list of PIL images, got"):
        remember_pictures(pipe, bank, pictures)
    assert len(bank) == 0


def test_pictures_enter_a_bank(pipe: Any) -> None:
    """And nothing else."""
    with pytest.raises(InvalidArgument, match="bank is a MemoryBank, got a list"):
        remember_pictures(pipe, [], [Image.new("RGB", (64, 64))])


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], np.ones((1, 2)), None, "rows"])
def test_rows_are_tensors(rows: Any) -> None:
    """In a bank, and in every score."""
    bank, good, said = MemoryBank(), torch.ones(1, 2), "are a tensor"
    calls: list[Callable[[], Any]] = [
        lambda: bank.append(rows, good),
        lambda: bank.append(good, rows),
        lambda: bank.neighbours(rows, preset_named("demo")),
        lambda: rke(rows, KERNEL),
        lambda: cond_vendi(ROWS, rows, (KERNEL, KERNEL)),
        lambda: frechet_distance(ROWS, rows),
        lambda: prdc(rows, ROWS, num_neighbours=1),
        lambda: clip_score(ROWS, rows),
        lambda: similarity_gain(ROWS, rows, torch.ones(3), KERNEL),
        lambda: similarity_gain(ROWS, ROWS, rows, KERNEL),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=said):
            call()
    assert len(bank) == 0


def test_what_a_bank_is_asked() -> None:
    """Rows of finite numbers, by a rule."""
    bank, rule = filled(), preset_named("demo")
    with pytest.raises(ShapeMismatch, match=r"prompt embeddings are rows"):
        bank.neighbours(torch.ones(192), rule)
    with pytest.raises(InvalidArgument, match="NaN"):
        bank.neighbours(torch.full((1, 192), torch.nan), rule)
    with pytest.raises(InvalidArgument, match="rule is a preset, got a str"):
        bank.neighbours(torch.ones(1, 192), "demo")  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["cosine", None, CosineKernel, 0.5])
def test_a_kernel_is_one(kernel: Any) -> None:
    """No name, class or bandwidth of one; of two each is looked at."""
    said = r"a kernel is GaussianKernel\(bandwidth\) or CosineKernel\(\), got"
    calls: list[Callable[[], Any]] = [
        lambda: vendi(ROWS, kernel),
        lambda: rke(ROWS, kernel),
        lambda: cond_rke(ROWS, ROWS, (kernel, KERNEL)),
        lambda: cond_vendi(ROWS, ROWS, (KERNEL, kernel)),
        lambda: similarity_gain(ROWS, ROWS, torch.ones(3), kernel),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=said):
            call()


@pytest.mark.parametrize("score", [cond_rke, cond_vendi])
def test_a_conditional_score_has_two_kernels(score: Callable[..., float]) -> None:
    """One is not enough."""
    for kernels in (KERNEL, (KERNEL,)):
        with pytest.raises(InvalidArgument, match=r"kernels are a pair \(k_Z, k_Y\), got"):
            score(ROWS, ROWS, kernels)


def test_a_dtype_by_name() -> None:
    """The demo model takes one, and says which there are; so it does of a device."""
    assert load_demo_pipeline(dtype="bfloat16").unet.dtype == torch.bfloat16
    for dtype in ("half", 16, None):
        with pytest.raises(InvalidArgument, match="dtype is one of float32"):
            load_demo_pipeline(dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="no device 'gpu'"):
        load_demo_pipeline("gpu")


@pytest.mark.parametrize("shape", [(2, 192), (1, 77, 192), (), (2, 1)])
def test_an_embedding_is_one_row(pipe: Any, shape: tuple[int, ...]) -> None:
    """Several are not flattened into one, which would fix the bank's width."""
    bank = MemoryBank()
    with (
        pytest.raises(ShapeMismatch, match=r"embedding is one row, \[p\] or \[1,p\], got"),
        guided(pipe, bank, torch.ones(shape)),
    ):
        pytest.fail("the block must not be entered")


@pytest.mark.parametrize("shape", [(192,), (1, 192)])
def test_a_row_is_one(pipe: Any, shape: tuple[int, ...]) -> None:
    """With a batch axis or without."""
    assert embed_prompt(pipe, torch.ones(shape)).tolist() == pytest.approx([192**-0.5] * 192)
