"""The one field of every objective: what it lowers, references of either sign, the sample that bounds its cost."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from sparke_engine.core.gradients import kernel_field, mutual_field, tangent
from sparke_engine.core.kernels import CosineKernel, GaussianKernel, Kernel, unit
from sparke_engine.core.scores import cond_vendi, vendi
from sparke_engine.guidance.objectives import field_of, sampled
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Prompts, Reference
from sparke_engine.types import Neighbours

BASE = DiversityPreset(grid=(2, 2), latent_bandwidth=0.8, prompt_bandwidth=0.7, min_prompt_kernel=0.0)
VENDI = replace(BASE, objective="vendi")
ALL = [
    replace(BASE, objective=objective, kernel=kernel, conditional=conditional)
    for objective, kernel, conditional in product(("rke", "vendi"), ("gaussian", "cosine"), (True, False))
]
D, P = 12, 5


def features_of(seed: int, n: int) -> Tensor:
    """Unit features with something in common, float64."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(n, D, generator=generator, dtype=torch.float64) + 0.5)


def neighbours_of(seed: int, k: int) -> tuple[Neighbours, Tensor]:
    """Entries with prompts around one, and that one, float64."""
    generator = torch.Generator().manual_seed(seed)
    asked = unit(torch.randn(P, generator=generator, dtype=torch.float64))
    prompts = unit(asked + 0.4 * torch.randn(1, k, P, generator=generator, dtype=torch.float64))
    return Neighbours.of(features_of(seed + 1, k)[None], prompts), asked


def entries_of(seed: int, k: int, preset: DiversityPreset) -> Entries:
    """Entries as a run takes them, in float64 again but for the rounding of fp32."""
    entries = Entries.of(*neighbours_of(seed, k), preset)
    prompts = None if entries.prompts is None else Prompts(*(part.double() for part in entries.prompts))
    return Entries(unit(entries.features.double()), entries.weights.double(), prompts)


def lowered(preset: DiversityPreset, feature: Tensor, entries: Entries) -> float:
    """What a push lowers, from the scores' definitions: Σ k_Z² k_Y², or minus log (Cond-)Vendi."""
    gaussian = preset.kernel == "gaussian"
    kernel: Kernel = GaussianKernel(preset.latent_bandwidth) if gaussian else CosineKernel()
    prompt_kernel: Kernel = GaussianKernel(preset.prompt_bandwidth) if gaussian else CosineKernel()
    rows = torch.cat([feature, entries.features])
    prompts = None
    if preset.conditional:
        assert entries.prompts is not None
        prompts = torch.cat([entries.prompts.asked[None], entries.prompts.of_entries])
    if preset.objective == "vendi":
        score = vendi(rows, kernel) if prompts is None else cond_vendi(rows, prompts, (kernel, prompt_kernel))
        return -float(torch.tensor(score, dtype=torch.float64).log())
    joint = kernel.gram(rows[:1], rows[1:])
    if prompts is not None:
        joint = joint * prompt_kernel.gram(prompts[:1], prompts[1:])
    return float(joint.square().sum())


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize("k", [1, 6, 30])
def test_a_field_points_up_what_a_push_lowers(preset: DiversityPreset, k: int) -> None:
    """On the sphere, D is the central difference of the score that the preset names, to 1e-5 of its length."""
    feature, entries = features_of(0, 1), entries_of(10, k, preset)
    field = field_of(feature, entries, preset, mutual=True)
    step, slopes = 1e-5, []
    for axis in torch.eye(D, dtype=torch.float64):
        aside = step * axis
        ahead, behind = lowered(preset, feature + aside, entries), lowered(preset, feature - aside, entries)
        slopes.append((ahead - behind) / (2 * step))
    expected = unit(torch.tensor(slopes, dtype=torch.float64))
    actual = unit(tangent(field.direction, feature))[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
@pytest.mark.parametrize("mutual", [False, True])
def test_of_rke_it_is_the_kernels_field_to_the_bit(kernel: str, *, mutual: bool) -> None:
    """For `rke` the field is that of the entries, and of the fellows before it."""
    preset = next(preset for preset in ALL if preset.kernel == kernel and preset.objective == "rke")
    features, entries = features_of(0, 3), entries_of(10, 4, preset)
    expected = kernel_field(features, entries.features, entries.weights[None], preset.latent_kernel)
    if mutual:
        expected = mutual_field(features, preset.latent_kernel).plus(expected)
    field = field_of(features, entries, preset, mutual=mutual)
    for actual, known in zip(field, expected, strict=True):
        assert torch.equal(torch.as_tensor(actual), torch.as_tensor(known))


@pytest.mark.parametrize("preset", ALL)
def test_entries_in_half_precision_are_what_they_are_after_rounding(preset: DiversityPreset) -> None:
    """Features kept in fp16 give the field of the same numbers in fp32, to the rounding of fp32 sums."""
    features, entries = features_of(0, 2).float(), entries_of(10, 5, preset)
    half = replace(entries, features=entries.features.half(), weights=entries.weights.float())
    single = replace(half, features=half.features.float())
    actual = field_of(features, half, preset, mutual=True)
    expected = field_of(features, single, preset, mutual=True)
    torch.testing.assert_close(actual.direction, expected.direction, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.nearness, expected.nearness)


@pytest.mark.parametrize("preset", ALL)
def test_images_that_do_not_see_each_other_are_each_alone(preset: DiversityPreset) -> None:
    """Without mutual repulsion n images at once are n alone, references that attract included."""
    features, entries = features_of(0, 3), entries_of(10, 5, preset)
    entries = entries.with_references([Reference(Entries(features_of(20, 2), torch.ones(2).double()), -0.5)])
    together = field_of(features, entries, preset, mutual=False)
    for row in range(3):
        alone = field_of(features[row : row + 1], entries, preset, mutual=False)
        torch.testing.assert_close(together.direction[row], alone.direction[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(together.nearness[row], alone.nearness[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("preset", ALL)
def test_nearness_is_the_same_for_every_objective(preset: DiversityPreset) -> None:
    """M is Σ k_Z² k_Y² over entries and fellows at p = 2, so that one κ serves all; far away it is 0."""
    features, entries = features_of(0, 2), entries_of(10, 4, preset)
    other = replace(preset, objective="rke")
    expected = field_of(features, entries_of(10, 4, other), other, mutual=True).nearness
    actual = field_of(features, entries, preset, mutual=True).nearness
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)  # prompts went through fp32
    axes = torch.eye(D, dtype=torch.float64)
    narrow = replace(preset, latent_bandwidth=0.05)
    far = field_of(axes[:2], Entries(axes[2:], torch.ones(D - 2).double()), narrow, mutual=True)
    assert (far.nearness < 1e-100).all()


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_references_lead_away_or_toward(preset: DiversityPreset, sign: float) -> None:
    """A small push against the field of one reference takes the image away at a positive weight, nearer at a negative."""
    feature = features_of(0, 1)
    other = unit(feature + features_of(5, 1))
    reference = Reference(Entries(other, torch.ones(1).double()), 0.7 * sign)
    entries = Entries(feature[:0], torch.zeros(0).double()).with_references([reference])
    field = field_of(feature, entries, preset, mutual=True)
    assert float(field.nearness) > 0
    moved = unit(feature - 1e-3 * unit(field.direction))
    assert sign * float((moved - feature)[0] @ other[0]) < 0


@pytest.mark.parametrize("preset", ALL)
def test_what_attracts_leaves_repulsion_inside_a_request_as_it_is(preset: DiversityPreset) -> None:
    """A context's field is that of each image alone with it, reversed, beside the mutual field of all images."""
    features, context = features_of(0, 3), Entries(features_of(5, 4), torch.full((4,), 0.6).double())
    nothing = Entries(features[:0], torch.zeros(0).double())
    both = field_of(features, nothing.with_references([Reference(context, -1.0)]), preset, mutual=True)
    apart = field_of(features, None, preset, mutual=True)
    toward = field_of(features, context, preset, mutual=False)
    torch.testing.assert_close(both.direction, apart.direction - toward.direction, rtol=0, atol=1e-9)
    torch.testing.assert_close(both.nearness, apart.nearness + toward.nearness, rtol=1e-9, atol=0)


def test_images_of_one_request_have_one_prompt_whatever_its_embedding() -> None:
    """Where the asked prompt has no direction (an embedding of zeros), the images of a request repel as ever."""
    preset = replace(VENDI, kernel="cosine", conditional=True)
    features = features_of(0, 2)
    zero = Prompts(torch.zeros(P), torch.eye(P)[:1])
    alone = field_of(features, None, preset, mutual=True)
    beside = field_of(features, Entries(features_of(3, 1), torch.ones(1), zero), preset, mutual=True)
    torch.testing.assert_close(unit(beside.direction), unit(alone.direction), rtol=0, atol=1e-9)
    torch.testing.assert_close(beside.nearness, alone.nearness)


@pytest.mark.parametrize("preset", [preset for preset in ALL if preset.conditional])
def test_a_reference_is_of_the_prompt_that_is_asked_for(preset: DiversityPreset) -> None:
    """Entries of the asked prompt in a reference of weight 1 are as good as in the memory."""
    neighbours, asked = neighbours_of(10, 4)
    same = neighbours.prompt_embeddings.clone()
    same[0, 2:] = asked
    of_all = Entries.of(replace(neighbours, prompt_embeddings=same), asked, preset)
    assert of_all.prompts is not None
    memory = Entries(
        of_all.features[:2], of_all.weights[:2], Prompts(asked.float(), of_all.prompts.of_entries[:2])
    )
    joined = memory.with_references([Reference(Entries(of_all.features[2:], torch.ones(2)), 1.0)])
    features = features_of(0, 2)
    for actual, known in zip(
        field_of(features, joined, preset, mutual=True),
        field_of(features, of_all, preset, mutual=True),
        strict=True,
    ):
        torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(known), rtol=0, atol=1e-6)


def test_of_entries_with_equal_prompts_the_sample_is_even() -> None:
    """A cap of k out of n equal entries keeps k at n/k each, of old and new, the same every time, others of one more."""
    preset = replace(VENDI, max_spectral_entries=50)
    entries = Entries(torch.arange(5000.0)[:, None], torch.ones(5000))
    chosen = sampled(entries, preset)
    assert chosen.num_entries == 50
    assert (chosen.weights == 100).all()
    assert (chosen.features[:, 0].diff() > 0).all()
    # 50 uniform places of 5,000: the mean is 2,500 ± 204; four deviations.
    assert 1684 < float(chosen.features.mean()) < 3316
    assert torch.equal(chosen.features, sampled(entries, preset).features)
    more = Entries(torch.arange(5001.0)[:, None], torch.ones(5001))
    assert len(set(sampled(more, preset).features[:, 0].tolist()) & set(chosen.features[:, 0].tolist())) < 10


def test_entries_below_the_cap_are_all_kept() -> None:
    """Up to `max_spectral_entries` there is no sample."""
    entries = entries_of(10, 8, VENDI)
    assert sampled(entries, replace(VENDI, max_spectral_entries=8)) is entries


def test_near_prompts_stay_in_the_sample_as_they_are() -> None:
    """Of many unlike prompts the few near ones are kept at their own count; sums of influence keep their size."""
    preset = replace(VENDI, max_spectral_entries=40, prompt_bandwidth=0.3)
    asked = torch.eye(3)[0]
    far = unit(asked + 0.7 * torch.eye(3)[1])
    prompts = far.expand(1000, 3).clone()
    prompts[::100] = asked
    entries = Entries(torch.arange(1000.0)[:, None], torch.ones(1000), Prompts(asked, prompts))
    chosen = sampled(entries, preset)
    assert chosen.prompts is not None
    near = (chosen.prompts.of_entries == asked).all(1)
    assert int(near.sum()) == 10
    assert (chosen.weights[near] == 1).all()
    assert float(chosen.weights[~near].sum()) == pytest.approx(990, rel=1e-6)


def test_entries_that_cannot_be_felt_leave_the_sample_finite() -> None:
    """Where k_Y underflows to 0 an entry may be in the sample, at its own count."""
    preset = replace(VENDI, max_spectral_entries=4, prompt_bandwidth=0.01)
    prompts = torch.eye(2)[1].expand(9, 2).clone()
    prompts[:2] = torch.eye(2)[0]
    entries = Entries(features_of(0, 9), torch.ones(9).double(), Prompts(torch.eye(2)[0], prompts))
    chosen = sampled(entries, preset)
    assert chosen.weights.tolist() == [1.0] * 4
    assert chosen.features[:2].equal(entries.features[:2])


def test_the_sample_stands_for_all() -> None:
    """Of 600 entries in a few clusters a sample of 120 gives nearly the direction of all."""
    centres = features_of(1, 4)
    generator = torch.Generator().manual_seed(2)
    noise = 0.05 * torch.randn(600, D, generator=generator, dtype=torch.float64)
    known = unit(centres[torch.arange(600) % 4] + noise)
    entries, features = Entries(known, torch.ones(600).double()), features_of(0, 2)
    whole = field_of(features, entries, replace(VENDI, max_spectral_entries=600), mutual=True)
    part = field_of(features, entries, replace(VENDI, max_spectral_entries=120), mutual=True)
    assert (unit(whole.direction) * unit(part.direction)).sum(-1).min() > 0.95
    torch.testing.assert_close(part.nearness, whole.nearness, rtol=0.1, atol=0)
