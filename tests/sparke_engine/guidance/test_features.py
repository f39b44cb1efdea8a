"""Feature maps and their adjoints."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import adaptive_avg_pool2d

from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.features import FeatureMap

SIZES = st.integers(1, 13)
GRIDS = st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(1, 6)))


def latents_of(n: int, height: int, width: int) -> torch.Tensor:
    """Random latents of 3 channels."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64)


@given(SIZES, SIZES, st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_pooling_is_adaptive_average_pooling(height: int, width: int, grid: tuple[int, int]) -> None:
    """φ is torch's adaptive average pooling, whether the grid divides the size or not."""
    latents = latents_of(2, height, width)
    expected = adaptive_avg_pool2d(latents, grid).flatten(1)
    torch.testing.assert_close(FeatureMap(grid).apply(latents), expected, rtol=1e-12, atol=1e-12)


@given(SIZES, SIZES, GRIDS)
def test_adjoint(height: int, width: int, grid: tuple[int, int] | None) -> None:
    """⟨φ(z), v⟩ = ⟨z, φᵀ(v)⟩."""
    latents, feature_map = latents_of(2, height, width), FeatureMap(grid)
    mapped = feature_map.apply(latents)
    vectors = torch.randn(mapped.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = (mapped * vectors).sum()
    right = (latents * feature_map.adjoint(vectors, latents)).sum()
    assert abs(float(left - right)) < 1e-12 * max(1.0, float(mapped.norm() * vectors.norm()))


@given(SIZES, SIZES, GRIDS, st.floats(0.01, 100))
def test_features_are_unit_and_free_of_scale(
    height: int, width: int, grid: tuple[int, int] | None, scale: float
) -> None:
    """A feature has norm 1 and the promised length, and does not change with the latents' scale."""
    latents, feature_map = latents_of(2, height, width), FeatureMap(grid)
    feature = feature_map.feature(latents)
    assert feature.shape == (2, feature_map.dim(3, height, width))
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(feature_map.feature(scale * latents), feature)


def test_a_pooled_feature_has_one_length_for_all_sizes() -> None:
    """Images of different sizes share a memory."""
    assert {FeatureMap((4, 4)).feature(latents_of(1, h, w)).shape for h, w in [(8, 8), (9, 16), (3, 5)]} == {
        (1, 48)
    }


def test_zero_latents_have_a_zero_feature() -> None:
    """Where φ(z) is 0 the feature is 0, not NaN."""
    assert torch.equal(FeatureMap((2, 2)).feature(torch.zeros(1, 3, 8, 8)), torch.zeros(1, 12))


def test_an_empty_grid_is_refused() -> None:
    """A grid has cells."""
    with pytest.raises(InvalidArgument, match="at least one row"):
        FeatureMap((0, 4))


def test_a_map_first_used_in_inference_mode_has_gradients() -> None:
    """Its matrices are kept, and are no inference tensors."""
    feature_map = FeatureMap((3, 5))
    with torch.inference_mode():
        feature_map.apply(latents_of(1, 22, 23))  # a size that no other test uses
    latents = latents_of(1, 22, 23).requires_grad_()
    feature_map.apply(latents).sum().backward()
    assert latents.grad is not None
    assert bool(latents.grad.any())
