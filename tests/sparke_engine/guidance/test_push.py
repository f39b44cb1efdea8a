"""The modes `denoised` and `paper` as pure functions: size, direction, gate, limit, and every degenerate case."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.core.gradients import similarity_gradient, tangent
from sparke_engine.core.kernels import unit
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.denoised import Extrapolation, denoised_push, share_given_up
from sparke_engine.guidance.paper import paper_push
from sparke_engine.guidance.presets import PAPER, DiversityPreset
from sparke_engine.guidance.push import Entries, Push
from sparke_engine.types import Neighbours

PRESET = DiversityPreset(grid=(2, 2), latent_bandwidth=0.8, kappa=0.1)
WIDE = 1e9


def latents_of(seed: int, n: int = 1) -> Tensor:
    """Random latents 3×6×6, float64."""
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entries_of(latents: Tensor, preset: DiversityPreset = PRESET) -> Entries:
    """Entries at these latents, each of weight 1."""
    return Entries(preset.feature_map.feature(latents), torch.ones(latents.shape[0], dtype=torch.float64))


def push_of(
    latents: Tensor,
    entries: Entries | None,
    preset: DiversityPreset = PRESET,
    *,
    eta: float = 0.5,
    limit: float = WIDE,
) -> Push:
    """The push of the preset's mode."""
    mode = paper_push if preset.mode == "paper" else denoised_push
    return mode(latents, entries, preset, eta=eta, limit=torch.full((latents.shape[0],), limit))


@pytest.mark.parametrize("preset", [PRESET, PAPER])
@pytest.mark.parametrize("entries", [None, Entries(torch.zeros(0, 12), torch.zeros(0))])
def test_nothing_near_no_push(preset: DiversityPreset, entries: Entries | None) -> None:
    """Alone and without entries the push is exactly zero."""
    push = push_of(latents_of(0), entries, preset)
    assert torch.equal(push.delta, torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    assert float(push.relative) == 0


@pytest.mark.parametrize("preset", [PRESET, replace(PRESET, grid=None), replace(PRESET, grid=(4, 5)), PAPER])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nearness", [0.0, 0.9, 0.999])
def test_points_away_from_a_single_entry(preset: DiversityPreset, seed: int, nearness: float) -> None:
    """A small push away from one entry, far or near, lowers the similarity of the features."""
    latents = latents_of(seed)
    entries = entries_of(nearness * latents + (1 - nearness) * latents_of(seed + 100), preset)
    push = push_of(latents, entries, preset, eta=1e-3)
    before = preset.feature_map.feature(latents)[0] @ entries.features[0]
    after = preset.feature_map.feature(latents - push.delta)[0] @ entries.features[0]
    assert after < before


def test_denoised_size() -> None:
    """‖δ‖ is η · m/(m+κ) · ‖x̂0‖."""
    latents, entries = latents_of(1, n=3), entries_of(latents_of(2, n=4))
    features = PRESET.feature_map.feature(latents)
    memory = PRESET.latent_kernel.gram(features, entries.features).sum(1)
    fellows = PRESET.latent_kernel.gram(features, features).sum(1) - 1
    mass = memory + fellows
    push = push_of(latents, entries, eta=0.7)
    expected = 0.7 * mass / (mass + PRESET.kappa)
    torch.testing.assert_close(push.relative, expected, rtol=1e-9, atol=0)
    actual = push.delta.flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def test_denoised_direction_is_the_gradient() -> None:
    """For a single image δ points along the gradient of Σ w_j in the feature, by autograd, spread over the pooling."""
    latents, entries = latents_of(3), entries_of(latents_of(4, n=5))
    feature = PRESET.feature_map.feature(latents).requires_grad_()
    distance = (feature[:, None] - entries.features[None]).square().sum(-1)
    torch.exp(-PRESET.power * distance / (2 * PRESET.latent_bandwidth**2)).sum().backward()
    assert feature.grad is not None
    expected = unit(PRESET.feature_map.adjoint(feature.grad, latents).flatten(1))
    push = push_of(latents, entries)
    torch.testing.assert_close(unit(push.delta.flatten(1)), expected, rtol=0, atol=1e-9)


def test_what_image_and_past_share_is_not_pushed() -> None:
    """Where the features of image and entries agree in some places, the push is zero there."""
    preset = replace(PRESET, grid=None)
    latents, others = latents_of(10), latents_of(11, n=4)
    shared, own = latents[:, :, :3], latents[:, :, 3:]
    theirs = others[:, :, 3:] / others[:, :, 3:].flatten(1).norm(dim=1).reshape(4, 1, 1, 1) * own.norm()
    past = torch.cat([shared.expand(4, -1, -1, -1), theirs], dim=2)
    delta = push_of(latents, entries_of(past, preset), preset).delta
    assert delta.norm() > 0.1
    torch.testing.assert_close(
        delta[:, :, :3], torch.zeros(1, 3, 3, 6, dtype=torch.float64), rtol=0, atol=1e-12
    )


def relaxed(
    latents: Tensor, prompted: Tensor, entries: Entries | None, eta: float, relax: float = 1.0
) -> Push:
    """The push of a pipeline that extrapolates at guidance scale 8."""
    limit = torch.full((latents.shape[0],), WIDE)
    return denoised_push(
        latents,
        entries,
        PRESET,
        eta=eta,
        limit=limit,
        extrapolation=Extrapolation(prompted, 8.0),
        relax=relax,
    )


@pytest.mark.parametrize("relax", [0.0, 0.5, 1.0])
def test_the_guidance_scale_is_relaxed_by_the_gate(relax: float) -> None:
    """At η = 0 the prediction is that of guidance scale s^(1−λm/(m+κ)), and of s where nothing is near."""
    unprompted, prompted, entries = latents_of(1), latents_of(2), entries_of(latents_of(3, n=4))
    latents = unprompted + 8.0 * (prompted - unprompted)
    mass = PRESET.latent_kernel.gram(PRESET.feature_map.feature(prompted), entries.features).sum()
    push = relaxed(latents, prompted, entries, 0.0, relax)
    scale = 8.0 ** (1 - relax * mass / (mass + PRESET.kappa))
    torch.testing.assert_close(
        latents - push.delta, unprompted + scale * (prompted - unprompted), rtol=1e-9, atol=1e-9
    )
    assert float(push.relative) == 0
    assert torch.equal(relaxed(latents, prompted, None, 0.5, relax).delta, torch.zeros_like(latents))


@given(st.floats(1.0, 30.0), st.floats(0.0, 1.0))
def test_the_share_given_up_makes_the_relaxed_scale(scale: float, relax: float) -> None:
    """What is left of s extrapolates as s^(1−λ) does; at λ = 1 nothing is left, and at s ≤ 1 nothing is given up."""
    share = share_given_up(scale, torch.tensor([relax, 1.0], dtype=torch.float64))
    assert 1 + (scale - 1) * (1 - float(share[0])) == pytest.approx(scale ** (1 - relax), rel=1e-12)
    assert float(share[1]) == pytest.approx(1.0 if scale > 1 else 0.0, abs=1e-12)
    assert not share_given_up(0.5, share).any()


@pytest.mark.parametrize("preset", [PRESET, replace(PRESET, grid=None)])
def test_the_push_proper_is_across_the_axis_of_guidance(preset: DiversityPreset) -> None:
    """It has no part along what guidance extrapolates, and is the plain push less that part."""
    latents, prompted, entries = latents_of(1, 3), latents_of(2, 3), entries_of(latents_of(3, n=4), preset)
    limit = torch.full((3,), WIDE)
    start = Extrapolation(prompted, 1.0)
    across = denoised_push(latents, entries, preset, eta=0.5, limit=limit, extrapolation=start).delta
    axis = unit((latents - prompted).flatten(1))
    torch.testing.assert_close((across.flatten(1) * axis).sum(1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    plain = push_of(prompted, entries, preset).delta
    along = unit(preset.feature_map.apply(latents - prompted))
    left = tangent(preset.feature_map.apply(plain), along)
    torch.testing.assert_close(unit(preset.feature_map.apply(across)), unit(left), rtol=0, atol=1e-9)


def test_along_the_axis_of_guidance_alone_there_is_no_push() -> None:
    """Where the only way apart is the axis of guidance, the push proper is zero, not rounding."""
    preset = replace(PRESET, grid=None)
    prompted = latents_of(2)
    other = latents_of(3)
    other = other * prompted.norm() / other.norm()
    latents = prompted + 2.5 * (prompted - other)
    entries, limit = entries_of(other, preset), torch.full((1,), WIDE)
    push = denoised_push(
        latents, entries, preset, eta=0.5, limit=limit, extrapolation=Extrapolation(prompted, 1.0)
    )
    assert torch.equal(push.delta, torch.zeros_like(latents))
    assert float(push.relative) == 0


def test_a_push_is_measured_by_the_relaxed_prediction() -> None:
    """The push proper has η · gate of the norm that is left after guidance is relaxed."""
    latents, prompted, entries = latents_of(1), latents_of(2), entries_of(latents_of(3, n=4))
    without, push = relaxed(latents, prompted, entries, 0.0), relaxed(latents, prompted, entries, 0.5)
    proper, left = (push.delta - without.delta).norm(), (latents - without.delta).norm()
    torch.testing.assert_close(proper / left, push.relative[0], rtol=1e-9, atol=0)
    assert 0.3 < float(push.relative) < 0.5


def test_paper_step_is_algorithm_1() -> None:
    """The new latents are z − η‖z‖∇/‖∇‖, every entry by its prompt kernel."""
    preset = replace(PAPER, grid=None)
    latents = latents_of(5, n=2)
    entries = Entries(
        preset.feature_map.feature(latents_of(6, n=3)), torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    )
    flat = latents.flatten(1)
    gradient = similarity_gradient(flat, entries.features, entries.weights[None], preset.latent_kernel)
    expected = 0.03 * flat.norm(dim=1, keepdim=True) * unit(gradient)
    push = push_of(latents, entries, preset, eta=0.03)
    torch.testing.assert_close(push.delta.flatten(1), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preset", [PRESET, PAPER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [1, 2, 7, 1000, 16384])
def test_coincident_points_stay(preset: DiversityPreset, dtype: torch.dtype, copies: int) -> None:
    """Where every entry and every fellow is the image itself there is no direction: no push, and nothing but zeros."""
    latents = latents_of(7).to(dtype).expand(min(copies, 4), -1, -1, -1)
    entries = entries_of(latents_of(7).to(dtype), preset)
    entries = Entries(entries.features.expand(copies, -1), entries.weights.to(dtype).expand(copies))
    push = push_of(latents, entries, preset)
    assert torch.equal(push.delta, torch.zeros_like(latents))
    assert torch.equal(push.relative, torch.zeros_like(push.relative))


@pytest.mark.parametrize("preset", [PRESET, PAPER])
def test_zero_latents_stay_finite(preset: DiversityPreset) -> None:
    """Latents of zero are not moved."""
    push = push_of(torch.zeros(2, 3, 6, 6, dtype=torch.float64), entries_of(latents_of(1), preset), preset)
    assert torch.equal(push.delta, torch.zeros(2, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("preset", [PRESET, PAPER])
def test_tiny_weights_keep_their_direction(preset: DiversityPreset) -> None:
    """In fp32, weights of 1e-30 give the direction of weights of 1, not an underflow."""
    latents, near = latents_of(8).float(), entries_of(latents_of(9), preset)
    directions = []
    for weight in (1.0, 1e-30):
        entries = Entries(near.features.float(), torch.full((1,), weight))
        push = push_of(latents, entries, replace(preset, kappa=1e-30))
        directions.append(unit(push.delta.flatten(1)))
    assert directions[0].norm() > 0.99
    torch.testing.assert_close(directions[0], directions[1], rtol=0, atol=1e-5)


def test_fellows_part() -> None:
    """Two images of one group, without memory, move apart by steps of equal relative size."""
    latents = latents_of(10).expand(2, -1, -1, -1) + 0.3 * latents_of(11, n=2)
    push = push_of(latents, None, eta=0.05)
    before, after = (PRESET.feature_map.feature(z) for z in (latents, latents - push.delta))
    assert after[0] @ after[1] < before[0] @ before[1]
    torch.testing.assert_close(push.relative[0], push.relative[1], rtol=1e-12, atol=0)


def test_paper_ignores_fellows() -> None:
    """In mode `paper` an image's push is the same alone and among others."""
    latents, entries = latents_of(12, n=3), entries_of(latents_of(13, n=2), PAPER)
    together = push_of(latents, entries, PAPER).delta
    alone = push_of(latents[1:2], entries, PAPER).delta
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-14)


@given(st.floats(0, 0.6), st.integers(0, 50))
def test_the_limit_holds(limit: float, seed: int) -> None:
    """No push is larger than its limit, and one below it is not changed."""
    latents, entries = latents_of(seed), entries_of(latents_of(seed + 1, n=2))
    free, held = push_of(latents, entries), push_of(latents, entries, limit=limit)
    expected = min(float(free.relative), torch.tensor(limit).item())
    assert float(held.relative) == pytest.approx(expected)


def test_far_entries_push_less_than_near_ones() -> None:
    """The gate fades the push with the distance of what pushes."""
    latents = latents_of(14)
    sizes = []
    for amount in (0.3, 1.0, 5.0):
        entries = entries_of(latents + amount * latents_of(15))
        sizes.append(float(push_of(latents, entries, replace(PRESET, latent_bandwidth=0.3)).relative))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]


def test_entries_weigh_by_prompt_and_mask() -> None:
    """a_j is weight · k_Y^p, and a masked entry is absent, though its feature may hold NaN."""
    features = torch.stack([torch.ones(3), torch.full((3,), float("nan"))])[None]
    prompts = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]])
    known = Neighbours(features, prompts, torch.tensor([[True, False]]), torch.tensor([[2.5, 1.0]]))
    entries = Entries.of(known, torch.tensor([1.0, 0.0]), PRESET)
    squared_distance = (1 - 0.6) ** 2 + 0.8**2
    expected = 2.5 * torch.exp(torch.tensor(-2 * squared_distance / (2 * PRESET.prompt_bandwidth**2)))
    torch.testing.assert_close(entries.weights, expected[None])
    assert torch.equal(entries.features, torch.ones(1, 3))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_half_precision_neighbours_push_as_in_fp32(device: str) -> None:
    """Features kept in half precision push as the same numbers in fp32 do; on a CPU they become fp32 once."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    clean, past = latents_of(0, 2).float(), latents_of(1, 5)
    features = PRESET.feature_map.feature(past).half()
    known = Neighbours.of(features[None], torch.ones(1, 5, 2))
    entries = Entries.of(known, torch.ones(2), PRESET)
    assert (entries.features.dtype, entries.weights.dtype) == (torch.float16, torch.float32)
    moved = entries.to(torch.device(device))
    assert moved.features.dtype == (torch.float32 if device == "cpu" else torch.float16)
    single = Entries(features.float(), entries.weights)
    limit = torch.full((2,), 10.0)
    expected = denoised_push(clean, single, PRESET, eta=0.5, limit=limit).delta
    for half, where in ((entries, "cpu"), (moved, device)):
        actual = denoised_push(clean.to(where), half, PRESET, eta=0.5, limit=limit.to(where)).delta
        # the direction is a sum of terms that cancel: some hundred roundings of fp32
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["features", "prompt_embeddings", "weights"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("conditional", [True, False])
def test_neighbours_that_are_not_finite_are_refused(place: str, value: float, *, conditional: bool) -> None:
    """One NaN or infinity in what counts is an error that names the place; under a mask, or where unread, it is none."""
    known = Neighbours.of(torch.ones(1, 3, 4).half(), torch.ones(1, 3, 2))
    broken = getattr(known, place).clone()
    broken[0, 1] = value
    known = replace(known, **{place: broken})
    preset = replace(PRESET, conditional=conditional, min_prompt_kernel=1e-3 if conditional else 0.0)
    if conditional or place != "prompt_embeddings":
        with pytest.raises(InvalidArgument, match=f"{place.replace('_', ' ')} hold NaN or infinity"):
            Entries.of(known, torch.ones(2), preset)
    masked = replace(known, mask=torch.tensor([[True, False, True]]))
    assert Entries.of(masked, torch.ones(2), preset).num_entries == 2


def test_a_prompt_that_is_not_finite_is_refused() -> None:
    """So is NaN in the prompt that is asked for."""
    known = Neighbours.of(torch.ones(1, 3, 4), torch.ones(1, 3, 2))
    with pytest.raises(InvalidArgument, match="prompt embedding hold"):
        Entries.of(known, torch.tensor([1.0, float("nan")]), PRESET)


@pytest.mark.parametrize("objective", ["rke", "vendi"])
def test_prompts_of_any_length_are_directions(objective: str) -> None:
    """Prompt embeddings ten times as long, asked and known, give the same entries."""
    preset = replace(PRESET, objective=objective, prompt_bandwidth=0.5)
    prompts = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0)) + 2
    known = Neighbours.of(torch.ones(1, 5, 4), unit(prompts))
    asked = unit(torch.ones(6))
    expected = Entries.of(known, asked, preset)
    actual = Entries.of(replace(known, prompt_embeddings=10 * unit(prompts)), 0.1 * asked, preset)
    assert expected.weights.min() > 0.05
    torch.testing.assert_close(actual.weights, expected.weights)
    torch.testing.assert_close(actual.prompts, expected.prompts)


def test_half_precision_neighbours_push_latents_in_double() -> None:
    """Entries in half precision push float64 latents as the same numbers in float64 do."""
    clean, features = latents_of(0, 2), PRESET.feature_map.feature(latents_of(1, 5)).half()
    limit = torch.full((2,), 10.0, dtype=torch.float64)
    half, double = (
        Entries(rows, torch.ones(5, dtype=torch.float64)) for rows in (features, features.double())
    )
    actual, expected = (
        denoised_push(clean, entries, PRESET, eta=0.5, limit=limit).delta for entries in (half, double)
    )
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)  # norms of half rows are kept in fp32


def test_a_group_has_one_problem() -> None:
    """Neighbours of two problems are no group's."""
    known = Neighbours.of(torch.zeros(2, 1, 3), torch.zeros(2, 1, 2))
    with pytest.raises(ShapeMismatch, match="b = 1, got b = 2"):
        Entries.of(known, torch.zeros(2), PRESET)
