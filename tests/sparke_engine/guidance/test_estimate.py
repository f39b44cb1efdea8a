"""The push that is expected of a memory before an image is made."""

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.estimate import expected_push, prompt_kernel_values
from sparke_engine.guidance.presets import PRESETS, DiversityPreset, preset_named
from sparke_engine.types import Neighbours

D, P = 6, 4
PRESET = DiversityPreset(grid=None, max_push=10.0)


def _rows(seed, *shape):
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def _neighbours(seed, num_entries, *, spread=0.5):
    features = unit(_rows(seed, 1, 1, D) + spread * _rows(seed + 1, 1, num_entries, D))
    prompts = unit(_rows(seed + 2, 1, 1, P) + 0.1 * _rows(seed + 3, 1, num_entries, P))
    return Neighbours.of(features, prompts)


def _expected(known, preset=PRESET, *, strength=0.5, num_steps=20, seed=0):
    return expected_push(known, _rows(seed + 2, P), preset, strength=strength, num_steps=num_steps)


def test_nothing_pushes_without_neighbours_or_strength():
    """Exactly 0; also where all are masked."""
    known = _neighbours(0, 5)
    assert _expected(known) > 0
    assert _expected(None) == 0
    assert _expected(known, strength=0.0) == 0
    assert _expected(dataclasses.replace(known, mask=torch.zeros(1, 5, dtype=torch.bool))) == 0


@given(
    seed=st.integers(0, 2**31),
    num_entries=st.integers(1, 12),
    least=st.floats(0.01, 1),
    most=st.floats(0.01, 1),
    name=st.sampled_from(sorted(PRESETS)),
)
@settings(deadline=None)
def test_it_grows_with_strength_within_its_bound(seed, num_entries, least, most, name):
    """Whatever the preset."""
    least, most = sorted((least, most))
    preset = preset_named(name)
    known = _neighbours(seed, num_entries)
    low, high = (_expected(known, preset, strength=strength, seed=seed) for strength in (least, most))
    assert 0 <= low <= high + 1e-6
    assert high <= preset.max_push + 1e-6


@given(seed=st.integers(0, 2**31), num_entries=st.integers(2, 8))
@settings(deadline=None)
def test_it_is_the_mean_over_neighbours_of_what_the_others_do(seed, num_entries):
    """Written out, one by one."""
    known, asked = _neighbours(seed, num_entries), _rows(seed + 2, P)
    near = torch.exp(-(known.prompt_embeddings[0] - asked).square().sum(-1) / 0.3**2)
    total = float(near.sum())
    found = 0.0
    for place in range(num_entries):
        others = [other for other in range(num_entries) if other != place]
        kernels = [
            float(torch.exp(-(known.features[0, place] - known.features[0, other]).square().sum() / 0.5**2))
            for other in others
        ]
        left = sum(float(near[other]) for other in others)
        mass = sum(float(near[o]) * k for o, k in zip(others, kernels, strict=True)) * total / left
        found += float(near[place]) / total * 1.6 * 0.5 * 0.2 * mass / (mass + 0.1)
    assert _expected(known, seed=seed) == pytest.approx(found, rel=1e-4)


def test_an_entry_that_stands_for_many_is_as_many():
    """A weight of 3 is three copies, of which one is left out."""
    known = _neighbours(0, 3)
    weighted = dataclasses.replace(known, weights=torch.tensor([[3.0, 1.0, 2.0]]))
    places = torch.tensor([0, 0, 0, 1, 2, 2])
    copied = Neighbours.of(known.features[:, places], known.prompt_embeddings[:, places])
    assert _expected(weighted) == pytest.approx(_expected(copied), rel=1e-5)


def test_alike_images_push_more_than_unlike_ones():
    """A memory of one mode opens the gate, one of many far from each other less."""
    alike, unlike = (_expected(_neighbours(0, 4, spread=spread)) for spread in (0.05, 4.0))
    assert alike > 1.2 * unlike


def test_a_single_entry_is_taken_to_be_as_near_as_can_be():
    """The gate at k_Z = 1: nothing tells how alike images of its prompt are."""
    known = _neighbours(0, 1)
    near = float(prompt_kernel_values(known, _rows(2, P), PRESET)[0])
    assert _expected(known) == pytest.approx(1.6 * 0.5 * 0.2 * near / (near + 0.1), rel=1e-5)


def test_modes_without_a_gate_push_by_their_steps():
    """Algorithm 1 after every tenth step, the published code before the first of every ten."""
    known = _neighbours(0, 4)
    for name, steps in (("paper", 2), ("released", 3)):
        preset = dataclasses.replace(preset_named(name), max_push=10.0)
        assert _expected(known, preset, num_steps=25) == pytest.approx(preset.eta * 0.5 * steps / 25)


def test_prompts_count_only_where_the_preset_is_conditional():
    """Else every neighbour is as near as any."""
    blind = dataclasses.replace(PRESET, conditional=False, min_prompt_kernel=0.0)
    assert prompt_kernel_values(_neighbours(0, 4), _rows(2, P), blind).tolist() == [1.0] * 4
    near = prompt_kernel_values(_neighbours(0, 4), _rows(2, P), PRESET)
    assert bool((near < 1).all())


@pytest.mark.parametrize("num_entries", [4, 32])
def test_the_toy_is_pushed_about_as_expected(num_entries):
    """On an engine whose images scatter without a model: within a third, over several prompts."""
    engine = ToyEngine(preset_named("toy"))
    plan = DenoisingPlan(64, 64, 8, 5.0)
    for prompt in ("a star", "a red circle", "two blue squares"):
        groups = [SampleGroup(prompt, "", (seed,), 0.0, None) for seed in range(num_entries)]
        past = [samples[0].feature for samples in engine.generate(groups, plan, lambda *_: None)]
        embedding = engine.embed_prompts([prompt])[0]
        known = Neighbours.of(torch.stack(past)[None], embedding.expand(1, num_entries, -1))
        groups = [SampleGroup(prompt, "", (seed,), 0.7, known) for seed in range(100, 108)]
        made = [samples[0].push for samples in engine.generate(groups, plan, lambda *_: None)]
        expected = expected_push(known, embedding, engine.preset, strength=0.7, num_steps=8)
        assert sum(made) / len(made) == pytest.approx(expected, rel=0.33)
