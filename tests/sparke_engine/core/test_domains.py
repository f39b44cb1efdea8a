"""Numbers at the edges of their domains."""

import pytest

from sparke_engine.core.domains import check_counts, check_not_negative, check_positive
from sparke_engine.errors import InvalidArgument

NONE = (float("nan"), float("inf"), -float("inf"), -1e-300)


@pytest.mark.parametrize("value", [*NONE, 0.0])
def test_what_is_not_positive(value: float) -> None:
    """Zero, negative, infinite and no number are refused by name; the least positive number is one."""
    with pytest.raises(InvalidArgument, match="a scale: eta is positive and finite, got"):
        check_positive("a scale", eta=value)
    check_positive("a scale", eta=5e-324, kappa=1)


@pytest.mark.parametrize("value", NONE)
def test_what_is_negative(value: float) -> None:
    """Zero may be, and nothing below it or infinite."""
    with pytest.raises(InvalidArgument, match="a scale: eta is finite and not negative, got"):
        check_not_negative("a scale", eta=value)
    check_not_negative("a scale", eta=0.0)


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, True, float("nan")])
def test_what_is_no_count(value: float) -> None:
    """A count is an int from 1, no float and no bool."""
    with pytest.raises(InvalidArgument, match="a set: entries is a whole number from 1, got"):
        check_counts("a set", entries=value)
    check_counts("a set", entries=1)
