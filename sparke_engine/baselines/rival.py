"""What rivals share: a Method of their own, whose pushes of x̂0 the groups' strength scales."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparke_engine.core.kernels import squared_distance
from sparke_engine.diffusion.guide import BatchGuide, GuidedGroup
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.features import FeatureMap
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import ROUNDING_ULPS, Entries, Push


class Seen(NamedTuple):
    """What a rival sees of one group in one step: nothing of another group, and no strength.

    `clean` is x̂0 of the group's n images in fp32. `entries`: the memory's neighbours on the device of `clean`, oldest
    first, each with a_j = weight_j · k_Y(y, y_j)^p; none where nothing is near.
    """

    group: GuidedGroup
    step: Step
    clean: Float[Tensor, "n c h w"]
    entries: Entries

    @property
    def known(self) -> Entries:
        """The entries in the dtype of `clean`."""
        features, weights = (
            self.entries.features.to(self.clean.dtype),
            self.entries.weights.to(self.clean.dtype),
        )
        return Entries(features, weights)

    @property
    def feature_map(self) -> FeatureMap:
        """φ, under which the memory holds its entries."""
        return self.group.preset.feature_map


PushRule = Callable[[Seen], Tensor | None]


@dataclass(kw_only=True)
class RivalGuide(BatchGuide):
    """Subtracts strength · rule(what is seen) from x̂0, group by group; a group of strength 0 is not touched."""

    rule: PushRule

    def displace(self, step: Step) -> list[Move]:
        """Nothing, but a new run is noticed."""
        self._start(step)
        return []

    def before(self, step: Step) -> list[Move]:
        """What the rule says. The push that is reported is the mean over all steps of ‖δ‖/‖x̂0‖."""
        moves = []
        for number, group in enumerate(self.groups):
            delta = None if group.strength == 0 else self.rule(self._seen(number, step))
            if delta is not None:
                delta = group.strength * delta
                size = _norms(step.clean[group.rows])
                relative = torch.where(size > 0, _norms(delta) / torch.where(size > 0, size, 1.0), 0.0)
                moves.append(self._spend(step.clean, group, Push(delta, relative), share=step.share))
        return moves

    def _seen(self, number: int, step: Step) -> Seen:
        group, clean = self.groups[number], step.clean[self.groups[number].rows]
        entries = self._sources(number, clean.device)
        if entries is None:
            dim = group.preset.feature_map.dim(*clean.shape[1:])
            entries = Entries(clean.new_zeros(0, dim), clean.new_zeros(0))
        return Seen(group, step, clean, entries)


@dataclass(frozen=True)
class Rival:
    """A Method that, unless it says otherwise, changes nothing. Parameters are fields of the dataclass that extends it."""

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """δ at strength 1; x̂0 becomes x̂0 − δ. None: no push in this step."""
        del seen
        return None

    def preset(self, base: DiversityPreset) -> DiversityPreset:
        """The preset that an engine has to run under, given the model's own: the same features, and entries that count a_j."""
        return base if base.objective == "rke" else replace(base, objective="rke")

    def guide(self, groups: Sequence[GuidedGroup]) -> BatchGuide:
        """What guides one run of these groups."""
        return RivalGuide(list(groups), rule=self.push)

    def around(self, pipe: Any, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Nothing."""
        del pipe, seeds
        return nullcontext()


def lift(
    vectors: Float[Tensor, "n d"], feature_map: FeatureMap, latents: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """The change δ of `latents` along φᵀ(v) with ⟨φ(δ), v⟩ = ‖v‖²: φᵀ(v) · ‖v‖²/‖φᵀ(v)‖².

    Where the grid divides the size, and for the identity, φ(δ) = v: the smallest change that moves φ by v. Degenerate
    case: 0 for v = 0.
    """
    pulled = feature_map.adjoint(vectors, latents)
    norm = pulled.flatten(1).square().sum(1)
    factor = torch.where(norm > 0, vectors.square().sum(1) / torch.where(norm > 0, norm, 1.0), 0.0)
    lifted: Tensor = factor[:, None, None, None] * pulled
    return lifted


def pairs(
    points: Float[Tensor, "*b n d"], others: Float[Tensor, "*b m d"]
) -> tuple[Float[Tensor, "*b n m"], Bool[Tensor, "*b n m"]]:
    """‖u_i − u_j‖² in float64, and whether it is more than rounding.

    In float64, since by one product in fp32 the distance of near points is rounding from 2e-3 of their norm. Closer than
    `ROUNDING_ULPS` of the points' own dtype, points coincide. O(n·m·d).
    """
    exact = points.double()
    ulps, own = torch.finfo(torch.float64).eps * ROUNDING_ULPS, torch.finfo(points.dtype).eps * ROUNDING_ULPS
    squared = squared_distance(exact, others.double())
    return squared, squared > (own**2 + ulps) * exact.square().sum(-1, keepdim=True)


def _norms(latents: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(latents.flatten(1), dim=1)
    return norms
