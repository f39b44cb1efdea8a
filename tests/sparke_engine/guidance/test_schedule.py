"""The window and the interval."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparke_engine.guidance.schedule import is_interval_start, is_interval_step, window_weight


@given(st.integers(1, 200), st.floats(0.001, 1))
def test_weights_fall_and_sum_to_the_window(num_steps: int, window: float) -> None:
    """Weights are in [0, 1], never rise, and sum to window · num_steps."""
    weights = [window_weight(step, num_steps, window) for step in range(num_steps)]
    assert all(0 <= later <= earlier <= 1 for earlier, later in pairwise(weights))
    assert sum(weights) == pytest.approx(window * num_steps)


def test_the_edge_is_cut_in_proportion() -> None:
    """A window of 2.5 steps has weights 1, 1, ½, 0."""
    assert [window_weight(step, 10, 0.25) for step in range(4)] == [1, 1, 0.5, 0]


def test_interval_steps() -> None:
    """Every tenth step of 25 is the 10th and the 20th; every first is all."""
    assert [step for step in range(25) if is_interval_step(step, 10)] == [9, 19]
    assert all(is_interval_step(step, 1) for step in range(5))


def test_interval_starts() -> None:
    """A step at the start of every ten of 25 is the 1st, the 11th and the 21st; every first is all."""
    assert [step for step in range(25) if is_interval_start(step, 10)] == [0, 10, 20]
    assert all(is_interval_start(step, 1) for step in range(5))
