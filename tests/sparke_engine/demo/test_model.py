"""The model that ships: it tells prompts apart as a user would, and draws what it is asked for."""

import numpy as np
import pytest
import torch

from app.catalogue import load_catalogue
from app.domain.ids import ModelId
from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import is_right, judge_pictures
from sparke_engine.demo.export import load_judge
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine

SPEC = load_catalogue()[ModelId("sparke-demo")]


@pytest.fixture(scope="module")
def engine() -> ImageEngine:
    """The demo model with its own preset."""
    return load_engine(SPEC.source, preset=SPEC.diversity_preset)


@pytest.mark.parametrize(
    ("prompt", "paraphrases", "others"),
    [
        ("a circle", ["a picture of a circle", "a disc", "one circle", "the disc"], ["a star", "a ring"]),
        ("a red moon", ["draw a red moon", "a red crescent"], ["a red heart", "a red ring"]),
        (
            "a star on snow",
            ["a photo of a star over snow", "star, snow"],
            ["a cross on snow", "a moon on snow"],
        ),
    ],
)
def test_paraphrases_are_near_and_other_shapes_far(
    engine: ImageEngine, prompt: str, paraphrases: list[str], others: list[str]
) -> None:
    """k_Y² is above 0.9 for another phrasing and below 0.01 for another shape: a memory serves one meaning."""
    embeddings = engine.embed_prompts([prompt, *paraphrases, *others])
    near = engine.preset.prompt_kernel.gram(embeddings[:1], embeddings)[0, 1:]
    assert engine.preset.prompt_kernel.power == 2
    assert near[: len(paraphrases)].min() > 0.9
    assert near[len(paraphrases) :].max() < 0.01


@pytest.mark.slow
def test_held_out_prompts_are_drawn_right(engine: ImageEngine) -> None:
    """Of 32 images at the default settings, of combinations that training never stated, the judge finds 90 % right."""
    table = caption_table()
    order = torch.randperm(len(table.held_out), generator=torch.Generator().manual_seed(0))
    chosen = table.held_out[order[:32]]
    groups = [
        SampleGroup(table.texts[caption], "", (seed,), 0.0, None)
        for seed, caption in enumerate(chosen.tolist())
    ]
    plan = DenoisingPlan(64, 64, SPEC.default_steps, SPEC.default_guidance_scale)
    made = engine.generate(groups, plan, lambda _done, _all: None)
    pixels = np.stack([np.asarray(sample.image) for group in made for sample in group])
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    verdict = judge_pictures(load_judge(torch.device("cpu")), pictures)
    assert is_right(verdict.attributes, table.stated[chosen]).float().mean() >= 0.9
