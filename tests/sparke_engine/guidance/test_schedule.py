"""The window and the interval."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparke_engine.guidance.schedule import is_interval_start, is_interval_step, open_share, window_weight


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


@given(st.floats(1e-3, 100), st.floats(1, 500), st.floats(0.01, 1))
def test_what_is_open_is_the_deviation_that_observation_leaves(
    first: float, cell: float, part: float
) -> None:
    """Of a unit variance seen in noise of variance ρ²/m, precisions add: 1 and m/ρ² in float64."""
    ratio = part * first

    def deviation(ratio: float) -> float:
        precisions = torch.tensor([1.0, cell / ratio**2], dtype=torch.float64)
        return float(precisions.sum().rsqrt())

    assert open_share(ratio, first, cell) == pytest.approx(deviation(ratio) / deviation(first), rel=1e-9)


def test_what_is_open_at_the_ends() -> None:
    """All of it to the bit from the first timestep, also of pure noise; never more; nothing without noise."""
    for first in (0.1, 14.6, math.inf):
        assert open_share(first, first, 16.0) == open_share(2 * first, first, 16.0) == 1.0
        assert open_share(0.0, first, 16.0) == 0.0
    assert open_share(1.0, math.inf, 16.0) == pytest.approx(1 / math.sqrt(17))
    assert open_share(0.0, 0.0, 16.0) == 0.0
