"""Matrix products to the accuracy of their dtype, whatever torch is told to round."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from sparke_engine.core.half import HalfRows, products, weighted_sums
from sparke_engine.core.matmul import matmul
from sparke_engine.guidance.features import FeatureMap

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def rows_of(seed: int, *shape: int) -> Tensor:
    """Random rows."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def rounding(device: str) -> Iterator[None]:
    """Products of fp32 may round their factors, as after `torch.set_float32_matmul_precision("medium")`."""
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32" if device == "cuda" else "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_no_product(dtype: torch.dtype) -> None:
    """Under autocast a product, pooling and its adjoint have the dtype and the bits that they have without it."""
    rows, kept, latents = rows_of(0, 3, 40), rows_of(1, 9, 40), rows_of(2, 3, 4, 8, 8)
    rows, kept, latents = rows.to(dtype), kept.to(dtype), latents.to(dtype)
    half, pooled = HalfRows.of(kept), FeatureMap((2, 2))

    def found() -> list[Tensor]:
        features = pooled.feature(latents)
        return [
            matmul(rows, kept.mT),
            products(rows, kept),
            products(rows, half),
            weighted_sums(products(rows, kept), kept),
            weighted_sums(products(rows, kept), half),
            features,
            pooled.adjoint(features, latents),
        ]

    expected = found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = found()
        assert torch.is_autocast_enabled("cpu")
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_what_rounds_factors_is_not_asked(device: str) -> None:
    """Where torch may round fp32 factors a product is float64's, rounded once; elsewhere it is torch's own."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    a, b = rows_of(0, 64, 1024).to(device), rows_of(1, 1024, 300).to(device)
    exact = (a.double() @ b.double()).float()
    assert torch.equal(matmul(a, b), a @ b)
    with rounding(device):
        assert torch.equal(matmul(a, b), exact)
    assert not torch.equal(a @ b, exact)  # fp32's own sums round too


def test_the_old_name_of_the_setting_is_read_too() -> None:
    """`torch.set_float32_matmul_precision` is what most programs call."""
    a, b = rows_of(0, 4, 1024), rows_of(1, 1024, 30)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(matmul(a, b), (a.double() @ b.double()).float())
    finally:
        torch.set_float32_matmul_precision(before)
