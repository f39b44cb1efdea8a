"""The draw that stands for many entries: its hash, its law of sums, and what it is over many versions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.core.sampling import drawn, uniforms

MASK = 2**64 - 1


def mixed(state: int) -> int:
    """SplitMix64's finaliser in whole numbers of any size."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def oracle(ids: list[int], salt: int) -> list[float]:
    """(h >> 11 + 1) / 2⁵³ of h = mix(mix(salt) + id · 0x9E3779B97F4A7C15)."""
    hashes = [mixed((mixed(salt) + number * 0x9E3779B97F4A7C15) & MASK) for number in ids]
    return [((value >> 11) + 1) / 2**53 for value in hashes]


def influences(seed: int, n: int, *, spread: float = 6.0) -> Tensor:
    """Numbers between e^−spread and 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(-spread * torch.rand(n, generator=generator, dtype=torch.float64))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8), st.integers(0, 2**63 - 1))
def test_the_hash_is_splitmix64(ids: list[int], salt: int) -> None:
    """In whole numbers of Python, whatever the sign, and in (0, 1]."""
    found = uniforms(torch.tensor(ids, dtype=torch.int64), salt).tolist()
    assert found == oracle(ids, salt)
    assert all(0 < value <= 1 for value in found)


def test_numbers_are_even_and_versions_independent() -> None:
    """10,000 of one salt: every tenth of (0, 1] holds 1,000 ± 30; with the next salt's their correlation is 0 ± 0.01."""
    one, other = (uniforms(torch.arange(10_000), salt) for salt in (7, 8))
    counts = torch.histc(one, 10, 0, 1)
    assert 850 < float(counts.min()) <= float(counts.max()) < 1150
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.05


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 60),
    most=st.integers(0, 60),
    spread=st.sampled_from([0.0, 1.0, 6.0, 40.0]),
)
def test_the_least_priorities_stay_and_the_sum_is_kept(seed: int, n: int, most: int, spread: float) -> None:
    """As sorting all u/b finds them; counts are max(1, τ/b) for one τ, and Σ count·b is Σ b over all."""
    influence, ids = influences(seed, n, spread=spread), list(range(seed, seed + n))
    kept, counts = drawn(influence, torch.tensor(ids), salt=seed, most=most)
    numbers = oracle(ids, seed)
    order = sorted(range(n), key=lambda place: (numbers[place] / float(influence[place]), place))
    assert kept.tolist() == sorted(order[:most])
    assert len(counts) == min(n, most)
    assert (counts >= 1).all()
    if n <= most:
        assert (counts == 1).all()
    elif most > 0:
        felt = counts * influence[kept]
        assert float(felt.sum()) == pytest.approx(float(influence.sum()), rel=1e-12)  # rounding of float64
        stands = felt[counts > 1]
        torch.testing.assert_close(stands, stands[:1].expand_as(stands), rtol=1e-12, atol=0)
        assert (influence[kept][counts == 1] >= stands.max() * (1 - 1e-12)).all() if len(stands) else True


@pytest.mark.parametrize("value", [1.0, 0.3, 1e-9])
def test_entries_of_equal_influence_count_n_over_k(value: float) -> None:
    """Exactly so in fp32, whatever the influence is."""
    kept, counts = drawn(torch.full((1003,), value), torch.arange(1003), salt=3, most=64)
    assert len(kept) == 64
    assert (counts.float() == torch.tensor(1003 / 64)).all()


def test_over_versions_every_sum_is_kept_in_expectation() -> None:
    """Σ count·b·f over 4,000 salts has the mean Σ b·f of all, for an f that is no function of b, to four standard errors.

    And Σ count·b² has it to a part in a hundred, where the fixed total makes the mean err most; k = 32 of 300.
    """
    influence, ids = influences(1, 300), torch.arange(300)
    values = (torch.randperm(300, generator=torch.Generator().manual_seed(2)) < 90).double()
    sums, squares = [], []
    for salt in range(4000):
        kept, counts = drawn(influence, ids, salt=salt, most=32)
        sums.append((counts * (influence * values)[kept]).sum())
        squares.append((counts * influence[kept].square()).sum())
    found = torch.stack(sums)
    error = float(found.std()) / 4000**0.5
    assert float(found.mean()) == pytest.approx(float((influence * values).sum()), abs=4 * error)
    assert float(torch.stack(squares).mean()) == pytest.approx(float(influence.square().sum()), rel=0.01)


def test_every_entry_has_its_turn() -> None:
    """Of 200 equal entries each is in a draw of 20 as often as the others: in 100 ± 9.5 of 1,000 versions."""
    turns = torch.zeros(200)
    for salt in range(1000):
        turns[drawn(torch.ones(200), torch.arange(200), salt=salt, most=20)[0]] += 1
    assert 55 < float(turns.min()) <= float(turns.max()) < 145


def test_a_draw_is_that_of_its_version() -> None:
    """The same for the same salt; two draws of 50 out of 1,000 share 2.5 ± 1.5."""
    influence, ids = torch.ones(1000), torch.arange(1000)
    first, again, other = (set(drawn(influence, ids, salt=s, most=50)[0].tolist()) for s in (5, 5, 6))
    assert first == again
    assert len(first & other) < 10


def test_equal_priorities_go_by_their_places() -> None:
    """Entries of one id and influence are one number: the earlier are kept."""
    kept, counts = drawn(torch.ones(9), torch.zeros(9, dtype=torch.int64), salt=1, most=4)
    assert kept.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [2.25] * 4


def test_what_cannot_be_felt_is_kept_last() -> None:
    """Influence 0 takes the room that is left, at 1."""
    kept, counts = drawn(torch.tensor([0.0, 0, 0, 0.5, 0]), torch.arange(5), salt=1, most=3)
    assert kept.tolist() == [0, 1, 3]
    assert counts.tolist() == [1, 1, 1]


def test_what_is_left_out_may_be_less_than_rounding() -> None:
    """Where those kept have all of the total, to rounding, each counts once."""
    kept, counts = drawn(torch.tensor([1.0, 0.1, 1e-20, 1e-30]).double(), torch.arange(4), salt=1, most=3)
    assert kept.tolist() == [0, 1, 2]
    assert counts.tolist() == [1, 1, 1]
