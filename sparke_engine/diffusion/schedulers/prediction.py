"""x̂0 is affine in what a model puts out, so a push of x̂0 is a shift of the output.

Write x̂0 = a·z + b·o for the sample z (scaled as the scheduler keeps it) and the model's output o. Then o′ = o − δ/b
makes x̂0′ = x̂0 − δ, and whatever else the scheduler derives from o (a noise, a score, its history) agrees with it.
With α, σ of the variance-preserving form and σ̃ = σ/α, or t of flow matching:

    z is kept                       epsilon          v_prediction            sample   flow
    variance-preserving             1/α, −σ/α        α, −σ                   0, 1     1, −t
    variance-exploding              1, −σ̃            1/(1+σ̃²), −σ̃/√(1+σ̃²)    0, 1
    flow matching                                                                     1, −t

Where α = 0 under epsilon, or b = 0 at the end of the noise, x̂0 does not depend on the output: no push.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Bound = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CleanPrediction:
    """x̂0 = `of_sample` · z + `of_output` · o, where `bound` says so cut to a range: bound(z, x̂0).

    Both are plain numbers, or of no axes on the latents' device, where a recording reads them anew in every step.
    A push acts before the cut, x̂0′ = bound(z, x̂0 − δ), so that it fades to nothing with δ; what it moves out of the
    range is lost.
    """

    of_sample: float | Tensor
    of_output: float | Tensor
    bound: Bound | None = None

    @property
    def can_push(self) -> bool:
        """Whether x̂0 depends on the output, finitely."""
        return bool(self.of_output != 0) and math.isfinite(self.of_sample) and math.isfinite(self.of_output)

    def clean(self, sample: Float[Tensor, "*s"], output: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """x̂0, as the scheduler goes on from it."""
        clean = self.of_sample * sample + self.of_output * output
        return clean if self.bound is None else self.bound(sample, clean)

    def shifted(self, output: Float[Tensor, "*s"], delta: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The output whose x̂0 is the old one less δ; where δ is 0, the old one to the bit."""
        return torch.where(delta == 0, output, output - delta / self.of_output)
