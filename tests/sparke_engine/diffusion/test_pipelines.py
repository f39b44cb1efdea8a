"""Loading models."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import diffusers
import pytest
import torch

from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup
from sparke_engine.diffusion.pipelines import demo_weights, load_demo_pipeline, load_engine, load_pipeline
from sparke_engine.errors import InvalidArgument, ModelNotLoadable, UnsupportedScheduler
from sparke_engine.guidance.presets import preset_named


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def test_a_source_without_a_model(tmp_path: Path) -> None:
    """An empty directory is ModelNotLoadable, naming it."""
    with pytest.raises(ModelNotLoadable, match=str(tmp_path)):
        load_engine(str(tmp_path))


@pytest.mark.parametrize(("family", "tokenizer"), [("sdxl", "tokenizer_2"), ("pixart", "tokenizer")])
def test_a_model_without_words_is_none(
    model_directories: dict[str, Path], tmp_path: Path, family: str, tokenizer: str
) -> None:
    """Of no files transformers makes a tokenizer that knows no word: all prompts would be one."""
    directory = tmp_path / "wordless"
    shutil.copytree(model_directories[family], directory)
    shutil.rmtree(directory / tokenizer)
    with pytest.raises(ModelNotLoadable, match=f"{tokenizer} knows no words"):
        load_engine(str(directory))


def test_only_safetensors_are_read(model_directories: dict[str, Path], tmp_path: Path) -> None:
    """A directory whose weights are pickles is refused."""
    directory = tmp_path / "pickled"
    shutil.copytree(model_directories["sd"], directory)
    unet = diffusers.UNet2DConditionModel.from_pretrained(directory / "unet")
    (directory / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet.state_dict(), directory / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelNotLoadable):
        load_engine(str(directory))


def test_code_from_the_source_is_not_run(model_directories: dict[str, Path], tmp_path: Path) -> None:
    """A directory that names a pipeline class of its own is refused, and its code not executed."""
    directory, trace = tmp_path / "custom", tmp_path / "executed"
    shutil.copytree(model_directories["sd"], directory)
    (directory / "pipeline.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass MyPipeline: ...\n")
    index = directory / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '["pipeline", "MyPipeline"]'))
    with pytest.raises(ModelNotLoadable):
        load_engine(str(directory))
    assert not trace.exists()


@pytest.mark.parametrize(("family", "name"), [("sd", "sd"), ("sdxl", "sdxl"), ("sd3", "sd3")])
def test_presets_by_name(model_directories: dict[str, Path], family: str, name: str) -> None:
    """`default` is the preset of the model's kind; a name is that preset; an unknown one is refused."""
    source = str(model_directories[family])
    assert load_engine(source).preset == preset_named(name)
    assert load_engine(source, preset="paper").preset == preset_named("paper")
    with pytest.raises(InvalidArgument, match="no diversity preset"):
        load_engine(source, preset="none such")


def test_a_scheduler_is_swapped_with_its_configuration(model_directories: dict[str, Path]) -> None:
    """The new scheduler keeps the model's noise schedule."""
    pipe = load_pipeline(str(model_directories["sd"]), scheduler="EulerDiscreteScheduler")
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_a_model_becomes_a_few_step_model(model_directories: dict[str, Path]) -> None:
    """The schedulers of distilled models are swapped in too, as LoRA weights for few steps need it."""
    for name in ("LCMScheduler", "TCDScheduler"):
        pipe = load_pipeline(str(model_directories["sd"]), scheduler=name)
        assert type(pipe.scheduler).__name__ == name
        assert pipe.scheduler.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd", "FlowMatchEulerDiscreteScheduler"),
        ("sd3", "DDIMScheduler"),
        ("sd", "DDIMInverseScheduler"),
        ("sd", "os"),
    ],
)
def test_a_scheduler_that_does_not_fit(
    model_directories: dict[str, Path], family: str, scheduler: str
) -> None:
    """A scheduler of another family, without algebra, or that is none, is refused with those that are possible."""
    with pytest.raises(UnsupportedScheduler, match=r"possible: .*Scheduler"):
        load_engine(str(model_directories[family]), scheduler=scheduler)


@pytest.mark.skipif(find_spec("torchsde") is not None, reason="torchsde is installed")
def test_a_scheduler_that_needs_another_package(model_directories: dict[str, Path]) -> None:
    """A scheduler whose package is not installed is refused by a message that names the package."""
    with pytest.raises(UnsupportedScheduler, match="torchsde"):
        load_engine(str(model_directories["sd"]), scheduler="DPMSolverSDEScheduler")


def test_an_unknown_dtype_is_refused(model_directories: dict[str, Path]) -> None:
    """A dtype is one of three."""
    with pytest.raises(InvalidArgument, match="float16"):
        load_engine(str(model_directories["sd"]), dtype="int8")


def test_a_model_without_its_optional_encoder(model_directories: dict[str, Path], tmp_path: Path) -> None:
    """Stable Diffusion 3 saved without T5 loads and runs."""
    pipe = load_pipeline(str(model_directories["sd3"]))
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "small", safe_serialization=True)
    engine = load_engine(str(tmp_path / "small"))
    group = SampleGroup("a cat", "", (1,), 0.5, None)
    samples = engine.generate([group], DenoisingPlan(32, 32, 2, 5.0), silent)
    assert samples[0][0].image.size == (32, 32)


@pytest.mark.skipif(not demo_weights().exists(), reason="the demo model is not trained yet")
def test_the_demo_model_loads() -> None:
    """The model that ships loads as a stock pipeline and as an engine with the preset `demo`, and makes an image."""
    pipe = load_demo_pipeline()
    assert type(pipe) is diffusers.StableDiffusionPipeline
    engine = load_engine("builtin:demo")
    assert engine.preset == preset_named("demo")
    samples = engine.generate(
        [SampleGroup("a red star", "", (1,), 0.5, None)], DenoisingPlan(64, 64, 2, 5.0), silent
    )
    assert samples[0][0].image.size == (64, 64)


def test_weights_go_straight_to_a_plain_device(model_directories):
    """Onto others, which diffusers does not take for a whole pipeline, they are moved."""
    straight = load_pipeline(str(model_directories["sd3"]))
    moved = load_pipeline(str(model_directories["sd3"]), device="meta")
    assert straight.hf_device_map == "cpu"
    assert moved.hf_device_map is None
    parts = [part for part in moved.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.device.type for part in parts} == {"meta"}
