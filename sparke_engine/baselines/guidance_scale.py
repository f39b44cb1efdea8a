"""Rivals that only change classifier-free guidance: less of it throughout, or none outside an interval of noise."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival, Seen
from sparke_engine.errors import InvalidArgument


@dataclass(frozen=True)
class Unguided(Rival):
    """The stock pipeline: no diversity guidance. "Lower CFG" is this method with a smaller `guidance_scale` in the plan."""


@dataclass(frozen=True)
class LimitedInterval(Rival):
    """Classifier-free guidance only while the noise ratio σ̃ = σ/α is in (low, high]; else the prompt alone.

    x̂0 = x̂0ᶜ + (s − 1)·(x̂0ᶜ − x̂0ᵘ) inside and x̂0ᶜ outside, so δ = x̂0 − x̂0ᶜ there. A negative prompt goes with it. Where
    the halves of guidance cannot be told nothing changes, but then there is none. Cost: one subtraction.
    Source: Kynkäänniemi et al., arXiv 2404.07724, eq. 5; (0.28, 5.42] is their choice for Stable Diffusion XL.
    """

    low: float = 0.28
    high: float = 5.42

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise InvalidArgument(
                f"an interval of noise ratios has 0 ≤ low ≤ high, got {self.low} and {self.high}"
            )

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """X̂0 − x̂0ᶜ outside the interval, None inside."""
        if not seen.step.extrapolates or self.low < seen.step.noise.ratio <= self.high:
            return None
        return seen.clean - seen.step.prompted[seen.group.rows]
