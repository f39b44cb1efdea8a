"""The exact memory."""

from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparke_engine.core.kernels import unit
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.memory_bank import MemoryBank


@dataclass(frozen=True)
class Rule:
    """A NeighbourRule without the rest of a preset."""

    prompt_bandwidth: float = 0.5
    power: float = 2.0
    min_prompt_kernel: float = 0.05
    max_neighbours: int = 1000


def rows(seed: int, n: int, d: int) -> torch.Tensor:
    """Random rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.lists(st.integers(0, 40), max_size=5))
def test_neighbours_are_exactly_the_near(seed: int, sizes: list[int]) -> None:
    """Whatever the appends, an image's neighbours are all entries with k_Y^p ≥ ε, oldest first, unit, unpadded mask."""
    bank, rule = MemoryBank(), Rule()
    features, prompts = rows(seed, sum(sizes), 5), rows(seed + 1, sum(sizes), 3)
    for part, part_prompts in zip(features.split(sizes), prompts.split(sizes), strict=True):
        bank.append(part, part_prompts)
    assert len(bank) == sum(sizes)
    asked = unit(rows(seed + 2, 2, 3))
    found = bank.neighbours(asked, rule)
    for problem, prompt in enumerate(asked):
        near = [
            index
            for index, known in enumerate(unit(prompts))
            if torch.exp(-rule.power * (known - prompt).square().sum() / (2 * rule.prompt_bandwidth**2))
            >= 0.05
        ]
        mask = found.mask[problem]
        assert int(mask.sum()) == len(near)
        assert torch.allclose(found.features[problem][mask].flatten(), unit(features)[near].flatten())
        assert (found.weights[problem][mask] == 1).all()


def test_above_the_cap_a_sample_stands_for_all_until_the_bank_grows() -> None:
    """Of 1,000 equal prompts capped at 100: weights 10, the same 100 each time, of old and new; others after one more."""
    bank, rule = MemoryBank(), Rule(max_neighbours=100)
    bank.append(rows(0, 1000, 4), torch.ones(1000, 2))
    first, again = (bank.neighbours(unit(torch.ones(1, 2)), rule) for _ in range(2))
    assert torch.equal(first.features, again.features)
    assert first.features.shape[1] == 100
    assert (first.weights == 10).all()
    chosen = {tuple(row.tolist()) for row in first.features[0]}
    places = [place for place, row in enumerate(bank.features) if tuple(row.tolist()) in chosen]
    # 100 uniform places of 1,000: the mean is 500 ± 29 and a half holds 50 ± 5; five deviations.
    assert 355 < sum(places) / len(places) < 645
    assert 25 < sum(place < 500 for place in places) < 75
    bank.append(rows(1, 1, 4), torch.ones(1, 2))
    grown = bank.neighbours(unit(torch.ones(1, 2)), rule)
    assert (grown.weights == torch.tensor(10.01)).all()
    shared = chosen & {tuple(row.tolist()) for row in grown.features[0]}
    assert len(shared) < 25  # 10 ± 3


def test_entries_of_a_rare_prompt_stay_among_many_weakly_related() -> None:
    """Five of the asked prompt among 3,000 of k_Y^p = 0.06: in every version all five, at 1; what they feel sums as all do."""
    bank, rule = MemoryBank(), Rule(max_neighbours=400)
    asked, weak = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.648, 0.762]])
    features = rows(0, 3005, 4)
    prompts = weak.repeat(3005, 1)
    own = torch.arange(5) * 600
    prompts[own] = asked
    bank.append(features[:2995], prompts[:2995])
    influence = torch.exp(-4 * (unit(prompts) - asked).square().sum(1))
    for size in range(2996, 3006):
        bank.append(features[size - 1 : size], prompts[size - 1 : size])
        found = bank.neighbours(asked, rule)
        kept = (found.prompt_embeddings[0] == asked).all(1)
        torch.testing.assert_close(found.features[0][kept], unit(features[own]))
        assert (found.weights[0][kept] == 1).all()
        felt = torch.exp(-4 * (found.prompt_embeddings[0] - asked).square().sum(1)) * found.weights[0]
        torch.testing.assert_close(felt.sum(), influence[:size].sum())


def test_an_empty_bank_has_no_neighbours() -> None:
    """A new bank answers with k = 0."""
    found = MemoryBank().neighbours(torch.ones(2, 3), Rule())
    assert found.mask.shape == (2, 0)


def test_lengths_are_fixed_by_the_first_entry() -> None:
    """Vectors of another latent space are refused, and change nothing."""
    bank = MemoryBank()
    bank.append(torch.ones(1, 4), torch.ones(1, 2))
    with pytest.raises(ShapeMismatch, match=r"\(4, 2\), got \(5, 2\)"):
        bank.append(torch.ones(1, 5), torch.ones(1, 2))
    assert len(bank) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["features", "prompt embeddings"])
def test_what_is_not_finite_is_refused(value: float, place: str) -> None:
    """NaN and infinity name what holds them, and change nothing."""
    bank, good, bad = MemoryBank(), torch.ones(2, 4).double(), torch.ones(2, 4).double()
    bad[1, 2] = value
    with pytest.raises(InvalidArgument, match=f"{place} hold NaN or infinity"):
        bank.append(bad if place == "features" else good, bad if place == "prompt embeddings" else good)
    assert len(bank) == 0
    bank.append(good, torch.ones(2, 7))
    assert len(bank) == 2


@pytest.mark.parametrize("scale", [1e-40, 1e-24, 1e20, 1e30])
def test_rows_of_any_size_are_directions(scale: float) -> None:
    """Where squares of single precision under- or overflow, the direction is kept all the same."""
    bank = MemoryBank()
    bank.append(scale * torch.tensor([[3.0, 4.0]]), scale * torch.tensor([[4.0, 3.0]]))
    # at 1e-40 fp32 itself has no more than five digits
    torch.testing.assert_close(bank.features, torch.tensor([[0.6, 0.8]]), rtol=2e-5, atol=0)
    torch.testing.assert_close(bank.prompt_embeddings, torch.tensor([[0.8, 0.6]]), rtol=2e-5, atol=0)


def test_rows_are_rows() -> None:
    """A vector, and a prompt of another length than the bank's, are refused with what was expected."""
    bank = MemoryBank()
    jaxtyping.config.update("jaxtyping_disable", True)  # as outside of tests
    try:
        with pytest.raises(ShapeMismatch, match=r"features are rows \[n,d\]"):
            bank.append(torch.ones(4), torch.ones(2))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    bank.append(torch.ones(1, 4), torch.ones(1, 2))
    with pytest.raises(ShapeMismatch, match=r"prompt embeddings of length 2 need .* got 3"):
        bank.neighbours(torch.ones(1, 3), Rule())


def test_entries_are_copies() -> None:
    """Changing what was appended does not change the bank."""
    bank, features = MemoryBank(), torch.tensor([[1.0, 0.0]])
    bank.append(features, torch.ones(1, 2))
    features.zero_()
    assert torch.equal(bank.features, torch.tensor([[1.0, 0.0]]))


def test_a_bank_that_grew_in_inference_mode_grows_on() -> None:
    """What it holds is no inference tensor, so that a later append outside may write to it, and gradients may pass it."""
    bank = MemoryBank()
    with torch.inference_mode():
        bank.append(rows(0, 2, 4), rows(1, 2, 3))
    bank.append(rows(2, 1, 4), rows(3, 1, 3))
    with torch.inference_mode():
        bank.append(rows(4, 1, 4), rows(5, 1, 3))
    assert len(bank) == 4
    assert not bank.features.is_inference()
    expected = unit(torch.cat([rows(0, 2, 4), rows(2, 1, 4), rows(4, 1, 4)]).double()).float()
    assert torch.equal(bank.features, expected)


@pytest.mark.parametrize("num_prompts", [1, 2])
@pytest.mark.parametrize("rule", [Rule(), Rule(min_prompt_kernel=0.0), Rule(max_neighbours=3)])
def test_a_bank_is_on_the_cpu_in_fp32_whatever_torchs_defaults_are(num_prompts: int, rule: Rule) -> None:
    """With another default device and dtype it holds the same, and its neighbours are the same, to the bit."""

    def held() -> list[torch.Tensor]:
        bank = MemoryBank()
        found = [MemoryBank().neighbours(asked, rule), bank.neighbours(asked, rule)]
        bank.append(features, prompts)
        found.append(bank.neighbours(asked, rule))
        tensors = [bank.features, bank.prompt_embeddings]
        for neighbours in found:
            tensors += [neighbours.features, neighbours.prompt_embeddings]
            tensors += [neighbours.mask.float(), neighbours.weights]
        return tensors

    features, prompts = rows(0, 10, 4), rows(1, 1, 3).expand(10, -1)
    asked = prompts[:num_prompts]
    expected = held()
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        actual = held()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for one, other in zip(actual, expected, strict=True):
        assert (one.device.type, one.dtype) == ("cpu", torch.float32)
        assert torch.equal(one, other)


@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=1, max_size=150))
def test_what_is_forgotten_was_never_there(seed: int, forgotten: list[bool]) -> None:
    """The bank is the one that never had these entries, neighbours and all; what was read before stays as it was."""
    n, rule = len(forgotten), Rule(max_neighbours=20)
    features, prompts, mask = rows(seed, n, 4), rows(seed + 1, n, 3), torch.tensor(forgotten)
    bank, other = MemoryBank(), MemoryBank()
    bank.append(features, prompts)
    before, copy = bank.features, bank.features.clone()
    other.append(features[~mask], prompts[~mask])
    bank.forget(mask)
    assert len(bank) == n - sum(forgotten)
    for each in (bank, other):
        each.append(rows(seed + 2, 2, 4), rows(seed + 3, 2, 3))
    assert torch.equal(bank.features, other.features)
    asked = unit(rows(seed + 4, 1, 3))
    for one, another in zip(
        vars(bank.neighbours(asked, rule)).values(), vars(other.neighbours(asked, rule)).values(), strict=True
    ):
        assert torch.equal(one, another)
    assert torch.equal(before, copy)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "mask", [[True, False], torch.tensor([1, 0]), torch.tensor([True]), torch.tensor([[True, False]])]
)
def test_what_is_forgotten_is_said_entry_by_entry(mask: torch.Tensor) -> None:
    """Places, and masks of another length, are refused, and nothing is forgotten."""
    bank = MemoryBank()
    bank.append(torch.eye(2), torch.eye(2))
    with pytest.raises(InvalidArgument, match=r"mask \[2\] of torch.bool"):
        bank.forget(mask)
    assert len(bank) == 2
