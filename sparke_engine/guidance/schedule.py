"""When to push: early, where the image's composition is decided and a change costs no detail.

Weights are flat, not normalised to sum 1. A push δ of x̂0 acts like a term of the score: a solver's step from noise
ratio ρ = σ/α to ρ′ moves z/α by (1 − ρ′/ρ)·δ, so the whole effect is an integral over the window that hardly depends
on how many steps divide it. With a normalised sum it would vanish as the steps grow.
"""

import math


def window_weight(step: int, num_steps: int, window: float) -> float:
    """The share of step `step` (from 0) that lies in the first `window` of the trajectory, in [0, 1].

    clip(window·num_steps − step, 0, 1): 1 inside, a fraction for the step that the edge cuts, 0 after; the sum over
    all steps is window·num_steps, so the effect is continuous in the window.
    """
    return min(max(window * num_steps - step, 0.0), 1.0)


def is_interval_step(step: int, interval: int) -> bool:
    """True after every `interval`-th step: the 10th, 20th ... for 10, steps counted from 0."""
    return (step + 1) % interval == 0


def is_interval_start(step: int, interval: int) -> bool:
    """True in the first of every `interval` steps: the 1st, 11th, 21st ... for 10, steps counted from 0."""
    return step % interval == 0


def open_share(ratio: float, first_ratio: float, cell: float) -> float:
    """How much of an image is still open where a run starts at the noise ratio ρ = σ/α, of what is open at the first's.

    o(ρ)/o(ρ₁) with o(ρ) = ρ/√(m + ρ²) for a cell of m latents: what is unknown, its standard deviation a posteriori, of a
    cell's mean of unit variance that is seen in noise of ρ/√m. So a push is as large beside what the noise leaves open in
    image-to-image of low strength, or in a refiner, as it is in text-to-image. 1 where the run starts at the first
    timestep, and at most 1; 0 without noise. Source: linear Gaussian estimation.
    """
    return min(_open(ratio, cell) / _open(first_ratio, cell), 1.0) if first_ratio > 0 else 0.0


def _open(ratio: float, cell: float) -> float:
    return 1 / math.hypot(1.0, math.sqrt(cell) / ratio) if ratio > 0 else 0.0
