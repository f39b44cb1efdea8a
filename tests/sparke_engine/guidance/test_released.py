"""Mode `released` against a float64 autograd of its definition, and its degenerate cases."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.released import Past, ReleasedScore, released_push

CHANNELS, SIDE, PROMPT_DIM = 4, 4, 6
D = CHANNELS * SIDE * SIDE
ETA = 0.03


def past_of(seed: int, entries: int, around: Tensor | None = None) -> Past:
    """Random entries of any norm, half of them near `around`, with prompts near one another."""
    generator = torch.Generator().manual_seed(seed)
    features = 3 * torch.randn(entries, D, generator=generator, dtype=torch.float64)
    if around is not None:
        features[::2] = features[::2] + 4 * around.flatten()
    prompts = torch.randn(1, PROMPT_DIM, generator=generator, dtype=torch.float64)
    return Past(
        features,
        prompts + 0.3 * torch.randn(entries, PROMPT_DIM, generator=generator, dtype=torch.float64),
    )


def kernel_of(score: ReleasedScore, rows: Tensor, bandwidth: float) -> Tensor:
    """The kernel's Gram matrix straight from the definition."""
    rows = rows / rows.norm(dim=1, keepdim=True)
    if score.kernel == "cosine":
        return rows @ rows.T
    return torch.exp(-(rows[:, None] - rows[None]).square().sum(-1) / (2 * bandwidth**2))


def score_of(score: ReleasedScore, latent: Tensor, prompt: Tensor, past: Past) -> Tensor:
    """R from the definition, with the current latent as the last row."""
    joint = kernel_of(score, torch.cat([past.features, latent[None]]), score.latent_bandwidth)
    if score.conditional:
        prompts = torch.cat([past.prompt_embeddings, prompt[None]])
        joint = joint * kernel_of(score, prompts, score.prompt_bandwidth)
    n = len(joint)
    if n <= (10 if score.conditional else 20):
        return n**2 / joint.square().sum()
    return 1 / (joint[-1].square() if score.kernel == "cosine" else joint[-1]).mean()


@pytest.mark.parametrize("beta", [-0.5, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("entries", [2, 8, 9, 10, 18, 19, 20, 60])
@pytest.mark.parametrize(("conditional", "kernel"), list(product([True, False], ["gaussian", "cosine"])))
def test_a_step_is_the_gradient_of_the_definition(
    entries: int, kernel: str, beta: float, *, conditional: bool
) -> None:
    """In fp32, z − δ is z + η‖z‖∇r/‖∇r‖ by autograd in fp64, to 1e-5 of the step; in fp64 to 1e-11."""
    score = ReleasedScore(conditional, "cosine" if kernel == "cosine" else "gaussian")
    latents = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()
    memory, reference = past_of(2, entries, latents[0]), past_of(3, 5 + entries // 2, latents[1])
    prompt = memory.prompt_embeddings[0] + 0.1
    expected = []
    for latent in latents.flatten(1):
        moving = latent.clone().requires_grad_()
        r = score_of(score, moving, prompt, memory) - beta * score_of(score, moving, prompt, reference)
        (gradient,) = torch.autograd.grad(r, moving)
        expected.append(-ETA * latent.norm() * gradient / gradient.norm())
    steps = torch.stack(expected)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        references = [(reference, beta)]
        push = released_push(latents.to(dtype), prompt, memory, score, eta=ETA, references=references)
        error = (push.delta.flatten(1).double() - steps).norm(dim=1) / steps.norm(dim=1)
        assert error.max() < tolerance
        torch.testing.assert_close(push.relative, torch.full((2,), ETA, dtype=dtype))


@pytest.mark.parametrize("distance", [0.03, 0.01, 1e-3])
@pytest.mark.parametrize("entries", [5, 40])
@pytest.mark.parametrize(("conditional", "kernel"), list(product([True, False], ["gaussian", "cosine"])))
def test_entries_that_nearly_coincide(
    entries: int, distance: float, kernel: str, *, conditional: bool
) -> None:
    """In fp32, entries in one direction at that distance from latents in fp32 give autograd's step in fp64, to 1e-5."""
    score = ReleasedScore(conditional, "cosine" if kernel == "cosine" else "gaussian")
    generator = torch.Generator().manual_seed(20)
    latents = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator)
    aside = unit(torch.randn(1, D, generator=generator) + 0.5 * torch.randn(entries, D, generator=generator))
    memory = Past(unit(latents.flatten(1)) + distance * aside, past_of(2, entries).prompt_embeddings.float())
    prompt = memory.prompt_embeddings[0]
    moving = latents.flatten().double().requires_grad_()
    exact = Past(*(part.double() for part in memory))
    (gradient,) = torch.autograd.grad(score_of(score, moving, prompt.double(), exact), moving)
    assert gradient.norm() > 2e-8
    step = -ETA * moving.detach().norm() * gradient / gradient.norm()
    push = released_push(latents, prompt, memory, score, eta=ETA)
    assert push.delta.dtype == torch.float32
    assert (push.delta.flatten().double() - step).norm() < 1e-5 * step.norm()


@pytest.mark.parametrize("entries", [1, 9, 30, 1000])
@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
def test_entries_that_coincide_move_nothing(entries: int, kernel: str) -> None:
    """In fp32 too: the memory's feature is that of the latents but for its rounding."""
    score = ReleasedScore(kernel="cosine" if kernel == "cosine" else "gaussian")
    for seed in range(5):
        latents = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        memory = Past(unit(latents.flatten(1)).expand(entries, -1), torch.ones(entries, PROMPT_DIM))
        push = released_push(latents, torch.ones(PROMPT_DIM), memory, score, eta=ETA)
        assert torch.equal(push.delta, torch.zeros_like(latents))
        assert float(push.relative) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [3, 40])
def test_the_least_gradient(entries: int, dtype: torch.dtype) -> None:
    """Latents so long that the raw gradient is 0.5e-8 stay; at 2e-8 they move by the whole of η."""
    latents = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(9)).double()
    memory, score = past_of(8, entries, latents[0]), ReleasedScore()
    prompt = memory.prompt_embeddings[0]
    length = float(score.ascent(latents.flatten(1), prompt, memory).gradient.norm())
    for wanted, relative in ((0.5e-8, 0.0), (2e-8, ETA)):
        longer = (latents * (length / wanted)).to(dtype)  # the gradient falls with the latents' length
        push = released_push(longer, prompt, memory, score, eta=ETA)
        assert float(push.relative) == pytest.approx(relative)
        assert float(push.delta.norm() / longer.norm()) == pytest.approx(relative)


def test_references_add() -> None:
    """With two references r = r_memory − β₁ r₁ − β₂ r₂: the direction is that of the sum of their gradients."""
    latents = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(12)).double()
    memory, one, other = (
        past_of(seed, entries, latents[0]) for seed, entries in ((13, 4), (14, 7), (15, 30))
    )
    prompt, score = memory.prompt_embeddings[0], ReleasedScore()
    moving = latents.flatten().clone().requires_grad_()
    terms = ((memory, 1.0), (one, 0.5), (other, -0.8))
    r = sum(weight * score_of(score, moving, prompt, past) for past, weight in terms)
    (gradient,) = torch.autograd.grad(r, moving)
    push = released_push(latents, prompt, memory, score, eta=ETA, references=[(one, -0.5), (other, 0.8)])
    expected = -ETA * latents.norm() * gradient / gradient.norm()
    torch.testing.assert_close(push.delta.flatten(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("entries", [3, 40])
@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
def test_the_score_is_the_definition(entries: int, kernel: str) -> None:
    """The score itself, on both sides of the threshold."""
    score = ReleasedScore(kernel="cosine" if kernel == "cosine" else "gaussian")
    latent, memory = (
        torch.randn(1, D, generator=torch.Generator().manual_seed(5)).double(),
        past_of(6, entries),
    )
    prompt = memory.prompt_embeddings[1]
    torch.testing.assert_close(
        score.ascent(latent, prompt, memory).score[0], score_of(score, latent[0], prompt, memory)
    )


def test_latents_are_moved_each_by_itself() -> None:
    """A batch of two equals two batches of one."""
    latents = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(7)).double()
    memory, score = past_of(8, 30), ReleasedScore()
    prompt = memory.prompt_embeddings[0]
    both = released_push(latents, prompt, memory, score, eta=ETA).delta
    for i in range(2):
        alone = released_push(latents[i : i + 1], prompt, memory, score, eta=ETA).delta
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-12, atol=0)


def test_a_vanishing_gradient_moves_nothing() -> None:
    """Without entries, at zero, at an entry itself, and where every kernel underflows: zeros, all finite."""
    latents = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(9)).double()
    prompt = torch.ones(PROMPT_DIM, dtype=torch.float64)
    empty = Past(torch.zeros(0, 0), torch.zeros(0, PROMPT_DIM))
    same = Past(latents.flatten(1), prompt[None])
    far = Past(-latents.flatten(1), prompt[None])
    narrow = ReleasedScore(latent_bandwidth=0.05)
    for past, at, score in (
        (empty, latents, ReleasedScore()),
        (past_of(1, 4), torch.zeros_like(latents), ReleasedScore()),
        (same, latents, ReleasedScore()),
        (far, latents, narrow),
    ):
        push = released_push(at, prompt, past, score, eta=ETA)
        assert torch.equal(push.delta, torch.zeros_like(latents))
        assert float(push.relative) == 0


def test_beta_leads_toward_a_reference_or_away() -> None:
    """Positive β brings the latents nearer to the reference, negative β farther."""
    latents = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(10)).double()
    prompt, empty = torch.ones(PROMPT_DIM).double(), Past(torch.zeros(0, D), torch.zeros(0, PROMPT_DIM))
    other = past_of(11, 1).features
    reference = Past(other, prompt[None])

    def nearness(beta: float) -> float:
        references = [(reference, beta)]
        push = released_push(latents, prompt, empty, ReleasedScore(), eta=0.1, references=references)
        return float(unit((latents - push.delta).flatten(1))[0] @ unit(other)[0])

    assert nearness(-1.0) < nearness(0.0) < nearness(1.0)


def test_what_cannot_be_is_refused() -> None:
    """Unknown kernels, bandwidths of zero, and features of another length name what is wrong."""
    misspelt = ReleasedScore()
    vars(misspelt)["kernel"] = "laplace"  # what a type checker would refuse
    with pytest.raises(InvalidArgument, match="kernel"):
        misspelt.__post_init__()
    with pytest.raises(InvalidArgument, match="bandwidth"):
        ReleasedScore(latent_bandwidth=0)
    latents, prompt = torch.ones(1, CHANNELS, SIDE, SIDE), torch.ones(PROMPT_DIM)
    for wrong in (
        Past(torch.ones(2, 5), torch.ones(2, PROMPT_DIM)),
        Past(torch.ones(2, D), torch.ones(1, PROMPT_DIM)),
    ):
        with pytest.raises(ShapeMismatch):
            released_push(latents, prompt, wrong, ReleasedScore(), eta=ETA)
