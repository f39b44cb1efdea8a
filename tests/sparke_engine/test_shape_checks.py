"""The engine's shapes are checked while these tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from sparke_engine.core.kernels import GaussianPower, squared_distance
from sparke_engine.types import Neighbours


def test_a_wrong_shape_is_caught() -> None:
    """Vectors of unequal lengths are refused by the annotation, before torch sees them."""
    with pytest.raises(TypeCheckError):
        squared_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_wrong_type_is_caught() -> None:
    """Whole numbers are refused where floats are declared, also in methods."""
    with pytest.raises(TypeCheckError):
        GaussianPower(1.0, 2.0).gram(
            torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
        )


def test_a_dataclass_is_checked() -> None:
    """Neighbours whose mask does not fit their features cannot be made."""
    with pytest.raises(TypeCheckError):
        Neighbours(
            torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2)
        )
