"""LoRAs: on for the plans that name them, without a trace in all others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sparke_engine.diffusion.edits import Picture
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.loras import LoraFile, LoraScale, find_lora
from sparke_engine.diffusion.pipelines import DEMO, TOY, demo_weights, load_engine
from sparke_engine.diffusion.recording import StepRecorder
from sparke_engine.errors import InvalidArgument, InvalidPlan, LoraNotLoadable, ModelNotLoadable
from sparke_engine.guidance.presets import DiversityPreset

FAMILIES = ["sd", "sdxl", "sd3", "flux", "sana"]
PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, relax=0.5, latent_bandwidth=1.5, max_push=10)
PLAN = DenoisingPlan(width_px=32, height_px=32, steps=4, guidance_scale=5.0)
PROMPT = "a cat"
Files = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def files(
    model_directories: dict[str, Path],
    save_lora: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Files:
    """Two LoRAs of all parts of a family, `ink` and `oil`, saved when first asked for."""
    folder, known = tmp_path_factory.mktemp("loras"), dict[str, dict[str, Path]]()

    def of(family: str) -> dict[str, Path]:
        if family not in known:
            known[family] = {
                name: save_lora(model_directories[family], folder / family / f"{name}.safetensors", seed=seed)
                for seed, name in enumerate(("ink", "oil"))
            }
        return known[family]

    return of


@pytest.fixture
def load(model_directories: dict[str, Path]) -> Callable[..., PipelineEngine]:
    """Loads a tiny engine with LoRAs by name."""

    def loaded(family: str, loras: dict[str, Path] | None = None) -> PipelineEngine:
        named = [LoraFile(name, path) for name, path in (loras or {}).items()]
        engine = load_engine(str(model_directories[family]), preset=PRESET, loras=named)
        assert isinstance(engine, PipelineEngine)
        return engine

    return loaded


Load = Callable[..., PipelineEngine]


def named(**scales: float) -> DenoisingPlan:
    """The plan with these LoRAs."""
    return replace(PLAN, loras=tuple(LoraScale(name, scale) for name, scale in scales.items()))


def made(engine: ImageEngine, plan: DenoisingPlan = PLAN, strength: float = 0.0) -> list[Sample]:
    """Two images of one group."""
    (samples,) = engine.generate([SampleGroup(PROMPT, "", (1, 2), strength, None)], plan, lambda *_: None)
    return samples


def bits(samples: list[Sample]) -> list[bytes]:
    """Pixels and features, bit for bit."""
    return [sample.image.tobytes() + sample.feature.numpy().tobytes() for sample in samples]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_without_loras_is_what_it_was_before_any(load: Load, files: Files, family: str) -> None:
    """Before two are loaded, beside them, and after runs with each: the same bits, and the same prompt embeddings."""
    untouched = load(family)
    expected, embedding = bits(made(untouched)), untouched.embed_prompts([PROMPT, "a dog"])
    engine = load(family, files(family))
    assert bits(made(engine)) == expected
    for plan in (named(ink=1.0), named(oil=0.5), named(ink=1.0, oil=-1.0)):
        made(engine, plan)
        assert bits(made(engine)) == expected
    assert torch.equal(engine.embed_prompts([PROMPT, "a dog"]), embedding)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_set_of_loras_makes_its_own_images(load: Load, files: Files, family: str) -> None:
    """Name, scale and company matter, runs in between do not, and a LoRA is the same beside others as by itself."""
    engine = load(family, files(family))
    plans = [PLAN, named(ink=1.0), named(oil=1.0), named(ink=0.5), named(ink=1.0, oil=0.5)]
    first = [tuple(bits(made(engine, plan))) for plan in plans]
    assert len(set(first)) == len(plans)
    assert [tuple(bits(made(engine, plan))) for plan in reversed(plans)] == first[::-1]
    alone = load(family, {"oil": files(family)["oil"]})
    assert tuple(bits(made(alone, named(oil=1.0)))) == first[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_with_a_lora_is_the_stock_pipelines(load: Load, files: Files, family: str) -> None:
    """What diffusers makes with `load_lora_weights` and `set_adapters` by hand, pixel for pixel."""
    engine, by_hand = load(family, files(family)), load(family)
    path = files(family)["ink"]
    pipe = by_hand.pipeline
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="mine")
    pipe.set_adapters(["mine"], [0.75])
    assert bits(made(engine, named(ink=0.75))) == bits(made(by_hand))


@pytest.mark.parametrize(
    ("family", "masked"),
    [("sd", False), ("sd", True), ("sdxl", True), ("sd3", False), ("flux", False), ("flux", True)],
)  # the editor of SD3 takes masks with 16 channels alone, which the tiny one has not
def test_edits_have_their_loras_and_leave_none_on(
    load: Load, files: Files, family: str, *, masked: bool
) -> None:
    """An editor is another pipeline of the same parts: with a LoRA it paints otherwise, and next without it as before."""
    engine, size_px = load(family, files(family)), (PLAN.width_px, PLAN.height_px)
    mask = Image.new("L", size_px, 255) if masked else None
    group = SampleGroup(PROMPT, "", (1, 2), 0.0, None, picture=Picture(Image.new("RGB", size_px), mask))

    def edited(**scales: float) -> tuple[bytes, ...]:
        plan = replace(named(**scales), edit_strength=0.75)
        return tuple(bits(engine.generate([group], plan, lambda *_: None)[0]))

    plain, text_alone = edited(), bits(made(engine))
    assert len({plain, edited(ink=1.0), edited(oil=1.0)}) == 3
    assert (edited(), bits(made(engine))) == (plain, text_alone)


def test_what_trainers_write_is_read_too(load: Load, files: Files, tmp_path: Path) -> None:
    """A file in the dialect of kohya's scripts, its alphas the ranks, makes the images of the same LoRA in diffusers' own."""
    kohya = {}
    for key, tensor in load_file(files("sd")["ink"]).items():
        layer, _, half = key.removesuffix(".weight").rpartition(".lora_")
        flat = layer.replace("unet.", "lora_unet_", 1).replace("text_encoder.", "lora_te_text_model_", 1)
        flat = flat.replace(".", "_")
        kohya[f"{flat}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor
        kohya[f"{flat}.alpha"] = torch.tensor(2.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    engine = load("sd", {"ink": files("sd")["ink"], "kohya": tmp_path / "kohya.safetensors"})
    assert engine.loras.broken == {}
    assert bits(made(engine, named(kohya=1.0))) == bits(made(engine, named(ink=1.0))) != bits(made(engine))


def test_half_precision_models_take_loras_of_full_precision(
    files: Files, model_directories: dict[str, Path]
) -> None:
    """In bfloat16 a LoRA changes the images, and without it they are what they were."""
    source, path = str(model_directories["sd"]), files("sd")["ink"]
    plain = load_engine(source, preset=PRESET, dtype="bfloat16")
    engine = load_engine(source, preset=PRESET, dtype="bfloat16", loras=[LoraFile("ink", path)])
    assert bits(made(engine, named(ink=1.0))) != bits(made(plain))
    assert bits(made(engine)) == bits(made(plain))


def test_text_encoders_have_their_part_and_the_prompts_embedding_has_none(
    load: Load, model_directories: dict[str, Path], save_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """A LoRA of the text encoder alone changes images. A prompt first embedded within such a run is embedded without it."""
    path = save_lora(model_directories["sd"], tmp_path / "words.safetensors", seed=5, parts=("text_encoder",))
    engine, untouched = load("sd", {"words": path}), load("sd")
    assert bits(made(engine, named(words=1.0), strength=0.5)) != bits(made(engine, strength=0.5))
    assert torch.equal(engine.embed_prompts([PROMPT]), untouched.embed_prompts([PROMPT]))


def test_recorded_guidance_is_not_carried_over_a_switch(load: Load, files: Files) -> None:
    """With guidance recorded and replayed, each set of LoRAs has the bits that it has kernel by kernel."""
    recorded, plain = load("sd", files("sd")), load("sd", files("sd"))
    replays = []

    def record(work: Any) -> Any:
        replays.append(work)
        return work

    recorded._recorder = StepRecorder(record)
    for plan in (PLAN, named(ink=1.0), PLAN, named(oil=1.0), named(ink=1.0)):
        assert bits(made(recorded, plan, 0.8)) == bits(made(plain, plan, 0.8))
    assert replays


def test_a_run_that_breaks_off_leaves_no_lora_on(load: Load, files: Files) -> None:
    """After a cancelled run, as after one without LoRAs, the pipeline is itself."""
    engine = load("sd", files("sd"))
    expected = bits(made(engine))

    def cancel(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([SampleGroup(PROMPT, "", (1,), 0.0, None)], named(ink=1.0), cancel)
    assert bits(made(engine)) == expected


def num_parameters(engine: PipelineEngine) -> int:
    """Of all parts that may have LoRAs."""
    parts = (getattr(engine.pipeline, part) for part in engine.pipeline.get_list_adapters())
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def wrong_files(files: Files, family: str, folder: Path) -> dict[str, Path]:
    """Files that do not fit: another family's, a larger model's, with strange layers or norms, no LoRA, no safetensors."""
    good = load_file(files(family)["oil"])
    wide = {name: torch.cat([one, one], dim=-1) if "lora_A" in name else one for name, one in good.items()}
    strange = {
        f"{'transformer' if family != 'sd' else 'unet'}.nowhere.to_q.lora_{half}.weight": torch.ones(2, 2)
        for half in "AB"
    }
    dora = {"unet.mid_block.dora_scale": torch.ones(2)}
    for name, tensors in {"wide": wide, "strange": good | strange, "other": {"a.b": torch.ones(2)}}.items():
        save_file(tensors, folder / f"{name}.safetensors")
    save_file(good | dora, folder / "dora.safetensors")
    norm = {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.ones(16)}
    save_file(good | norm, folder / "norm.safetensors")
    (folder / "text.safetensors").write_text("no tensors at all")
    found = {path.stem: path for path in folder.glob("*.safetensors")}
    return found | {other: files(other)["ink"] for other in FAMILIES if other != family}


@pytest.mark.parametrize("family", ["sd", "flux", "sana"])
def test_a_file_that_does_not_fit_harms_no_other(
    load: Load, files: Files, family: str, tmp_path: Path
) -> None:
    """Its plans fail with the reason; the LoRAs before and after it, and runs without any, are what they are without it."""
    wrong = wrong_files(files, family, tmp_path)
    good = files(family)
    engine = load(family, {"ink": good["ink"], **wrong, "oil": good["oil"]})
    assert dict.fromkeys(engine.loras.broken) == dict.fromkeys(wrong)
    sound = load(family, good)
    assert engine.pipeline.get_list_adapters().keys() == sound.pipeline.get_list_adapters().keys()
    assert num_parameters(engine) == num_parameters(sound)
    for plan in (PLAN, named(ink=1.0), named(oil=0.5), named(ink=1.0, oil=1.0)):
        assert bits(made(engine, plan)) == bits(made(sound, plan))
    for name, reason in engine.loras.broken.items():
        with pytest.raises(LoraNotLoadable, match=rf"'{name}' does not fit this model: \S+") as caught:
            made(engine, replace(PLAN, loras=(LoraScale("ink", 1.0), LoraScale(name, 1.0))))
        assert (caught.value.name, reason in str(caught.value)) == (name, True)


def test_a_plan_that_names_what_is_not_there_is_refused(load: Load, files: Files) -> None:
    """An unknown name with those that there are, one name twice, and a scale that is no number."""
    engine = load("sd", files("sd"))
    with pytest.raises(InvalidArgument, match="there are: ink, oil"):
        made(engine, named(pastel=1.0))
    with pytest.raises(InvalidArgument, match="once"):
        made(engine, replace(PLAN, loras=(LoraScale("ink", 1.0), LoraScale("ink", 0.5))))
    with pytest.raises(InvalidArgument, match="finite"):
        made(engine, named(ink=float("nan")))
    with pytest.raises(InvalidArgument, match="there are: none"):
        made(load("sd"), named(ink=1.0))


def test_models_that_load_no_lora_say_so(load: Load, files: Files) -> None:
    """PixArt's pipeline has no place for them, and the toy has no weights: both when they are loaded."""
    with pytest.raises(InvalidArgument, match="PixArtSigmaPipeline loads no LoRA"):
        load("pixart", files("sd"))
    with pytest.raises(InvalidArgument, match="toy"):
        load_engine(TOY, loras=[LoraFile("ink", files("sd")["ink"])])
    with pytest.raises(InvalidPlan, match="toy"):
        made(load_engine(TOY), named(ink=1.0))


def test_the_demo_model_loads_loras(save_lora: Callable[..., Path], tmp_path: Path) -> None:
    """The model that ships is a stock pipeline like others."""
    path = save_lora(demo_weights(), tmp_path / "ink.safetensors", seed=1)
    engine = load_engine(DEMO, loras=[LoraFile("ink", path)])
    plan = replace(PLAN, width_px=64, height_px=64, steps=2)
    with_it = replace(plan, loras=(LoraScale("ink", 1.0),))
    expected = bits(made(load_engine(DEMO), plan))
    assert bits(made(engine, with_it)) != expected
    assert bits(made(engine, plan)) == expected


def test_a_lora_is_found_by_path_or_folder(tmp_path: Path) -> None:
    """A file, or a name within a folder; what is not there is named."""
    path = tmp_path / "ink.safetensors"
    path.touch()
    assert find_lora(str(path), "unused.safetensors") == path
    assert find_lora(str(tmp_path), "ink.safetensors") == path
    with pytest.raises(InvalidArgument, match=r"oil\.safetensors"):
        find_lora(str(tmp_path), "oil.safetensors")
    with pytest.raises(ModelNotLoadable, match="ink"):
        find_lora("not a/hub id", "ink.safetensors")
