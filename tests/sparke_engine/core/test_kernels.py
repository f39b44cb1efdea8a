"""Powers of kernels against autograd, and where they degenerate."""

import pytest
import torch

from sparke_engine.core.kernels import (
    CosinePower,
    GaussianKernel,
    GaussianPower,
    KernelPower,
    exact_unit,
    unit,
)
from sparke_engine.errors import InvalidArgument

POWERS = [GaussianPower(0.4, 1.0), GaussianPower(0.9, 2.5), *(CosinePower(float(p)) for p in (1, 2, 3, 4))]


def products_of(kernel: KernelPower, products: torch.Tensor) -> torch.Tensor:
    """k^p as a function of the scalar product of unit rows."""
    if isinstance(kernel, GaussianPower):
        return torch.exp(-kernel.power * (1 - products) / kernel.bandwidth**2)
    return products ** int(kernel.power)


@pytest.mark.parametrize("kernel", POWERS)
def test_the_pull_is_the_derivative_by_the_scalar_product(kernel: KernelPower) -> None:
    """Steepness · pull is autograd's derivative of k^p, also at products of −1, 0 and 1, to rounding."""
    generator = torch.Generator().manual_seed(0)
    a = unit(torch.randn(4, 5, generator=generator, dtype=torch.float64))
    b = torch.cat([a[:2], -a[:1], unit(torch.randn(3, 5, generator=generator, dtype=torch.float64))])
    b = torch.cat([b, (b[3] - (b[3] @ a[0]) * a[0])[None]])
    b[-1] /= b[-1].norm()
    products = (a @ b.T).requires_grad_()
    expected = products_of(kernel, products)
    (slopes,) = torch.autograd.grad(expected.sum(), products)
    values, pulls = kernel.values_and_pulls(a, b)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(kernel.gram(a, b), values, rtol=0, atol=0)
    torch.testing.assert_close(kernel.steepness * pulls, slopes, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(pulls[0, 0], torch.ones((), dtype=torch.float64))


def test_the_sign_of_a_cosine_power() -> None:
    """At an even power opposite rows count as equal, at an odd one as the farthest; a zero row is near nothing."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert CosinePower(2.0).gram(rows[:1], rows).tolist() == [[1, 1, 0, 0]]
    assert CosinePower(3.0).gram(rows[:1], rows).tolist() == [[1, -1, 0, 0]]
    assert CosinePower(2.0).values_and_pulls(rows[:1], rows)[1].tolist() == [[1, -1, 0, 0]]
    assert CosinePower(1.0).values_and_pulls(rows[:1], rows)[1].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("power", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_the_power_of_a_cosine_is_a_positive_whole_number(power: float) -> None:
    """Another power of a negative number is none."""
    with pytest.raises(InvalidArgument, match="whole number"):
        CosinePower(power)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, 1e-200, 1e-9, float("nan"), float("inf")])
def test_a_bandwidth_is_positive_and_finite(bandwidth: float) -> None:
    """Nor is it so narrow that the rounding of a unit row is far away."""
    for make in (GaussianKernel, lambda width: GaussianPower(width, 2.0)):
        with pytest.raises(InvalidArgument, match="bandwidth"):
            make(bandwidth)


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_a_gaussian_power_is_positive_and_finite(power: float) -> None:
    """Another is refused."""
    with pytest.raises(InvalidArgument, match="power"):
        GaussianPower(0.5, power)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-24, 1.0, 1e20, 1e300])
def test_exact_unit_keeps_the_direction(scale: float) -> None:
    """Where squares under- or overflow too; zeros stay zeros."""
    rows = exact_unit(scale * torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=torch.float64))
    # 1e-320 itself has three digits
    expected = torch.tensor([[0.6, -0.8], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(rows, expected, rtol=1e-3 if scale < 1e-300 else 1e-15, atol=0)
    single = exact_unit(torch.tensor([[3e-24, -4e-24]]))
    torch.testing.assert_close(single, expected[:1], rtol=1e-6, atol=0)
