"""Law 1: the closed form against autograd and finite differences, float64, with every singular input."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.core.gradients import entry_weights, kernel_field, mutual_field, similarity_gradient
from sparke_engine.core.kernels import CosinePower, GaussianPower, KernelPower, unit
from sparke_engine.types import Neighbours


@dataclass(frozen=True)
class Problem:
    """b problems of n moving latents that share k entries."""

    latents: Tensor  # [b,n,d]
    neighbours: Neighbours
    prompts: Tensor  # [b,p]
    kernel: KernelPower
    prompt_kernel: KernelPower

    @property
    def weights(self) -> Tensor:
        """a_j as the core computes them, [b,1,k]."""
        return entry_weights(self.neighbours, self.prompts, self.prompt_kernel)[:, None]

    @property
    def gradient(self) -> Tensor:
        """The closed form, [b,n,d]."""
        return similarity_gradient(self.latents, self.neighbours.features, self.weights, self.kernel)

    @property
    def scale(self) -> Tensor:
        """γ Σ|w| / ‖z‖, what errors are relative to, [b,n,1]."""
        mass = kernel_field(unit(self.latents), self.neighbours.features, self.weights, self.kernel).mass
        norm = self.latents.norm(dim=-1)
        return (self.kernel.steepness * mass / norm)[..., None]

    def similarity(self, latents: Tensor) -> Tensor:
        """Σ_j a_j k_Z^p of each latent by the definition, [b,n]."""
        known = self.neighbours
        features = latents / latents.norm(dim=-1, keepdim=True)
        values = value_of(self.kernel, features[:, :, None], known.features[:, None])
        of_prompts = value_of(self.prompt_kernel, self.prompts[:, None], known.prompt_embeddings)[:, None]
        return (values * of_prompts * known.weights[:, None] * known.mask[:, None]).sum(-1)


def value_of(kernel: KernelPower, a: Tensor, b: Tensor) -> Tensor:
    """k^p by its definition, with differences written out."""
    if isinstance(kernel, GaussianPower):
        return torch.exp(-(a - b).square().sum(-1) / (2 * kernel.bandwidth**2)) ** kernel.power
    return (a * b).sum(-1) ** int(kernel.power)


def kernel_of(draw: st.DrawFn, bandwidth: tuple[float, float], power: float) -> KernelPower:
    """Either kernel."""
    if draw(st.booleans()):
        return CosinePower(power)
    return GaussianPower(draw(st.floats(*bandwidth)), power)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Random problems with duplicates of latents and of entries, masks, weights, k = 0 and d = 1."""
    b, n, k = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 5))
    d, p = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    latents = torch.randn(b, n, d, generator=generator, dtype=torch.float64) * draw(st.floats(0.1, 10))
    features = unit(torch.randn(b, k, d, generator=generator, dtype=torch.float64))
    for entry in range(k):
        match draw(st.sampled_from(["fresh", "fresh", "of a latent", "of an entry"])):
            case "of a latent":
                features[:, entry] = unit(latents)[:, draw(st.integers(0, n - 1))]
            case "of an entry":
                features[:, entry] = features[:, draw(st.integers(0, entry))]
    prompts = unit(torch.randn(b, p, generator=generator, dtype=torch.float64))
    embeddings = unit(prompts[:, None] + torch.randn(b, k, p, generator=generator, dtype=torch.float64))
    flags = draw(st.lists(st.booleans(), min_size=b * k, max_size=b * k))
    weights = draw(st.lists(st.sampled_from([1.0, 2.5, -0.5]), min_size=b * k, max_size=b * k))
    power = float(draw(st.integers(1, 3)))
    return Problem(
        latents=latents,
        neighbours=Neighbours(
            features,
            embeddings,
            torch.tensor(flags, dtype=torch.bool).reshape(b, k),
            torch.tensor(weights, dtype=torch.float64).reshape(b, k),
        ),
        prompts=prompts,
        kernel=kernel_of(draw, (0.2, 2.0), power),
        prompt_kernel=kernel_of(draw, (0.3, 2.0), power),
    )


@given(problems())
@settings(max_examples=150)
def test_closed_form_equals_autograd(problem: Problem) -> None:
    """The closed form is autograd's gradient to 1e-12 of γΣ|w|/‖z‖."""
    latents = problem.latents.clone().requires_grad_()
    (expected,) = torch.autograd.grad(problem.similarity(latents).sum(), latents)
    assert ((problem.gradient - expected).abs() <= 1e-12 * problem.scale).all()


@given(problems())
@settings(max_examples=60)
def test_closed_form_equals_finite_differences(problem: Problem) -> None:
    """The closed form is the central difference to 1e-6 of γΣ|w|/‖z‖."""
    step = 1e-6 * problem.latents.norm(dim=-1)
    for axis in range(problem.latents.shape[-1]):
        shift = torch.zeros_like(problem.latents)
        shift[..., axis] = step
        ahead, behind = (
            problem.similarity(problem.latents + shift),
            problem.similarity(problem.latents - shift),
        )
        error = (problem.gradient[..., axis] - (ahead - behind) / (2 * step)).abs()
        assert (error <= 1e-6 * problem.scale[..., 0]).all()


@given(problems())
def test_masked_equals_absent(problem: Problem) -> None:
    """Entries that are masked, whatever they hold, give the gradient of the problem without them."""
    known = problem.neighbours
    spoilt = torch.where(known.mask[..., None], known.prompt_embeddings, 7.0)
    with_masked = replace(problem, neighbours=replace(known, prompt_embeddings=spoilt)).gradient
    for index in range(problem.latents.shape[0]):
        kept = known.mask[index]
        alone = replace(
            problem,
            latents=problem.latents[index : index + 1],
            prompts=problem.prompts[index : index + 1],
            neighbours=Neighbours(
                known.features[index : index + 1, kept],
                known.prompt_embeddings[index : index + 1, kept],
                known.mask[index : index + 1, kept],
                known.weights[index : index + 1, kept],
            ),
        )
        assert ((with_masked[index] - alone.gradient[0]).abs() <= 1e-13 * alone.scale[0]).all()


@given(problems())
def test_a_batch_is_its_problems(problem: Problem) -> None:
    """A batch of b problems of n latents at once equal each latent alone, up to the order of sums."""
    together, weights = problem.gradient, problem.weights
    for index in range(problem.latents.shape[0]):
        for row in range(problem.latents.shape[1]):
            alone = similarity_gradient(
                problem.latents[index : index + 1, row : row + 1],
                problem.neighbours.features[index : index + 1],
                weights[index : index + 1],
                problem.kernel,
            )
            assert ((together[index, row] - alone[0, 0]).abs() <= 1e-13 * problem.scale[index, row]).all()


@given(problems())
def test_field_by_its_definition(problem: Problem) -> None:
    """D is Σ_j a_j s_j (f_j − f) with signed weights, differences written out; mass and nearness are their sums."""
    features, entries = unit(problem.latents), problem.neighbours.features
    field = kernel_field(features, entries, problem.weights, problem.kernel)
    pairs = features[:, :, None], entries[:, None]
    values = pulls = value_of(problem.kernel, *pairs)
    if isinstance(problem.kernel, CosinePower):
        pulls = (pairs[0] * pairs[1]).sum(-1) ** (int(problem.kernel.power) - 1)
    weights = problem.weights * pulls
    expected = (weights[..., None] * (pairs[1] - pairs[0])).sum(-2)
    assert ((field.direction - expected).abs() <= 1e-12 * weights.abs().sum(-1, keepdim=True)).all()
    torch.testing.assert_close(field.mass, weights.abs().sum(-1), rtol=1e-12, atol=1e-15)
    near = (problem.weights.abs() * values.clamp_min(0)).sum(-1)
    torch.testing.assert_close(field.nearness, near, rtol=1e-12, atol=1e-15)


@given(problems(), st.floats(0.2, 2.0))
def test_the_gaussian_field_is_to_the_bit_what_presets_were_tuned_on(
    problem: Problem, bandwidth: float
) -> None:
    """In fp32, D is Σ_j w_j f_j − (Σ_j w_j) f and m is Σ_j |w_j| in this order of operations, and nearness is m."""
    kernel = GaussianPower(bandwidth, 2.0)
    features, entries = unit(problem.latents).float(), problem.neighbours.features.float()
    weights = problem.weights.float() * kernel.gram(features, entries)
    field = kernel_field(features, entries, problem.weights.float(), kernel)
    assert torch.equal(field.direction, weights @ entries - weights.sum(-1, keepdim=True) * features)
    assert torch.equal(field.mass, weights.abs().sum(-1))
    assert torch.equal(field.nearness, field.mass)


@given(problems())
def test_mutual_field_is_the_field_of_the_others(problem: Problem) -> None:
    """Each of n features feels the other n − 1 with weight 1, and not itself."""
    features = unit(problem.latents)
    together = mutual_field(features, problem.kernel)
    n = features.shape[1]
    for row in range(n):
        others = [other for other in range(n) if other != row]
        entries = features[:, others]
        weights = torch.ones(features.shape[0], 1, n - 1, dtype=torch.float64)
        alone = kernel_field(features[:, row : row + 1], entries, weights, problem.kernel)
        torch.testing.assert_close(together.direction[:, row], alone.direction[:, 0], rtol=0, atol=1e-13)
        torch.testing.assert_close(together.mass[:, row], alone.mass[:, 0], rtol=1e-13, atol=0)


def test_zero_latents_have_zero_gradient() -> None:
    """At φ(z) = 0 there is no direction, and the gradient is defined as 0."""
    entries = unit(torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    weights = torch.ones(1, 1, 3, dtype=torch.float64)
    gradient = similarity_gradient(
        torch.zeros(1, 2, 4, dtype=torch.float64), entries, weights, GaussianPower(0.5, 2.0)
    )
    assert torch.equal(gradient, torch.zeros(1, 2, 4, dtype=torch.float64))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_without_entries_the_field_is_zero(power: float) -> None:
    """Without entries (k = 0) the field has direction 0 and mass 0."""
    field = kernel_field(
        torch.ones(2, 3, dtype=torch.float64) / 3**0.5,
        torch.zeros(0, 3, dtype=torch.float64),
        torch.zeros(1, 0, dtype=torch.float64),
        GaussianPower(0.5, power),
    )
    assert torch.equal(field.direction, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(field.mass, torch.zeros(2, dtype=torch.float64))
