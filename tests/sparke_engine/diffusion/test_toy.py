"""The weightless engine honours the protocol and shows what it answers."""

from dataclasses import replace

import pytest
import torch

from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.diffusion.toy import prompt_digest, read_toy_image
from sparke_engine.errors import InvalidArgument, InvalidPlan
from sparke_engine.types import Neighbours

PLAN = DenoisingPlan(width_px=64, height_px=48, steps=5, guidance_scale=5.0)


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def group(
    prompt: str, *seeds: int, strength: float = 0.0, neighbours: Neighbours | None = None
) -> SampleGroup:
    """A group."""
    return SampleGroup(prompt, "", seeds, strength, neighbours)


@pytest.fixture
def toy() -> ImageEngine:
    """The toy, as a worker loads it."""
    return load_engine("builtin:toy")


def test_images_show_prompt_and_seed(toy: ImageEngine) -> None:
    """Prompt and seed can be read from every image, also the largest seed and a prompt of other letters."""
    groups = [group("a cat", 1, 2**53 - 1), group("ein Hund, 犬", 0)]
    for asked, samples in zip(groups, toy.generate(groups, PLAN, silent), strict=True):
        for seed, sample in zip(asked.seeds, samples, strict=True):
            assert sample.image.size == (64, 48)
            assert read_toy_image(sample.image) == (prompt_digest(asked.prompt), seed)


def test_a_group_is_by_itself(toy: ImageEngine) -> None:
    """A group's images are the same beside any other group."""
    seen = set()
    for other in (group("a dog", 3), group("a cat", 1, 2, strength=1.0), group("zebras", 4, 5)):
        samples = toy.generate([group("a cat", 1, 2, strength=0.5), other], PLAN, silent)[0]
        seen.add(tuple(sample.image.tobytes() for sample in samples))
    assert len(seen) == 1


def test_neighbours_push(toy: ImageEngine) -> None:
    """With its own image as neighbour an image moves away from it, the more the stronger; at strength 0 it stays."""
    ((stock,),) = toy.generate([group("a cat", 1)], PLAN, silent)
    known = Neighbours.of(stock.feature[None, None], toy.embed_prompts(["a cat"])[None])
    near = replace(known, features=torch.nn.functional.normalize(known.features + 0.05, dim=-1))
    samples = [
        toy.generate([group("a cat", 1, strength=strength, neighbours=near)], PLAN, silent)[0][0]
        for strength in (0.0, 0.5, 1.0)
    ]
    assert [sample.num_neighbours for sample in samples] == [1, 1, 1]
    assert samples[0].push == 0 < samples[1].push < samples[2].push
    similarities = [sample.nearest_similarity for sample in samples]
    assert similarities == sorted(similarities, reverse=True)
    assert samples[0].image.tobytes() == stock.image.tobytes() != samples[2].image.tobytes()


def test_embeddings_follow_words(toy: ImageEngine) -> None:
    """Prompts that share words are nearer than prompts that share none; an empty prompt has an embedding."""
    cat, red_cat, house, empty = toy.embed_prompts(["a cat", "a red cat", "big house", ""])
    assert cat @ red_cat > 0.6 > abs(float(cat @ house))
    assert empty.norm() == pytest.approx(1.0)


def test_steps_are_reported_and_can_cancel(toy: ImageEngine) -> None:
    """`on_step` hears every step, and what it raises comes out."""
    heard: list[tuple[int, int]] = []
    toy.generate([group("a cat", 1)], PLAN, lambda done, of: heard.append((done, of)))
    assert heard == [(done, 5) for done in range(1, 6)]

    def stop(done: int, num_steps: int) -> None:
        raise KeyError(done, num_steps)

    with pytest.raises(KeyError):
        toy.generate([group("a cat", 1)], PLAN, stop)


def test_impossible_requests_are_refused(toy: ImageEngine) -> None:
    """Sizes that are no multiples of a block, no steps, and a strength above 1 are refused."""
    for plan in (replace(PLAN, width_px=30), replace(PLAN, height_px=0), replace(PLAN, steps=0)):
        with pytest.raises(InvalidPlan):
            toy.generate([group("a cat", 1)], plan, silent)
    with pytest.raises(InvalidArgument):
        toy.generate([group("a cat", 1, strength=1.5)], PLAN, silent)


def test_the_toy_is_an_image_engine(toy: ImageEngine) -> None:
    """The toy has the protocol's members and closes twice."""
    assert isinstance(toy, ImageEngine)
    assert toy.embed_prompts(["a"]).shape == (1, toy.prompt_dim)
    toy.close()
    toy.close()
