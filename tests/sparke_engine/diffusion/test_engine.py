"""Pipelines behind the protocol: stock at strength 0, guided otherwise, each group by itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparke_engine.core.kernels import GaussianPower
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.errors import InvalidArgument, InvalidPlan, NonFiniteLatents, ShapeMismatch, SparkeError
from sparke_engine.guidance.presets import PAPER, DiversityPreset
from sparke_engine.memory_bank import MemoryBank
from sparke_engine.types import Neighbours

# Random networks make latents that are far apart; a wide kernel lets them feel each other.
PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, relax=0.5, latent_bandwidth=1.5, max_push=10)
PLAN = DenoisingPlan(width_px=32, height_px=32, steps=6, guidance_scale=5.0)
SCHEDULERS = [
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
MODELS = [
    *(("sd", scheduler) for scheduler in SCHEDULERS),
    *(("sdxl", scheduler) for scheduler in SCHEDULERS),
    ("sd3", "FlowMatchEulerDiscreteScheduler"),
]
Load = Callable[..., PipelineEngine]


@pytest.fixture
def load(model_directories: dict[str, Path]) -> Load:
    """Loads a tiny engine by family."""

    def loaded(family: str, scheduler: str | None = None, **more: Any) -> PipelineEngine:
        more.setdefault("preset", PRESET)
        engine = load_engine(str(model_directories[family]), scheduler=scheduler, **more)
        assert isinstance(engine, PipelineEngine)
        return engine

    return loaded


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def group(
    prompt: str, *seeds: int, strength: float = 0.0, neighbours: Neighbours | None = None
) -> SampleGroup:
    """A group without a negative prompt."""
    return SampleGroup(prompt, "", seeds, strength, neighbours)


def stock_images(engine: PipelineEngine, prompts: list[str], seeds: list[int], **more: Any) -> list[Any]:
    """The stock pipeline called by hand."""
    return engine.pipeline(
        prompt=prompts,
        width=PLAN.width_px,
        height=PLAN.height_px,
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **more,
    ).images


def pixels(samples: list[Sample]) -> list[bytes]:
    """The images' bytes."""
    return [sample.image.tobytes() for sample in samples]


def remembered(engine: ImageEngine, prompt: str, samples: list[Sample]) -> Neighbours:
    """The neighbours that a prompt has in a bank of these samples, all of the same prompt."""
    bank = MemoryBank()
    embedding = engine.embed_prompts([prompt])
    bank.append(torch.stack([sample.feature for sample in samples]), embedding.expand(len(samples), -1))
    return bank.neighbours(embedding, engine.preset)


@pytest.mark.parametrize(("family", "scheduler"), MODELS)
def test_strength_zero_is_the_stock_pipeline(load: Load, family: str, scheduler: str) -> None:
    """At strength 0, with neighbours and batch-mates at hand, images are the stock pipeline's, pixel for pixel."""
    engine = load(family, scheduler)
    (first,) = engine.generate([group("a cat", 1, 2)], PLAN, silent)
    known = remembered(engine, "a cat", first)
    groups = [group("a cat", 1, 2, neighbours=known), group("dogs", 7)]
    expected = stock_images(engine, ["a cat", "a cat", "dogs"], [1, 2, 7])
    samples = [sample for part in engine.generate(groups, PLAN, silent) for sample in part]
    assert pixels(samples) == [image.tobytes() for image in expected]
    assert len(set(pixels(samples))) == 3
    assert [sample.push for sample in samples] == [0, 0, 0]
    assert type(engine.pipeline.scheduler).__name__ == scheduler


@pytest.mark.parametrize(("family", "scheduler"), MODELS)
def test_guided_images_differ_from_the_memory(load: Load, family: str, scheduler: str) -> None:
    """With the stock image in memory, the same seed gives another image, whose feature is less similar to it."""
    engine = load(family, scheduler)
    ((stock,),) = engine.generate([group("a cat", 1)], PLAN, silent)
    known = remembered(engine, "a cat", [stock])
    steps: list[tuple[int, int]] = []
    ((pushed,),) = engine.generate(
        [group("a cat", 1, strength=0.8, neighbours=known)], PLAN, lambda done, of: steps.append((done, of))
    )
    assert steps == [(done, 6) for done in range(1, 7)]
    assert pushed.push > 0
    assert pushed.num_neighbours == 1
    assert float(pushed.feature @ stock.feature) < 0.999
    kernel = GaussianPower(engine.preset.latent_bandwidth, 1.0)
    expected = float(kernel.gram(pushed.feature[None], stock.feature[None]))
    assert pushed.nearest_similarity == pytest.approx(expected, rel=1e-5)
    assert pixels([pushed]) != pixels([stock])


@pytest.mark.parametrize(("family", "scheduler"), [("sd", "PNDMScheduler"), ("sdxl", None), ("sd3", None)])
@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_an_image_depends_on_its_group_alone(
    load: Load, family: str, scheduler: str | None, strength: float
) -> None:
    """In a batch of the same shape, a group's images are bit-identical whatever the others ask for."""
    engine = load(family, scheduler)
    (made,) = engine.generate([group("a cat", 1, 2)], PLAN, silent)
    known = remembered(engine, "a cat", made)
    mine = group("a cat", 1, 2, strength=strength, neighbours=known)
    others = [
        group("a dog", 5),
        group("a cat", 1),
        replace(group("zebras", 6, strength=1.0, neighbours=known), latent_bandwidth=0.3),
        SampleGroup("a dog", "ugly", (5,), 0.5, known, prompt_bandwidth=2.0),
    ]
    seen = set()
    for other in others:
        mine_first, theirs = engine.generate([mine, other], PLAN, silent)
        seen.add((tuple(pixels(mine_first)), tuple(sample.push for sample in mine_first)))
        assert len(theirs) == 1
    assert len(seen) == 1
    last = {tuple(pixels(engine.generate([other, mine], PLAN, silent)[1])) for other in others}
    assert len(last) == 1


def test_a_mixed_batch_conditions_as_an_unmixed_one(load: Load) -> None:
    """SDXL: a row without a negative prompt is the stock row without one, also beside a row that has one."""
    engine = load("sdxl")
    plain, negative = group("a cat", 1), SampleGroup("a dog", "ugly", (2,), 0.0, None)
    mixed = [part[0] for part in engine.generate([plain, negative], PLAN, silent)]
    without = stock_images(engine, ["a cat", "a dog"], [1, 2])
    within = stock_images(engine, ["a cat", "a dog"], [1, 2], negative_prompt=["x", "ugly"])
    assert pixels(mixed) == [without[0].tobytes(), within[1].tobytes()]


def test_negative_prompts_reach_the_pipeline(load: Load) -> None:
    """A negative prompt changes the image, as it does by hand."""
    engine = load("sd")
    (samples,) = engine.generate([SampleGroup("a cat", "ugly", (1,), 0.0, None)], PLAN, silent)
    by_hand = stock_images(engine, ["a cat"], [1], negative_prompt=["ugly"])
    assert pixels(samples) == [by_hand[0].tobytes()]
    assert pixels(samples) != [stock_images(engine, ["a cat"], [1])[0].tobytes()]


def test_a_negative_prompt_keeps_its_guidance(load: Load) -> None:
    """A preset that relaxes guidance relaxes none where there is a negative prompt, and some where there is none."""
    engine = load("sd")
    relaxing = replace(engine.preset, eta=1e-9, relax=1.0)

    def made(negative: str, preset: DiversityPreset) -> list[bytes]:
        engine.preset = preset
        (samples,) = engine.generate([SampleGroup("a cat", negative, (1, 2), 1.0, None)], PLAN, silent)
        return pixels(samples)

    kept = replace(relaxing, relax=0.0)
    assert made("ugly", relaxing) == made("ugly", kept)
    assert made("", relaxing) != made("", kept)


def test_fellow_images_part(load: Load) -> None:
    """Without a memory, the images of one group push each other; as groups of their own they do not."""
    engine = load("sd")
    (together,) = engine.generate([group("a cat", 1, 2, strength=1.0)], PLAN, silent)
    apart = [
        part[0] for part in engine.generate([group("a cat", s, strength=1.0) for s in (1, 2)], PLAN, silent)
    ]
    assert all(sample.push > 0 for sample in together)
    assert all(sample.push == 0 for sample in apart)
    assert float(together[0].feature @ together[1].feature) < float(apart[0].feature @ apart[1].feature)


def test_more_strength_pushes_more(load: Load) -> None:
    """The reported push grows with strength."""
    engine = load("sd")
    ((stock,),) = engine.generate([group("a cat", 1)], PLAN, silent)
    known = remembered(engine, "a cat", [stock])
    pushes = [
        engine.generate([group("a cat", 1, strength=strength, neighbours=known)], PLAN, silent)[0][0].push
        for strength in (0.0, 0.3, 1.0)
    ]
    assert pushes[0] < pushes[1] < pushes[2]


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_mode_paper_runs(load: Load, family: str) -> None:
    """Mode `paper` changes the image with a memory, and does nothing without one."""
    preset = replace(PAPER, interval=2, eta=0.2)
    engine = load(family, preset=preset)
    assert engine.feature_dim == 4 * 8 * 8
    ((stock,),) = engine.generate([group("a cat", 1, strength=1.0)], PLAN, silent)
    assert stock.push == 0
    known = remembered(engine, "a cat", [stock])
    ((pushed,),) = engine.generate([group("a cat", 1, strength=1.0, neighbours=known)], PLAN, silent)
    assert pushed.push == pytest.approx(0.2 * 3 / 6, rel=1e-4)
    assert pixels([pushed]) != pixels([stock])


@pytest.mark.parametrize("size_px", [(40, 32), (64, 16), (16, 64)])
def test_without_a_grid_images_have_one_size(load: Load, size_px: tuple[int, int]) -> None:
    """The model's own: a feature of others has another length, or cells that lie elsewhere."""
    engine = load("sd", preset=PAPER)
    plan = replace(PLAN, width_px=size_px[0], height_px=size_px[1])
    with pytest.raises(InvalidPlan, match=r"has no grid.* of 32x32 px"):
        engine.generate([group("a cat", 1)], plan, silent)
    (made,) = load("sd").generate([group("a cat", 1)], plan, silent)
    assert made[0].image.size == size_px


def test_the_feature_is_that_of_the_final_latents(load: Load) -> None:
    """A sample's feature is φ of the latents that the stock pipeline ends with."""
    engine = load("sdxl", "EulerDiscreteScheduler")
    (samples,) = engine.generate([group("a cat", 1)], PLAN, silent)
    latents = stock_images(engine, ["a cat"], [1], output_type="latent")
    expected = PRESET.feature_map.feature(latents.float())
    torch.testing.assert_close(samples[0].feature, expected[0])
    assert samples[0].feature.shape == (engine.feature_dim,)


def test_half_precision_models_are_guided_in_fp32(load: Load) -> None:
    """A bfloat16 model takes a push and gives fp32 features."""
    engine = load("sd", dtype="bfloat16")
    assert engine.pipeline.unet.dtype == torch.bfloat16
    (samples,) = engine.generate([group("a cat", 1, 2, strength=1.0)], PLAN, silent)
    assert samples[0].feature.dtype == torch.float32
    assert samples[0].push > 0
    (plain,) = engine.generate([group("a cat", 1, 2)], PLAN, silent)
    assert pixels(plain) == [image.tobytes() for image in stock_images(engine, ["a cat"] * 2, [1, 2])]


class Cancelled(Exception):
    """What a service raises to stop a run."""


def test_a_cancel_leaves_the_engine_whole(load: Load) -> None:
    """After a run that `on_step` ended, the next run gives what a fresh engine gives."""
    engine = load("sd", "UniPCMultistepScheduler")

    def stop(done: int, num_steps: int) -> None:
        del num_steps
        if done == 3:
            raise Cancelled

    asked = [group("a cat", 1, 2, strength=1.0)]
    with pytest.raises(Cancelled):
        engine.generate(asked, PLAN, stop)
    fresh = load("sd", "UniPCMultistepScheduler")
    assert pixels(engine.generate(asked, PLAN, silent)[0]) == pixels(fresh.generate(asked, PLAN, silent)[0])


def test_broken_weights_are_an_error(load: Load) -> None:
    """A model that overflows gives NonFiniteLatents, not a black image."""
    engine = load("sd")
    with torch.no_grad():
        engine.pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLatents):
        engine.generate([group("a cat", 1)], PLAN, silent)


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, width_px=30),
        replace(PLAN, height_px=0),
        replace(PLAN, steps=0),
        replace(PLAN, steps=1001),
        replace(PLAN, guidance_scale=float("nan")),
        replace(PLAN, guidance_scale=-1.0),
    ],
)
def test_impossible_plans_are_refused(load: Load, plan: DenoisingPlan) -> None:
    """A size, number of steps or guidance scale that cannot be is InvalidPlan."""
    with pytest.raises(InvalidPlan):
        load("sd").generate([group("a cat", 1)], plan, silent)


def test_impossible_groups_are_refused(load: Load) -> None:
    """No group, no seed, a strength of 2, and neighbours of another space are refused."""
    engine = load("sd")
    wrong = Neighbours.of(torch.zeros(1, 1, 5), torch.zeros(1, 1, 16))
    for groups, error in [
        ([], InvalidArgument),
        ([group("a cat")], InvalidArgument),
        ([group("a cat", 1, strength=2.0)], InvalidArgument),
        ([group("a cat", 1, neighbours=wrong)], ShapeMismatch),
    ]:
        with pytest.raises(error):
            engine.generate(groups, PLAN, silent)


def test_other_sizes_share_the_memory(load: Load) -> None:
    """Features of another image size have the same length, so that a memory mixes sizes."""
    engine = load("sd")
    (small,) = engine.generate([group("a cat", 1)], PLAN, silent)
    known = remembered(engine, "a cat", small)
    wide = replace(PLAN, width_px=64, height_px=40)
    ((sample,),) = engine.generate([group("a cat", 1, strength=1.0, neighbours=known)], wide, silent)
    assert sample.image.size == (64, 40)
    assert sample.feature.shape == small[0].feature.shape
    assert sample.push > 0


def test_without_guidance_scale(load: Load) -> None:
    """At guidance scale 1 there is no classifier-free guidance, and a negative prompt changes nothing."""
    engine, plan = load("sd"), replace(PLAN, guidance_scale=1.0)
    plain = engine.generate([group("a cat", 1)], plan, silent)[0]
    negative = engine.generate([SampleGroup("a cat", "ugly", (1,), 0.0, None)], plan, silent)[0]
    assert pixels(plain) == pixels(negative)
    assert pixels(plain) != pixels(engine.generate([group("a cat", 1)], PLAN, silent)[0])


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_prompt_embeddings(load: Load, family: str) -> None:
    """Embeddings are unit, fp32, of the promised length, independent of their company, and tell prompts apart."""
    engine = load(family)
    both = engine.embed_prompts(["a cat", "zebras"])
    assert both.shape == (2, engine.prompt_dim)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    assert torch.equal(load(family).embed_prompts(["zebras"])[0], both[1])
    assert float(both[0] @ both[1]) < 0.9999
    assert engine.embed_prompts(["word " * 100]).shape == (1, engine.prompt_dim)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_pooled_embedding_is_what_the_denoiser_reads(load: Load, family: str) -> None:
    """For pipelines that condition on a pooled embedding, the prompt embedding is its direction."""
    engine = load(family)
    more = {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
    with torch.no_grad():
        pooled = engine.pipeline.encode_prompt(prompt="a cat", **more)[2]
    torch.testing.assert_close(engine.embed_prompts(["a cat"]), pooled / pooled.norm())


def test_a_closed_engine_says_so(load: Load) -> None:
    """After `close`, twice, a call fails with a message."""
    engine = load("sd")
    engine.close()
    engine.close()
    with pytest.raises(SparkeError, match="closed"):
        engine.generate([group("a cat", 1)], PLAN, silent)


def test_an_engine_is_an_image_engine(load: Load) -> None:
    """The pipeline engine has the protocol's members."""
    assert isinstance(load("sd"), ImageEngine)
