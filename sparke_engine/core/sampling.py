"""Few entries that stand for many: a weighted sample, drawn anew for every version of a memory, and always the same for one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the step between states, and the factors of its finaliser.
_STEP = -0x61C8864680B583EB
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def drawn(
    influence: Float[Tensor, " n"], ids: Int[Tensor, " n"], *, salt: int, most: int
) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """The places, ascending, of k = min(n, `most`) of n entries, and what each counts, in float64.

    Priority sampling: entry j of the influence b_j ≥ 0 has the priority u_j / b_j, u_j in (0, 1] a hash of its id and of
    the salt, and those of least priority are kept; equal ones by their places. A kept entry counts max(1, τ/b_j), with
    the τ at which Σ over the kept of count·b is Σ b over all: of entries of equal influence each counts n/k, and an
    entry of great influence stays, at 1. (Duffield, Lund and Thorup, J. ACM 54, 2007, who take for 1/τ the least
    priority left out. Then every sum of b_j f_j is kept in expectation; here to within a part in k of its own deviation,
    which the fixed total makes far smaller.)

    A pure function of its arguments. O(n + k log k). Degenerate cases: n ≤ `most` keeps all, at 1, and `most` = 0 none;
    entries of influence 0 are kept last, at 1, for they cannot be felt at any count.
    """
    influence = influence.double()
    if len(influence) <= most:
        return torch.arange(len(influence), device=influence.device), torch.ones_like(influence)
    if most == 0:
        return ids[:0], influence[:0]
    priorities = uniforms(ids, salt) / influence
    last = priorities.kthvalue(most).values
    before = (priorities < last).nonzero()[:, 0]
    ties = (priorities == last).nonzero()[:, 0]
    kept = torch.cat([before, ties[: most - len(before)]]).sort().values
    of_kept = influence[kept]
    counts = (_threshold(of_kept, influence.sum()) / of_kept).clamp_min(1.0)
    return kept, torch.where(of_kept > 0, counts, 1.0)


def uniforms(ids: Int[Tensor, " n"], salt: int) -> Float[Tensor, " n"]:
    """For each id a number in (0, 1] of 53 bits: number `id` of SplitMix64's sequence from the seed mix(salt)."""
    seed = _mixed(torch.tensor(salt, dtype=torch.int64, device=ids.device))
    bits = _shifted(_mixed(seed + ids * _STEP), 11)
    return (bits + 1).double() * 2.0**-53


def _threshold(influence: Float[Tensor, " k"], total: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """τ with Σ_j max(b_j, τ) = `total` ≥ Σ_j b_j: the r greatest b stay, the others share what these leave of the total.

    r is the least for which no other b is above its share.
    """
    falling = influence.sort(descending=True).values
    left = total - (falling.cumsum(0) - falling)
    shares = left / torch.arange(len(falling), 0, -1, dtype=falling.dtype, device=falling.device)
    fits = falling <= shares
    fits[-1] = True  # it does but for rounding
    return shares[fits.int().argmax()]


def _mixed(state: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """SplitMix64's finaliser: a bijection of 64-bit integers without visible order."""
    value = (state ^ _shifted(state, 30)) * _FACTORS[0]
    value = (value ^ _shifted(value, 27)) * _FACTORS[1]
    return value ^ _shifted(value, 31)


def _shifted(value: Int[Tensor, "*n"], bits: int) -> Int[Tensor, "*n"]:
    """Logical shift to the right."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
