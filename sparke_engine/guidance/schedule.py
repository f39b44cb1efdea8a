"""When to push: early, where the image's composition is decided and a change costs no detail.

Weights are flat, not normalised to sum 1. A push δ of x̂0 acts like a term of the score: a solver's step from noise
ratio ρ = σ/α to ρ′ moves z/α by (1 − ρ′/ρ)·δ, so the whole effect is an integral over the window that hardly depends
on how many steps divide it. With a normalised sum it would vanish as the steps grow.
"""


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
