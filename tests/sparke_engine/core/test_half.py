"""Products with rows in half precision, against float64."""

import pytest
import torch
from torch import Tensor

from sparke_engine.core.half import HalfRows, _halves

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def rows_of(seed: int, n: int, d: int) -> Tensor:
    """Random rows whose sizes differ a thousandfold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.logspace(-3, 0, d)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (3, 2500, 40), (4, 7, 4096)])
def test_products_are_those_of_single_precision(device: str, n: int, k: int, d: int) -> None:
    """Both products equal float64's of the rounded rows to some roundings of fp32 of the sum of absolute terms."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rows, weights = rows_of(0, n, d), rows_of(1, n, k)
    kept = HalfRows.of(rows_of(2, k, d).half().to(device))
    exact = kept.values.double().cpu()
    for actual, left, right in (
        (kept.products(rows.to(device)), rows, exact.mT),
        (kept.weighted_sums(weights.to(device)), weights, exact),
    ):
        assert actual.dtype == torch.float32
        size = left.double().abs().amax(-1, keepdim=True) * right.abs().sum(0)
        error = (actual.double().cpu() - left.double() @ right).abs()
        assert (error <= 1e-6 * size).all()  # 2⁻²² of the largest number for each term, and fp32's own sums
    torch.testing.assert_close(kept.squared_norms.cpu().double(), exact.square().sum(-1), rtol=1e-6, atol=0)


def test_double_precision_stays_double() -> None:
    """On a CPU, products of float64 rows are float64's, to its rounding."""
    rows, weights, kept = (
        rows_of(0, 3, 40).double(),
        rows_of(1, 3, 2500).double(),
        HalfRows.of(rows_of(2, 2500, 40)),
    )
    exact = kept.values.double()
    torch.testing.assert_close(kept.products(rows), rows @ exact.mT, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(kept.weighted_sums(weights), weights @ exact, rtol=1e-12, atol=1e-15)


def test_two_halves_make_a_single() -> None:
    """Hi + lo is the row to 2⁻²² of its largest number; zeros stay zeros."""
    rows = torch.cat([rows_of(3, 4, 50), torch.zeros(1, 50)])
    parts, scale = _halves(rows)
    rebuilt = scale * (parts[:5].float() + parts[5:].float())
    assert ((rebuilt - rows).abs() <= 2.0**-22 * rows.abs().amax(-1, keepdim=True)).all()
    assert torch.equal(rebuilt[4], torch.zeros(50))


def test_no_rows_give_no_sum() -> None:
    """Without rows there are no products, and every sum is zero."""
    kept = HalfRows.of(torch.zeros(0, 3, dtype=torch.float16))
    assert kept.products(torch.ones(2, 3)).shape == (2, 0)
    assert torch.equal(kept.weighted_sums(torch.zeros(2, 0)), torch.zeros(2, 3))
