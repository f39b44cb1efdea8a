"""Latent Vendi guidance: up the gradient of the Vendi score of memory and current images, in feature space."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival, Seen
from sparke_engine.core.domains import check_counts, check_not_negative
from sparke_engine.core.entropy_gradients import Population, entropy_field
from sparke_engine.core.kernels import CosinePower
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.push import Entries, scaled, unit_direction
from sparke_engine.guidance.schedule import window_weight


@dataclass(frozen=True)
class LatentVendi(Rival):
    """δ = −η·‖x̂0‖·ĝ in every `interval`-th step of the window: ĝ the unit gradient of the Vendi score by x̂0.

    The score is that of memory and the request's images together, cosine kernel on features of x̂0, each entry counted by
    its prompt's nearness, and not where that is negative; of more than `max_entries` entries the newest count. See
    `core/entropy_gradients.py`: O((n+k)·d·min(n+k, d)) a step. c-VSG computes it on decoded images with an image encoder;
    this is its latent form, with the step that Algorithm 1 of arXiv 2506.10173 makes of a gradient. Where everything
    coincides there is no push. Source: Askari Hemmat et al., arXiv 2406.04551.
    """

    eta: float = 0.1
    window: float = 0.5
    interval: int = 1
    max_entries: int = 256

    def __post_init__(self) -> None:
        check_not_negative("latent Vendi", eta=self.eta)
        check_counts("latent Vendi", interval=self.interval, max_entries=self.max_entries)
        if not 0 < self.window <= 1:
            raise InvalidArgument(
                f"latent Vendi: the window is a fraction of the steps in (0, 1], got {self.window}"
            )

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """−η·‖x̂0‖·ĝ."""
        step = seen.step
        eta = self.eta * window_weight(step.index, step.num_steps, self.window)
        if eta == 0 or step.index % self.interval != 0:
            return None
        known = newest(seen.known, self.max_entries)
        population = Population(known.features, known.weights.clamp_min(0))
        field = entropy_field(seen.feature_map.feature(seen.clean), population, CosinePower(1.0))
        direction = unit_direction(field, seen.group.preset, seen.clean)
        return scaled(direction, seen.clean, torch.full_like(field.mass, eta)).delta


def newest(entries: Entries, number: int) -> Entries:
    """The last `number` entries."""
    return Entries(entries.features[-number:], entries.weights[-number:])
