"""What is written is what ships, and what ships is what can be read without running code."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.export import export_judge, export_pipeline, load_judge
from sparke_engine.demo.networks import Judge, build_text_encoder, build_tokenizer, build_unet, build_vae
from sparke_engine.demo.training_data import ExampleSource
from sparke_engine.diffusion.pipelines import demo_weights, load_pipeline

CPU = torch.device("cpu")
MIB = 2**20


def test_the_weights_that_ship() -> None:
    """At most 24 MiB, no file over 15 MiB; all weights are safetensors in half precision, the rest is JSON."""
    folder = demo_weights()
    files = [
        path for path in (*folder.rglob("*"), *(folder.parent / "judge_weights").rglob("*")) if path.is_file()
    ]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in weights} == {"text_encoder", "unet", "vae", "judge_weights"}
    assert sum(path.stat().st_size for path in weights) <= 24 * MIB
    assert max(path.stat().st_size for path in files) <= 15 * MIB
    for path in weights:
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - no mapping
        assert kinds == {torch.float16}, path


def test_the_judge_comes_back(tmp_path: Path) -> None:
    """Its weights to half precision, in evaluation mode and single precision; what was exported stays as it was."""
    torch.manual_seed(5)
    judge = Judge()
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    export_judge(judge, tmp_path / "judge")
    loaded = load_judge(CPU, tmp_path / "judge")
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name].half().float())
        assert torch.equal(judge.state_dict()[name], before[name])
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (features, logits), (expected, _) = loaded(pictures), judge(pictures)
    assert features.shape == (2, 128)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        "shape": (2, 8),
        "colour": (2, 8),
        "background": (2, 8),
        "texture": (2, 3),
    }
    torch.testing.assert_close(features, expected, atol=0.02, rtol=0.02)  # weights rounded to 11 bits


@pytest.mark.parametrize("scaling_factor", [0.7231, 0.18215])
def test_a_pipeline_comes_back(tmp_path: Path, scaling_factor: float) -> None:
    """Stock diffusers loads it, with the VAE's scaling factor and every weight to half precision."""
    torch.manual_seed(6)
    tokenizer = build_tokenizer(caption_table())
    models = {"text_encoder": build_text_encoder(tokenizer), "vae": build_vae(), "unet": build_unet()}
    models["vae"].register_to_config(scaling_factor=scaling_factor)
    export_pipeline(tmp_path / "weights", tokenizer=tokenizer, **models)
    pipe = load_pipeline(str(tmp_path / "weights"))
    assert pipe.vae.config.scaling_factor == scaling_factor
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    for name, model in models.items():
        assert model.dtype == torch.float32
        loaded = getattr(pipe, name).state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(loaded[key], value.half().float()), (name, key)
    assert pipe.tokenizer("a red circle").input_ids == tokenizer("a red circle").input_ids


def test_the_shipped_vae_has_a_measured_scaling_factor() -> None:
    """Latents of fresh renders have a standard deviation of one: the factor is that of this VAE, no default."""
    vae = load_pipeline("builtin:demo").vae
    pictures = 2 * ExampleSource(caption_table(), device=CPU, seed=77).draw(64).pictures - 1
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
