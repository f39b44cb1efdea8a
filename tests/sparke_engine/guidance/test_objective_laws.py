"""Law 1 for pushes of every objective, kernel and mode, prompt-aware and prompt-blind, pooled and full size."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.guidance.denoised import denoised_push
from sparke_engine.guidance.paper import paper_push
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Prompts, Push
from sparke_engine.types import Neighbours

PRESETS = [
    DiversityPreset(
        mode=mode,
        objective=objective,
        kernel=kernel,
        conditional=conditional,
        grid=grid,
        latent_bandwidth=0.8,
        min_prompt_kernel=0.0,
    )
    for mode, objective, kernel, conditional, grid in product(
        ("denoised", "paper"), ("rke", "vendi"), ("gaussian", "cosine"), (True, False), ((2, 2), None)
    )
]
ASKED = unit(torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=torch.float64))
every = pytest.mark.parametrize(
    "preset",
    PRESETS,
    ids=lambda preset: "-".join(
        str(part) for part in (preset.mode, preset.objective, preset.kernel, preset.conditional, preset.grid)
    ),
)


def latents_of(seed: int, n: int = 1) -> Tensor:
    """Random latents 3×6×6, float64."""
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def neighbours_of(latents: Tensor, preset: DiversityPreset) -> Neighbours:
    """Entries at these latents, of prompts near the one asked for."""
    features = preset.feature_map.feature(latents)[None]
    prompts = unit(ASKED + 0.1 * torch.randn(1, len(latents), 4, generator=torch.Generator().manual_seed(9)))
    return Neighbours.of(features, prompts)


def entries_of(latents: Tensor, preset: DiversityPreset) -> Entries:
    """The same as a run takes them, with features in float64."""
    neighbours = neighbours_of(latents, preset)
    entries = Entries.of(neighbours, ASKED, preset)
    return replace(entries, features=neighbours.features[0])


def push_of(latents: Tensor, entries: Entries | None, preset: DiversityPreset, eta: float = 0.5) -> Push:
    """The push of the preset's mode, not limited."""
    mode = paper_push if preset.mode == "paper" else denoised_push
    return mode(latents, entries, preset, eta=eta, limit=torch.full((len(latents),), 1e9))


@every
def test_without_neighbours_there_is_no_push(preset: DiversityPreset) -> None:
    """Alone and without entries the push is exactly zero."""
    for entries in (None, entries_of(latents_of(1, 0), preset)):
        push = push_of(latents_of(0), entries, preset)
        assert torch.equal(push.delta, torch.zeros(1, 3, 6, 6, dtype=torch.float64))
        assert float(push.relative) == 0


@every
@pytest.mark.parametrize("nearness", [0.0, 0.9, 0.999])
def test_a_push_is_away_from_a_single_entry(preset: DiversityPreset, nearness: float) -> None:
    """A small push lowers the kernel to one entry, far or near: cos, or cos² where opposite counts as equal."""
    for seed in range(3):
        latents = latents_of(seed)
        entries = entries_of(nearness * latents + (1 - nearness) * latents_of(seed + 100), preset)
        push = push_of(latents, entries, preset, eta=1e-4)
        before, after = (
            (preset.feature_map.feature(z) @ entries.features[0]).item()
            for z in (latents, latents - push.delta)
        )
        assert push.delta.norm() > 0
        assert after**2 < before**2 if preset.kernel == "cosine" else after < before


@every
def test_a_masked_neighbour_is_an_absent_one(preset: DiversityPreset) -> None:
    """A masked neighbour does not change a bit, whatever it holds."""
    known = neighbours_of(latents_of(1, 4), preset)
    mask = torch.tensor([[True, False, True, True]])
    spoilt = replace(
        known,
        features=torch.where(mask[..., None], known.features, float("nan")),
        prompt_embeddings=torch.where(mask[..., None], known.prompt_embeddings, float("nan")),
        mask=mask,
    )
    kept = Neighbours.of(known.features[:, mask[0]], known.prompt_embeddings[:, mask[0]])
    latents = latents_of(0, 2).float()
    pushes = [
        push_of(latents, Entries.of(neighbours, ASKED, preset), preset).delta for neighbours in (spoilt, kept)
    ]
    assert torch.equal(*pushes)


@every
def test_images_that_coincide_with_all_that_is_near_stay(preset: DiversityPreset) -> None:
    """Where every entry and fellow is the image itself there is no direction: nothing but zeros, in either precision."""
    for dtype, copies in product((torch.float32, torch.float64), (1, 7, 400)):
        latents = latents_of(7).to(dtype).expand(2, -1, -1, -1)
        features = preset.feature_map.feature(latents[:1]).expand(copies, -1)
        prompts = Prompts(ASKED, ASKED.expand(copies, -1)) if preset.conditional else None
        push = push_of(latents, Entries(features, torch.ones(copies, dtype=dtype), prompts), preset)
        assert torch.equal(push.delta, torch.zeros_like(latents))
        assert torch.equal(push.relative, torch.zeros_like(push.relative))


@every
def test_zero_latents_stay_finite(preset: DiversityPreset) -> None:
    """Latents of zero are not moved, and leave their fellows' pushes finite."""
    latents = torch.cat([torch.zeros(1, 3, 6, 6, dtype=torch.float64), latents_of(0)])
    push = push_of(latents, entries_of(latents_of(1, 3), preset), preset)
    assert torch.equal(push.delta[0], torch.zeros(3, 6, 6, dtype=torch.float64))
    assert push.delta.isfinite().all()
    assert push.delta[1].norm() > 0


@every
def test_the_order_of_images_and_entries_does_not_matter(preset: DiversityPreset) -> None:
    """Images and entries in another order give the same pushes, to rounding."""
    latents, entries = latents_of(0, 3), entries_of(latents_of(1, 5), preset)
    order, other = torch.tensor([2, 0, 1]), torch.tensor([4, 2, 0, 1, 3])
    prompts = entries.prompts
    if prompts is not None:
        prompts = Prompts(prompts.asked, prompts.of_entries[other])
    moved = Entries(entries.features[other], entries.weights[other], prompts)
    expected = push_of(latents, entries, preset).delta[order]
    actual = push_of(latents[order], moved, preset).delta
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@every
def test_images_of_one_request_part(preset: DiversityPreset) -> None:
    """In mode `denoised` two images without memory move apart; in mode `paper` they do not see each other."""
    latents = latents_of(10).expand(2, -1, -1, -1) + 0.3 * latents_of(11, n=2)
    push = push_of(latents, None, preset, eta=0.05)
    before, after = (preset.feature_map.feature(z) for z in (latents, latents - push.delta))
    if preset.mode == "paper":
        assert not push.delta.any()
    else:
        assert after[0] @ after[1] < before[0] @ before[1]


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset.mode == "denoised"])
def test_the_push_fades_with_distance(preset: DiversityPreset) -> None:
    """In mode `denoised` an entry whose feature is orthogonal leaves next to no push, however the objective weighs it."""
    latents, others = latents_of(14), latents_of(15)
    mapped = preset.feature_map.apply
    share = (mapped(others) * mapped(latents)).sum() / mapped(latents).square().sum()
    across = others - share * latents
    narrow = replace(preset, latent_bandwidth=0.2)
    sizes = [
        float(push_of(latents, entries_of(amount * latents + across, narrow), narrow).relative)
        for amount in (3.0, 1.0, 0.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0.1
    assert sizes[-1] < 1e-6


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset.mode == "denoised"])
def test_the_gate_counts_what_is_near_alike_for_every_objective(preset: DiversityPreset) -> None:
    """A push has the size η·m/(m+κ) with m = Σ k_Z² k_Y² over entries and fellows, to the rounding of fp32 prompts."""
    latents, known = latents_of(0, 2), neighbours_of(latents_of(1, 4), preset)
    features = preset.feature_map.feature(latents)
    memory = preset.latent_kernel.gram(features, known.features[0])
    if preset.conditional:
        memory = memory * preset.prompt_kernel.gram(ASKED[None], known.prompt_embeddings[0].double())
    mass = memory.sum(1) + preset.latent_kernel.gram(features, features)[0, 1]
    push = push_of(latents, entries_of(latents_of(1, 4), preset), preset, eta=0.7)
    torch.testing.assert_close(push.relative, 0.7 * mass / (mass + preset.kappa), rtol=1e-5, atol=0)
