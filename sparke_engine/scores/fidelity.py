"""Are generated images among the real ones, and do they reach all? Precision, recall, density, coverage.

A set's support is estimated by balls: one around each of its rows, out to its k-th nearest neighbour in the set.
Own formulas: the one library, `prdc`, had its last release in 2020 and holds n×n matrices.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import squared_distance
from sparke_engine.core.rows import BLOCK_ROWS, num_rows, row_blocks, same_length
from sparke_engine.errors import InvalidArgument

# A squared distance from a matrix product is off by some ulps of the rows' squared norms, by more the longer
# they are. Distances that are equal but for that are equal, so that rounding decides on no edge or duplicate.
LEAST_TIE_ULPS = 64


class Prdc(NamedTuple):
    """Precision, recall, density and coverage of one set against another."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    num_neighbours: int = 5,
    block_rows: int = BLOCK_ROWS,
) -> Prdc:
    """All four at one k = `num_neighbours`, for half of what they cost one by one; see each."""
    _check_pair(features, reference)
    inside = _inside(features, reference, num_neighbours, block_rows)
    mirrored = _inside(reference, features, num_neighbours, block_rows)
    return Prdc(inside.precision, mirrored.precision, inside.density, inside.coverage)


def precision(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    num_neighbours: int = 3,
    block_rows: int = BLOCK_ROWS,
) -> float:
    """The share of features within the reference's support: mean_i 1[∃j ‖x_i − r_j‖ ≤ ρ_j], in [0, 1].

    ρ_j is the distance from r_j to its k-th nearest other row of the reference. Float64; O((n+m)·m·d) time,
    O(block_rows·m) memory. Degenerate cases: k is at most m − 1; one outlier in the reference has a ball that
    holds nearly everything (use `density`). Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.
    """
    _check_pair(features, reference)
    return _inside(features, reference, num_neighbours, block_rows).precision


def recall(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    num_neighbours: int = 3,
    block_rows: int = BLOCK_ROWS,
) -> float:
    """The share of the reference within the features' support: `precision` the other way round, in [0, 1].

    O((n+m)·n·d). Degenerate cases: k is at most n − 1; scattered outliers among the features raise it (use
    `coverage`). Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.
    """
    _check_pair(features, reference)
    return _inside(reference, features, num_neighbours, block_rows).precision


def density(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    num_neighbours: int = 5,
    block_rows: int = BLOCK_ROWS,
) -> float:
    """How many balls of the reference hold a feature, over k: mean_i Σ_j 1[‖x_i − r_j‖ < ρ_j] / k, up to m/k.

    1 in expectation where both sets come from one distribution, above 1 where features gather in its dense
    parts. Balls as in `precision`, but open, as in the authors' code: a set without duplicates has density 1
    in itself. O((n+m)·m·d). Degenerate case: a ball of radius 0, around a row with k duplicates, holds its
    own centre. Source: Naeem et al. 2020, arXiv 2002.09797.
    """
    _check_pair(features, reference)
    return _inside(features, reference, num_neighbours, block_rows).density


def coverage(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    num_neighbours: int = 5,
    block_rows: int = BLOCK_ROWS,
) -> float:
    """The share of the reference that has a feature near: mean_j 1[∃i ‖x_i − r_j‖ < ρ_j], in [0, 1].

    Balls are those of `density`. For two sets of one distribution it is about 1 − 2^−k at n = m.
    O((n+m)·m·d). Source: Naeem et al. 2020, arXiv 2002.09797.
    """
    _check_pair(features, reference)
    return _inside(features, reference, num_neighbours, block_rows).coverage


def _check_pair(features: Tensor, reference: Tensor) -> None:
    num_rows(features, "features")
    num_rows(reference, "reference features")
    same_length(features, reference, ("features", "reference features"))


class _Inside(NamedTuple):
    precision: float
    density: float
    coverage: float


def _inside(points: Tensor, centres: Tensor, num_neighbours: int, block_rows: int) -> _Inside:
    """Where points lie among the balls around centres."""
    n, m = points.shape[0], centres.shape[0]
    if not 1 <= num_neighbours < m:
        raise InvalidArgument(
            f"a row of {m} has at most {m - 1} neighbours and at least 1 is needed, got {num_neighbours}"
        )
    origin = centres.double().mean(0)
    centres = centres.double() - origin
    points = points.double().to(centres.device) - origin  # norms as small as they can be round least
    radii = _squared_radii(centres, num_neighbours, block_rows)
    within, held = 0, 0
    covered = torch.zeros(m, dtype=torch.bool, device=centres.device)
    for block in row_blocks(points, block_rows):
        distance = squared_distance(block, centres)
        ties = _rounding(block, centres) + _ulps(centres) * radii
        within += int((distance <= radii + ties).any(1).sum())
        open_balls = (distance < radii - ties) | (distance <= ties)
        held += int(open_balls.sum())
        covered |= open_balls.any(0)
    return _Inside(within / n, held / (n * num_neighbours), float(covered.double().mean()))


def _squared_radii(centres: Float[Tensor, "m d"], k: int, block_rows: int) -> Float[Tensor, " m"]:
    """ρ_j². A row is among its own neighbours, at distance 0, so the k-th other one is the (k+1)-th."""
    return torch.cat(
        [
            squared_distance(block, centres).kthvalue(k + 1, dim=1).values
            for block in row_blocks(centres, block_rows)
        ]
    )


def _rounding(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """How far a squared distance may be off."""
    return _ulps(a) * (a.square().sum(1)[:, None] + b.square().sum(1)[None])


def _ulps(rows: Tensor) -> float:
    return max(LEAST_TIE_ULPS, rows.shape[1]) * torch.finfo(rows.dtype).eps
