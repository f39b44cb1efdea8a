"""What a library user writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparke_engine import MemoryBank, guided
from sparke_engine.diffusion.library import default_preset, mark_preset
from sparke_engine.diffusion.pipelines import load_pipeline
from sparke_engine.errors import InvalidArgument, NestedGuidance, UnsupportedPipeline
from sparke_engine.guidance.presets import DiversityPreset, preset_named

PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, latent_bandwidth=1.5, max_push=10)


@pytest.fixture
def pipe(model_directories: dict[str, Path]) -> Any:
    """A tiny stock pipeline."""
    return load_pipeline(str(model_directories["sd"]))


def images_of(pipe: Any, *seeds: int, prompt: str = "a cat") -> list[Any]:
    """The pipeline called as a user calls it."""
    return pipe(
        prompt,
        width=32,
        height=32,
        num_inference_steps=6,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images


def test_a_second_image_is_pushed_from_the_first(pipe: Any) -> None:
    """With an empty bank the image is stock; the same seed again gives another image; both enter the bank."""
    bank, stock = MemoryBank(), images_of(pipe, 1)[0].tobytes()
    made = []
    for expected_size in (1, 2):
        with guided(pipe, bank, "a cat", strength=1.0, preset=PRESET):
            made.append(images_of(pipe, 1)[0].tobytes())
        assert len(bank) == expected_size
    assert made[0] == stock != made[1]
    assert float(bank.features[0] @ bank.features[1]) < 0.999


def test_images_of_one_call_push_each_other(pipe: Any) -> None:
    """Two images of one call are pushed apart, and the bank gets both; several calls in a block add up."""
    bank = MemoryBank()
    with guided(pipe, bank, "a cat", strength=1.0, preset=PRESET) as guide:
        first = images_of(pipe, 1, 2)
        images_of(pipe, 3)
    assert len(bank) == 3
    assert [len(run.pushes) for run in guide.runs] == [2, 1]
    assert (guide.runs[0].pushes > 0).all()
    assert guide.runs[1].pushes == 0
    assert first[0].tobytes() != images_of(pipe, 1, 2)[0].tobytes()


def test_strength_zero_remembers_but_does_not_push(pipe: Any) -> None:
    """At strength 0 the image is stock although the bank holds it, and enters the bank again."""
    bank, stock = MemoryBank(), images_of(pipe, 1)[0].tobytes()
    for _ in range(2):
        with guided(pipe, bank, "a cat", strength=0.0, preset=PRESET):
            assert images_of(pipe, 1)[0].tobytes() == stock
    assert len(bank) == 2


@pytest.mark.parametrize("member", ["novelty", "context"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_references_count_at_any_strength(pipe: Any, member: str, strength: float) -> None:
    """Novelty lowers the similarity to another bank's image, context raises it; a weight of 0 or no image is stock."""
    preset = replace(PRESET, reference_window=0.5, reference_bandwidth=2.0, reference_eta=0.5)
    other, bank = MemoryBank(), MemoryBank()
    with guided(pipe, other, "a dog", preset=preset):
        images_of(pipe, 5, prompt="a dog")
    nearness = []
    for weighted in (None, (other, 0.0), (MemoryBank(), 1.0), (other, 0.3), (other, 1.0)):
        bank = MemoryBank()
        with guided(pipe, bank, "a cat", strength=strength, preset=preset, **{member: weighted}):
            images_of(pipe, 1)
        nearness.append(float(bank.features[0] @ other.features[0]))
    assert nearness[0] == nearness[1] == nearness[2]
    steps = torch.tensor(nearness[2:]).diff() * (1 if member == "context" else -1)
    assert (steps > 0).all()


def test_a_large_reference_is_drawn_anew_as_it_grows(pipe: Any) -> None:
    """Above the preset's cap k of its n images count n/k each, others once there is one more; below it all count 1."""
    preset, other = replace(PRESET, max_reference_entries=4), MemoryBank()
    with guided(pipe, other, "a dog", preset=preset):
        images_of(pipe, 4, prompt="a dog")
    width = other.features.shape[1]
    seen = []
    for size in (4, 39, 40):
        more = torch.randn(size - len(other), width, generator=torch.Generator().manual_seed(size))
        other.append(more, other.prompt_embeddings[:1].expand(len(more), -1))
        with guided(
            pipe, MemoryBank(), "a cat", preset=preset, novelty=(other, 1.0), remember=False
        ) as guide:
            (reference,) = guide.groups[0].references
            seen.append(reference.entries)
            images_of(pipe, 1)
        assert (reference.entries.weights == size / 4).all()
    assert torch.equal(seen[0].features, other.features[:4])
    assert not torch.equal(seen[1].features, seen[2].features)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_its_range_is_refused(pipe: Any, weight: float) -> None:
    """Both weights are in [0, 1]: a sign is not how one asks for the opposite."""
    with (
        pytest.raises(InvalidArgument, match="weight of context"),
        guided(pipe, MemoryBank(), "a cat", context=(MemoryBank(), weight)),
    ):
        pass


def test_a_failed_block_remembers_nothing(pipe: Any) -> None:
    """Where the block raises, the bank stays, and the pipeline is stock again."""
    bank = MemoryBank()

    def make_and_fail() -> None:
        with guided(pipe, bank, "a cat", preset=PRESET) as guide:
            images_of(pipe, 1)
            assert len(guide.runs) == 1
            raise KeyError

    with pytest.raises(KeyError):
        make_and_fail()
    assert len(bank) == 0
    assert "step" not in vars(pipe.scheduler)


def test_blocks_do_not_nest(pipe: Any) -> None:
    """A block within a block on one pipeline is an error."""
    with guided(pipe, MemoryBank(), "a cat", preset=PRESET):
        with pytest.raises(NestedGuidance), guided(pipe, MemoryBank(), "a dog", preset=PRESET):
            pytest.fail("the inner block must not be entered")
        images_of(pipe, 1)


def test_other_prompts_are_no_neighbours(pipe: Any) -> None:
    """A memory of a prompt that is far pushes nothing."""
    narrow = replace(PRESET, prompt_bandwidth=1e-3)
    bank, stock = MemoryBank(), images_of(pipe, 1)[0].tobytes()
    with guided(pipe, bank, "zebras and llamas", preset=narrow):
        images_of(pipe, 1, prompt="zebras and llamas")
    with guided(pipe, bank, "a cat", strength=1.0, preset=narrow):
        assert images_of(pipe, 1)[0].tobytes() == stock


def test_presets_by_pipeline(pipe: Any) -> None:
    """A pipeline's preset is that of its class, or the one it was marked with; unknown classes are refused."""
    assert default_preset(pipe) == preset_named("sd")
    mark_preset(pipe, "demo")
    assert default_preset(pipe) == preset_named("demo")
    with pytest.raises(UnsupportedPipeline, match="object"):
        default_preset(object())


def test_guidance_is_kept_where_it_is_asked(pipe: Any) -> None:
    """`keeps_guidance` leaves what a negative prompt says: with a relaxing preset images differ, without they do not."""
    relaxing = replace(PRESET, eta=1e-9, relax=1.0)

    def made(*, keeps_guidance: bool) -> list[bytes]:
        with guided(
            pipe, MemoryBank(), "a cat", strength=1.0, preset=relaxing, keeps_guidance=keeps_guidance
        ):
            return [image.tobytes() for image in images_of(pipe, 1, 2)]

    stock = [image.tobytes() for image in images_of(pipe, 1, 2)]
    assert made(keeps_guidance=True) == stock != made(keeps_guidance=False)


def test_a_bank_that_forgot_all_is_a_new_one(pipe: Any) -> None:
    """It takes images of another preset."""
    bank = MemoryBank()
    for preset in (PRESET, replace(PRESET, grid=(2, 2))):
        with guided(pipe, bank, "a cat", preset=preset):
            images_of(pipe, 1)
        assert bank.features.shape == (1, preset.feature_map.dim(4, 16, 16))
        bank.forget(torch.ones(1, dtype=torch.bool))
