"""What goes wrong in a block of `guided` is heard: a wrong pipeline, scheduler, prompt, strength or memory."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from sparke_engine import MemoryBank, guided
from sparke_engine.diffusion.families import embed_prompt
from sparke_engine.errors import InvalidArgument, MisplacedGuidance, ShapeMismatch
from sparke_engine.guidance.presets import PAPER, DiversityPreset

families = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_families.py")))
PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, latent_bandwidth=1.5, max_push=10)
RELAXING = replace(PRESET, eta=1e-9, relax=1.0)
OTHER_WIDTH = replace(PRESET, grid=(2, 2))


def tiny(name: str = "StableDiffusionPipeline") -> Any:
    """A tiny pipeline of that class."""
    return next(case for case in families.CASES if case.name == name).load()


@pytest.fixture
def pipe() -> Any:
    """A tiny Stable Diffusion."""
    return tiny()


def latents_of(pipe: Any, prompt: Any = "a cat", *, seeds: tuple[int, ...] = (1,), **more: Any) -> Tensor:
    """The pipeline called as a user calls it."""
    given = {
        "width": 32,
        "height": 32,
        "num_inference_steps": 4,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }
    if not isinstance(prompt, list):
        given["num_images_per_prompt"] = len(seeds)
    latents: Tensor = pipe(prompt, **(given | more)).images
    return latents


def image_to_image(pipe: Any) -> Any:
    """Another pipeline of the same parts, scheduler included."""
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def from_image(other: Any, strength: float = 0.5) -> Tensor:
    """The other pipeline called."""
    latents: Tensor = other(
        "a dog", Image.new("RGB", (32, 32), "gray"), strength=strength, output_type="latent"
    ).images
    return latents


def test_a_scheduler_that_is_swapped_in_the_block(pipe: Any) -> None:
    """What the new scheduler makes is not guided: the block ends with an error, and the old scheduler is stock."""
    bank, old = MemoryBank(), pipe.scheduler

    def make_and_swap() -> None:
        latents_of(pipe)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(old.config)
        latents_of(pipe)

    with pytest.raises(MisplacedGuidance, match="EulerDiscreteScheduler"), guided(pipe, bank, "a cat"):
        make_and_swap()
    assert len(bank) == 0
    assert "step" not in vars(old)


def test_a_block_in_which_another_pipeline_runs(pipe: Any) -> None:
    """Where the block's own pipeline made nothing, the block ends with an error."""
    other = tiny()
    with pytest.raises(MisplacedGuidance, match="nothing"), guided(pipe, MemoryBank(), "a cat"):
        latents_of(other)


@pytest.mark.parametrize("runs_before", [0, 1])
def test_another_pipeline_on_the_guided_scheduler(pipe: Any, runs_before: int) -> None:
    """It is not pushed under a prompt that is not its own: its first step is an error; outside the block it is stock."""
    other, bank = image_to_image(pipe), MemoryBank()

    def run_both() -> None:
        for _ in range(runs_before):
            latents_of(pipe)
        from_image(other)

    for _ in range(2):  # also where the pipeline itself ran before the block
        with pytest.raises(MisplacedGuidance, match="StableDiffusionPipeline"), guided(pipe, bank, "a cat"):
            run_both()
        assert len(bank) == 0
        from_image(other)
        latents_of(pipe)
    with guided(pipe, bank, "a cat") as guide:
        latents_of(pipe)
        latents_of(pipe)
    assert len(guide.runs) == 2
    assert type(pipe._num_timesteps) is int


def test_an_interrupted_run_is_not_remembered(pipe: Any) -> None:
    """A pipeline that is interrupted gives unfinished images, which enter no memory: a warning says so."""

    def interrupt(pipe: Any, index: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return given

    def run_twice() -> int:
        with guided(pipe, bank, "a cat") as guide:
            latents_of(pipe, callback_on_step_end=interrupt)
            latents_of(pipe)
        return len(guide.runs)

    bank = MemoryBank()
    with pytest.warns(UserWarning, match="1 of 2 runs"):
        assert run_twice() == 1
    assert len(bank) == 1


@pytest.mark.parametrize("strength", [1.5, -0.1, float("nan")])
def test_a_strength_outside_its_range_is_refused_on_entry(pipe: Any, strength: float) -> None:
    """Before anything is computed."""
    with (
        pytest.raises(InvalidArgument, match="strength"),
        guided(pipe, MemoryBank(), "a cat", strength=strength),
    ):
        pytest.fail("the block must not be entered")


def test_prompts_that_differ_are_refused(pipe: Any) -> None:
    """One block is for one prompt: a call with two of them, as texts or embeddings, would be remembered under one."""
    bank, pair = MemoryBank(), (1, 2)
    embeds = torch.cat([pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a cat", "a dog")])
    for asked in ({"prompt": ["a cat", "a dog"]}, {"prompt": None, "prompt_embeds": embeds}):
        with pytest.raises(InvalidArgument, match="one prompt"), guided(pipe, bank, "a cat"):
            latents_of(pipe, asked["prompt"], seeds=pair, prompt_embeds=asked.get("prompt_embeds"))
    same = embeds[:1].expand(2, -1, -1)
    with guided(pipe, bank, "a cat"):
        latents_of(pipe, ["a cat", "a cat"], seeds=pair)
        latents_of(pipe, None, seeds=pair, prompt_embeds=same, num_images_per_prompt=1)
    assert len(bank) == 4
    assert "check_inputs" not in vars(pipe)


@pytest.mark.parametrize("asked", ["a cat", ["a cat", "a cat"]])
def test_a_call_for_another_prompt_than_the_blocks_is_refused(pipe: Any, asked: Any) -> None:
    """Its images would be remembered as what they do not show; an embedding in the block's place takes any text."""
    bank = MemoryBank()
    seeds = (1,) if isinstance(asked, str) else (1, 2)
    with pytest.raises(InvalidArgument, match=r"'a star'.*'a cat'"), guided(pipe, bank, "a star"):
        latents_of(pipe, asked, seeds=seeds)
    assert len(bank) == 0
    with guided(pipe, bank, embed_prompt(pipe, "a star")):
        latents_of(pipe, asked, seeds=seeds)
    assert len(bank) == len(seeds)


def test_classes_that_differ_are_refused() -> None:
    """So are two classes of DiT, with guidance and without; one class for all images is not."""
    case = next(case for case in families.CASES if case.name == "DiTPipeline")
    pipe, bank, guidance = case.load(), MemoryBank(), {"num_inference_steps": 2, "output_type": "np"}
    for scale in (1.0, 4.0):
        with pytest.raises(InvalidArgument, match="one prompt"), guided(pipe, bank, case.prompt):
            pipe([case.prompt, case.prompt + 1], guidance_scale=scale, **guidance)
        with guided(pipe, bank, case.prompt):
            pipe([case.prompt] * 2, guidance_scale=scale, **guidance)
    assert len(bank) == 4
    assert not pipe.transformer._forward_pre_hooks


def relaxed(pipe: Any, prompt: Any = "a cat", *, keeps_guidance: bool | None = None, **more: Any) -> Tensor:
    """Two images of one call under a preset that relaxes guidance and hardly pushes."""
    with guided(pipe, MemoryBank(), "a cat", strength=1.0, preset=RELAXING, keeps_guidance=keeps_guidance):
        return latents_of(pipe, prompt, seeds=(1, 2), **more)


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Up to a push of η = 1e-9 and its rounding."""
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_negative_prompt_is_seen(pipe: Any, *, as_list: bool) -> None:
    """Guidance that carries a negative prompt is kept, also as an embedding; without one, or an empty one, it is relaxed."""
    prompt, negative, empty = ([text] * 2 if as_list else text for text in ("a cat", "a dog", ""))
    stock = latents_of(pipe, prompt, seeds=(1, 2), negative_prompt=negative)
    assert is_same(relaxed(pipe, prompt, negative_prompt=negative), stock)
    assert not is_same(relaxed(pipe, prompt, keeps_guidance=False, negative_prompt=negative), stock)
    plain = relaxed(pipe, prompt, keeps_guidance=False)
    assert not is_same(plain, latents_of(pipe, prompt, seeds=(1, 2)))
    assert is_same(relaxed(pipe, prompt), plain)
    assert is_same(relaxed(pipe, prompt, negative_prompt=empty), plain)


def test_a_negative_embedding_keeps_its_guidance(pipe: Any) -> None:
    """What an embedding says cannot be read, so that its guidance is kept unless told otherwise: a warning says so."""
    embeds, empty = (pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a cat", ""))
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": empty, "prompt": None}
    with pytest.warns(UserWarning, match="keeps_guidance=False"):
        kept = relaxed(pipe, **given)
    assert is_same(kept, latents_of(pipe, seeds=(1, 2), **given))
    assert is_same(relaxed(pipe, keeps_guidance=False, **given), relaxed(pipe))
    assert is_same(relaxed(pipe, keeps_guidance=True, **given), kept)


def test_a_negative_embedding_is_told_of_once_a_block(pipe: Any) -> None:
    """Not by each call, and not where nothing would be relaxed: no relaxation in the preset, or strength 0."""
    embeds, empty = (pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a cat", ""))
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": empty, "prompt": None}

    def make_two(preset: DiversityPreset, strength: float) -> None:
        with guided(pipe, MemoryBank(), "a cat", strength=strength, preset=preset):
            latents_of(pipe, **given)
            latents_of(pipe, **given)

    with pytest.warns(UserWarning, match="keeps_guidance=False") as told:
        make_two(RELAXING, 1.0)
    assert len(told) == 1
    for preset, strength in ((PRESET, 1.0), (RELAXING, 0.0), (replace(PAPER, relax=1.0), 1.0)):
        make_two(preset, strength)  # a warning is an error


def test_each_call_has_its_own_negative_prompt(pipe: Any) -> None:
    """Of two calls in one block, only the one with a negative prompt keeps its guidance."""
    stock, plain = latents_of(pipe, seeds=(1, 2), negative_prompt="a dog"), relaxed(pipe)
    with guided(pipe, MemoryBank(), "a cat", strength=1.0, preset=RELAXING):
        assert is_same(latents_of(pipe, seeds=(1, 2), negative_prompt="a dog"), stock)
        assert is_same(latents_of(pipe, seeds=(1, 2)), plain)


def filled(preset: DiversityPreset, width: int = 16) -> MemoryBank:
    """A bank of one image as that preset keeps it, under a prompt of that width."""
    bank = MemoryBank()
    bank.append(preset.feature_map.feature(torch.ones(1, 4, 16, 16)), torch.ones(1, width))
    return bank


@pytest.mark.parametrize("member", ["bank", "novelty", "context"])
def test_a_memory_of_another_width_is_refused_on_entry(pipe: Any, member: str) -> None:
    """A bank of another preset, as a memory or a reference, is an error that gives both widths."""
    bank, other = MemoryBank(), filled(OTHER_WIDTH)
    more = {} if member == "bank" else {member: (other, 0.5)}
    with (
        pytest.raises(ShapeMismatch, match=r"64.*16"),
        guided(pipe, other if member == "bank" else bank, "a cat", preset=PRESET, **more),
    ):
        pytest.fail("the block must not be entered")


def test_a_memory_of_another_encoder_is_refused_on_entry(pipe: Any) -> None:
    """A bank whose prompts another text encoder embedded."""
    with (
        pytest.raises(ShapeMismatch, match=r"prompt.*24.*16"),
        guided(pipe, filled(PRESET, 24), "a cat", preset=PRESET),
    ):
        pytest.fail("the block must not be entered")


def test_a_width_that_only_the_run_tells(pipe: Any) -> None:
    """Without a grid a feature has the latents' own size: images of another size are an error of the first step."""
    for more in ({}, {"novelty": (filled(PAPER), 0.5)}):
        bank = MemoryBank() if more else filled(PAPER)
        with (
            pytest.raises(ShapeMismatch, match=r"512.*1024"),
            guided(pipe, bank, "a cat", preset=PAPER, **more),
        ):
            latents_of(pipe, width=64)


@pytest.mark.parametrize("changed", [2, 3])
def test_what_a_callback_changes_is_seen_in_the_next_step(pipe: Any, changed: int) -> None:
    """Latents that a callback changes are remembered changed, but for those of the last step, as is documented."""

    def negate(_pipe: Any, index: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        return given | ({"latents": -given["latents"]} if index == changed else {})

    with guided(pipe, MemoryBank(), "a cat", strength=0.0) as guide:
        made = latents_of(pipe, callback_on_step_end=negate)
    assert torch.equal(guide.runs[0].latents, -made if changed == 3 else made)


def test_inpainting_is_remembered_as_it_was_painted() -> None:
    """With a UNet of 4 channels what is painted is remembered as it is returned; around it the pipeline blends at the end."""
    pipe = tiny("StableDiffusionInpaintPipeline")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    with guided(pipe, MemoryBank(), "a cat", strength=1.0, preset=PRESET) as guide:
        made = latents_of(pipe, image=Image.linear_gradient("L").convert("RGB"), mask_image=mask)
    left = made.shape[-1] // 2
    remembered = guide.runs[0].latents
    assert torch.equal(remembered[..., :left], made[..., :left])
    assert not torch.equal(remembered[..., left:], made[..., left:])


def test_a_block_that_remembers_nothing(pipe: Any) -> None:
    """With `remember=False` the bank is read and pushes, and does not grow."""
    bank = MemoryBank()
    with guided(pipe, bank, "a cat", preset=PRESET):
        stock = latents_of(pipe)
    with guided(pipe, bank, "a cat", strength=1.0, preset=PRESET, remember=False) as guide:
        assert not torch.equal(latents_of(pipe), stock)
    assert len(bank) == 1
    assert guide.runs[0].pushes > 0


def test_another_pipeline_may_use_the_denoiser_in_between(pipe: Any) -> None:
    """With a scheduler of its own it is stock, and the guided pipeline's images are what they are without it."""
    finals = []
    for others in (0, 1):
        other = image_to_image(pipe)
        other.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
        with guided(pipe, MemoryBank(), "a cat", preset=RELAXING, strength=1.0) as guide:
            for _ in range(others):
                from_image(other)
            latents_of(pipe, seeds=(1, 2), guidance_scale=5.0)
        finals.append(guide.runs[0].latents)
    assert torch.equal(*finals)


def test_a_mode_without_an_acting_step_is_told_of(pipe: Any) -> None:
    """Mode `paper` acts after every 10th step: where something is near and no run has as many, a warning says so, once a block."""
    bank = MemoryBank()
    short = replace(PAPER, interval=4)

    def make(preset: DiversityPreset, *, strength: float = 1.0, runs: int = 1, **more: Any) -> list[Tensor]:
        with guided(pipe, bank, "a cat", strength=strength, preset=preset, **more) as guide:
            for run in range(runs):
                latents_of(pipe, seeds=(10 * len(bank) + run,))
        return [run.pushes for run in guide.runs]

    make(PAPER)  # nothing is near yet; a warning is an error
    with pytest.warns(UserWarning, match=r"2 of 2 runs.*each 10 steps") as told:
        make(PAPER, runs=2)
    assert len(told) == 1
    with pytest.warns(UserWarning, match="each 10 steps"):
        make(PAPER, novelty=(bank, 0.5))
    make(PAPER, strength=0.0)
    assert (make(short)[0] > 0).all()
    assert (make(replace(short, mode="released", interval=10))[0] > 0).all()
