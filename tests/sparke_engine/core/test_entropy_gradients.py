"""The entropy's gradient against autograd through eigenvalues and finite differences of the scores, float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.core.entropy_gradients import Population, entropy_field, entropy_gradient
from sparke_engine.core.gradients import entry_weights, kernel_field, tangent
from sparke_engine.core.kernels import (
    CosineKernel,
    CosinePower,
    GaussianKernel,
    GaussianPower,
    Kernel,
    KernelPower,
    unit,
)
from sparke_engine.core.scores import cond_vendi, vendi
from sparke_engine.types import Neighbours

# The floor τ = ε·N < 4e-15 changes D by at most √τ |log τ| / √q < 1e-5, and so does rounding of eigenvalues near it.
FLOOR = 1e-5


@dataclass(frozen=True)
class Problem:
    """n moving latents, k entries with counts, and prompts of all (None: prompts are not seen)."""

    latents: Tensor  # [n,d]
    entries: Tensor  # [k,d]
    counts: Tensor  # [k]
    prompts: Tensor | None  # [n+k,p]
    bandwidths: tuple[float, float]
    is_cosine: bool

    @property
    def kernel(self) -> KernelPower:
        """k_Z."""
        return CosinePower(1.0) if self.is_cosine else GaussianPower(self.bandwidths[0], 1.0)

    @property
    def population(self) -> Population:
        """What the core takes."""
        if self.prompts is None:
            return Population(self.entries, self.counts)
        gram = GaussianPower(self.bandwidths[1], 1.0).gram(self.prompts, self.prompts)
        return Population(self.entries, self.counts, gram)

    @property
    def gradient(self) -> Tensor:
        """The closed form, [n,d]."""
        return entropy_gradient(self.latents, self.population, self.kernel)

    @property
    def scale(self) -> Tensor:
        """2 q γ / ‖z‖, what errors are relative to, [n,1]."""
        total = len(self.latents) + self.counts.sum()
        return 2 * self.kernel.steepness / total / self.latents.norm(dim=-1, keepdim=True)

    def density(self, latents: Tensor) -> Tensor:
        """ρ by its definition, differences written out."""
        rows = torch.cat([latents / latents.norm(dim=-1, keepdim=True), self.entries])
        if self.is_cosine:
            gram = (rows[:, None] * rows[None]).sum(-1)
        else:
            gram = torch.exp(-(rows[:, None] - rows[None]).square().sum(-1) / (2 * self.bandwidths[0] ** 2))
        if self.prompts is not None:
            apart = (self.prompts[:, None] - self.prompts[None]).square().sum(-1)
            gram = gram * torch.exp(-apart / (2 * self.bandwidths[1] ** 2))
        counts = torch.cat([torch.ones(len(latents), dtype=torch.float64), self.counts])
        return gram * (counts[:, None] * counts[None]).sqrt() / counts.sum()

    def log_score(self, latents: Tensor) -> float:
        """Log Vendi or log Cond-Vendi by the public scores, where every count is 1."""
        kernel: Kernel = CosineKernel() if self.is_cosine else GaussianKernel(self.bandwidths[0])
        rows = torch.cat([latents, self.entries])
        if self.prompts is None:
            return math.log(vendi(rows, kernel))
        return math.log(cond_vendi(rows, self.prompts, (kernel, GaussianKernel(self.bandwidths[1]))))


@st.composite
def problems(draw: st.DrawFn, counts: tuple[float, ...] = (1.0,)) -> Problem:
    """Random problems with duplicates of latents, entries and prompts, k = 0, d = 1, and more points than dimensions."""
    n, k = draw(st.integers(1, 3)), draw(st.integers(0, 7))
    d, p = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    latents = torch.randn(n, d, generator=generator, dtype=torch.float64) * draw(st.floats(0.1, 10))
    entries = unit(torch.randn(k, d, generator=generator, dtype=torch.float64))
    for entry in range(k):
        match draw(st.sampled_from(["fresh", "fresh", "of a latent", "of an entry", "opposite"])):
            case "of a latent":
                entries[entry] = unit(latents)[draw(st.integers(0, n - 1))]
            case "of an entry":
                entries[entry] = entries[draw(st.integers(0, entry))]
            case "opposite":
                entries[entry] = -unit(latents)[draw(st.integers(0, n - 1))]
    prompts = None
    if draw(st.booleans()):
        prompts = unit(torch.randn(n + k, p, generator=generator, dtype=torch.float64))
        prompts[:n] = prompts[:1].clone()
        if k > 1:
            prompts[n] = prompts[-1]
    drawn = draw(st.lists(st.sampled_from(counts), min_size=k, max_size=k))
    return Problem(
        latents,
        entries,
        torch.tensor(drawn, dtype=torch.float64),
        prompts,
        (draw(st.floats(0.2, 2.0)), draw(st.floats(0.3, 2.0))),
        draw(st.booleans()),
    )


@given(problems(counts=(0.5, 1.0, 3.0)))
@settings(max_examples=150)
def test_equals_autograd_where_the_spectrum_is_regular(problem: Problem) -> None:
    """Where eigenvalues are distinct and above 1e-9, it is autograd's gradient through eigvalsh, to 1e-9 of 2qγ/‖z‖."""
    latents = problem.latents.clone().requires_grad_()
    eigenvalues = torch.linalg.eigvalsh(problem.density(latents))
    assume(bool((eigenvalues.diff() > 1e-6).all()) and bool((eigenvalues > 1e-9).all()))
    (expected,) = torch.autograd.grad(-torch.xlogy(eigenvalues, eigenvalues).sum(), latents)
    assert ((problem.gradient - expected).abs() <= 1e-9 * problem.scale).all()


@given(problems())
@settings(max_examples=60)
def test_equals_finite_differences_of_the_scores(problem: Problem) -> None:
    """It is the central difference of log Vendi and log Cond-Vendi, at duplicates and singular spectra too.

    To 1e-4 of 2qγ/‖z‖: at a spectrum that touches 0 the entropy is no smoother than h² log h.
    """
    for row in range(problem.latents.shape[0]):
        step = float(1e-5 * problem.latents[row].norm())
        for axis in range(problem.latents.shape[1]):
            shift = torch.zeros_like(problem.latents)
            shift[row, axis] = step
            ahead = problem.log_score(problem.latents + shift)
            behind = problem.log_score(problem.latents - shift)
            error = abs(float(problem.gradient[row, axis]) - (ahead - behind) / (2 * step))
            assert error <= 1e-4 * float(problem.scale[row])


@pytest.mark.parametrize("is_cosine", [False, True])
def test_at_repeated_eigenvalues(is_cosine: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    """Where all pairs are equally near, an eigenvalue repeats; it is the finite difference there, in any direction."""
    corners = unit(torch.eye(6, dtype=torch.float64) + 0.2)
    problem = Problem(
        corners[:2], corners[2:], torch.ones(4, dtype=torch.float64), None, (0.8, 1.0), is_cosine
    )
    eigenvalues = torch.linalg.eigvalsh(problem.density(problem.latents))
    assert float(eigenvalues[:5].max() - eigenvalues[:5].min()) < 1e-15
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        shift = 1e-5 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
        difference = problem.log_score(problem.latents + shift) - problem.log_score(problem.latents - shift)
        assert float((problem.gradient * shift).sum()) == pytest.approx(difference / 2, rel=1e-6, abs=1e-13)


@given(problems(counts=(1.0, 2.0, 3.0)))
def test_a_count_is_so_many_duplicates(problem: Problem) -> None:
    """An entry of count 3 pushes like the entry three times, whose spectrum has zeros, to what the floor changes."""
    times = problem.counts.long()
    prompts = problem.prompts
    if prompts is not None:
        n = len(problem.latents)
        prompts = torch.cat([prompts[:n], prompts[n:].repeat_interleave(times, dim=0)])
    spread = Problem(
        problem.latents,
        problem.entries.repeat_interleave(times, dim=0),
        torch.ones(int(times.sum()), dtype=torch.float64),
        prompts,
        problem.bandwidths,
        problem.is_cosine,
    )
    assert ((problem.gradient - spread.gradient).abs() <= FLOOR * problem.scale).all()


@given(problems(counts=(0.0, 1.0)))
def test_absent_entries_do_nothing(problem: Problem) -> None:
    """Entries of count 0, whatever they hold, give the field of the problem without them."""
    kept = problem.counts > 0
    population = problem.population
    spoilt = population._replace(entries=torch.where(kept[:, None], problem.entries, 7.0))
    n = len(problem.latents)
    rows = torch.cat([torch.ones(n, dtype=torch.bool), kept])
    gram = None if population.prompt_gram is None else population.prompt_gram[rows][:, rows]
    features = unit(problem.latents)
    with_absent = entropy_field(features, spoilt, problem.kernel)
    without = entropy_field(
        features, Population(problem.entries[kept], problem.counts[kept], gram), problem.kernel
    )
    assert ((with_absent.direction - without.direction).abs() <= FLOOR).all()
    torch.testing.assert_close(with_absent.nearness, without.nearness, rtol=1e-12, atol=1e-14)


@given(problems(counts=(1.0, 2.5)), st.integers(0, 2**32))
def test_a_batch_is_its_problems(problem: Problem, seed: int) -> None:
    """Two problems at once are the two alone, to what rounding near the floor changes."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(problem.latents.shape, generator=generator, dtype=torch.float64)
    population = problem.population
    together = entropy_field(
        torch.stack([unit(problem.latents), unit(other)]),
        Population(
            population.entries.expand(2, -1, -1),
            population.counts.expand(2, -1),
            None if population.prompt_gram is None else population.prompt_gram.expand(2, -1, -1),
        ),
        problem.kernel,
    )
    for index, latents in enumerate((problem.latents, other)):
        alone = entropy_field(unit(latents), population, problem.kernel)
        assert ((together.direction[index] - alone.direction).abs() <= FLOOR).all()
        torch.testing.assert_close(together.nearness[index], alone.nearness, rtol=1e-12, atol=1e-14)


@given(problems(counts=(1.0, 2.5)))
def test_one_spectrum_serves_all_moving_points(problem: Problem) -> None:
    """Each of n moving points feels its fellows as entries of count 1."""
    n = len(problem.latents)
    features, population = unit(problem.latents), problem.population
    together = entropy_field(features, population, problem.kernel)
    for row in range(n):
        order = [row, *(other for other in range(n) if other != row)]
        alone = entropy_field(
            features[order[:1]],
            Population(
                torch.cat([features[order[1:]], problem.entries]),
                torch.cat([torch.ones(n - 1, dtype=torch.float64), problem.counts]),
                population.prompt_gram,  # of one prompt for all n
            ),
            problem.kernel,
        )
        assert ((together.direction[row] - alone.direction[0]).abs() <= FLOOR).all()
        torch.testing.assert_close(together.nearness[row], alone.nearness[0], rtol=1e-12, atol=1e-14)


@given(problems(counts=(1.0, 2.5)))
def test_mass_bounds_the_direction_and_nearness_is_by_its_definition(problem: Problem) -> None:
    """‖D‖ ≤ 2·mass, and m is Σ_j c_j K_ij² over all others."""
    field = entropy_field(unit(problem.latents), problem.population, problem.kernel)
    assert (field.direction.norm(dim=-1) <= 2 * field.mass * (1 + 1e-12)).all()  # equal at an opposite entry
    n = len(problem.latents)
    gram = problem.density(problem.latents) * (n + problem.counts.sum())
    counts = torch.cat([torch.ones(n, dtype=torch.float64), problem.counts])
    kernel = gram / (counts[:, None] * counts[None]).sqrt()
    near = (kernel.square() * counts)[:n]
    torch.testing.assert_close(field.nearness, near.sum(1) - near.diagonal(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 2, 7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [GaussianPower(0.5, 1.0), CosinePower(1.0)])
def test_where_all_coincides_there_is_no_direction(
    kernel: KernelPower, dtype: torch.dtype, copies: int
) -> None:
    """Moving points and entries at one place: D is rounding of the mass, and everything is finite."""
    feature = unit(torch.randn(1, 9, generator=torch.Generator().manual_seed(1))).to(dtype)
    field = entropy_field(
        feature.expand(3, -1), Population(feature.expand(copies, -1), torch.ones(copies)), kernel
    )
    assert field.direction.dtype == field.mass.dtype == dtype
    assert (field.direction.norm(dim=-1) <= 16 * torch.finfo(dtype).eps * field.mass).all()
    torch.testing.assert_close(field.nearness, torch.full((3,), 2.0 + copies, dtype=dtype))


def test_toward_a_duplicate_the_push_fades() -> None:
    """Near a duplicate D shrinks like h log h, and is continuous: the floor takes over below √τ."""
    entry = unit(torch.randn(1, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    aside = unit(
        tangent(torch.randn(1, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64), entry)
    )
    sizes = []
    for distance in 10.0 ** torch.arange(-1, -11, -0.5, dtype=torch.float64):
        feature = unit(entry + distance * aside)
        field = entropy_field(
            feature, Population(entry, torch.ones(1, dtype=torch.float64)), GaussianPower(0.8, 1.0)
        )
        sizes.append(float(field.direction.norm()))
        kernel = math.exp(-(float(distance) ** 2) / (2 * 0.64))
        if distance > 1e-6:  # two points: w = artanh(k)·k
            assert sizes[-1] == pytest.approx(math.atanh(kernel) * kernel * float(distance), rel=0.02)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("kernel", [GaussianPower(0.25, 1.0), CosinePower(1.0)])
def test_of_far_entries_it_is_the_closed_form(kernel: KernelPower) -> None:
    """Entries that are far from one another push as Cond-IRKE's at p = 2, up to a part along f for the cosine kernel."""
    generator = torch.Generator().manual_seed(4)
    rows = unit(torch.eye(7, dtype=torch.float64) + 1e-4 * torch.randn(7, 7, generator=generator).double())
    if isinstance(kernel, GaussianPower):
        rows = unit(torch.randn(7, 7, generator=generator, dtype=torch.float64))
    prompts = unit(torch.randn(7, 3, generator=generator, dtype=torch.float64))
    prompt_kernel = GaussianPower(1.0, 1.0)
    population = Population(
        rows[1:], torch.ones(6, dtype=torch.float64), prompt_kernel.gram(prompts, prompts)
    )
    actual = entropy_field(rows[:1], population, kernel)
    squared = GaussianPower(1.0, 2.0)
    weights = entry_weights(Neighbours.of(rows[None, 1:], prompts[None, 1:]), prompts[:1], squared)
    of_squares = CosinePower(2.0) if isinstance(kernel, CosinePower) else GaussianPower(kernel.bandwidth, 2.0)
    expected = kernel_field(rows[:1], rows[1:], weights, of_squares)
    direction = expected.direction
    if isinstance(kernel, CosinePower):
        direction = tangent(direction, rows[:1])
    assert (actual.direction - direction).norm() <= 0.02 * direction.norm()
    torch.testing.assert_close(actual.nearness, expected.nearness, rtol=1e-9, atol=0)


@given(problems(counts=(1.0, 2.5)))
def test_both_sides_of_the_cosine_kernel_agree(problem: Problem) -> None:
    """By the d×d matrix of features or the N×N Gram matrix (asked for by a K_Y of ones): one direction."""
    features, n = unit(problem.latents), len(problem.latents) + len(problem.entries)
    blind = Population(problem.entries, problem.counts)
    seen = blind._replace(prompt_gram=torch.ones(n, n, dtype=torch.float64))
    either = [entropy_field(features, side, CosinePower(1.0)).direction for side in (blind, seen)]
    assert ((either[0] - either[1]).abs() <= FLOOR).all()


@pytest.mark.parametrize("kernel", [GaussianPower(0.5, 1.0), CosinePower(1.0)])
def test_alone_and_at_zero(kernel: KernelPower) -> None:
    """A single point without entries has D = 0 and m = 0; at φ(z) = 0 the gradient is 0."""
    empty = Population(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    alone = entropy_field(torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), empty, kernel)
    assert torch.equal(alone.direction, torch.zeros(1, 4, dtype=torch.float64))
    assert float(alone.nearness) == 0
    entries = unit(torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    some = Population(entries, torch.ones(3, dtype=torch.float64))
    assert torch.equal(
        entropy_gradient(torch.zeros(2, 4, dtype=torch.float64), some, kernel), torch.zeros(2, 4).double()
    )


def test_what_is_not_finite_passes_on() -> None:
    """A NaN in a feature is a NaN in the direction, no error of the eigenvalue solver."""
    features = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    for kernel in (GaussianPower(0.5, 1.0), CosinePower(1.0)):
        field = entropy_field(features, Population(torch.eye(2), torch.ones(2)), kernel)
        assert field.direction[0].isnan().all()


@pytest.mark.parametrize("kernel", [GaussianPower(0.5, 1.0), CosinePower(1.0), CosinePower(2.0)])
@pytest.mark.parametrize("num_entries", [2, 8])  # with the cosine kernel by [n+k,n+k] and by [d,d]
def test_an_entry_that_is_not_finite_passes_on(kernel: KernelPower, num_entries: int) -> None:
    """A NaN in an entry makes every direction of its problem NaN, and none of another problem."""
    generator = torch.Generator().manual_seed(0)
    features, entries = (
        torch.randn(2, 2, 4, generator=generator),
        torch.randn(2, num_entries, 4, generator=generator),
    )
    entries[0, 1, 1] = float("nan")
    field = entropy_field(unit(features), Population(unit(entries), torch.ones(2, num_entries)), kernel)
    assert field.direction[0].isnan().all()
    assert field.direction[1].isfinite().all()
