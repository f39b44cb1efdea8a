"""What the modes share: what pushes, and how a field becomes a push of a given size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import Field, entry_weights
from sparke_engine.core.half import HalfRows
from sparke_engine.core.kernels import unit
from sparke_engine.core.rows import check_finite
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.types import Neighbours

# A mean chord of at most so many ulps, or an ulp for so many entries, is rounding: what pushes coincides with what is
# pushed. Where a product adds k terms one after another, sums of entries that coincide err by up to k/13 ulps; products
# that add in blocks err far less.
ROUNDING_ULPS = 32
ENTRIES_AN_ULP = 8


class Push(NamedTuple):
    """`delta` is to be subtracted from the latents; `relative` is the size of the push proper in their norms.

    Mode `denoised` may also give up classifier-free guidance. That moves x̂0 towards what the model itself predicts under
    the prompt and is not counted; the push proper is then measured by what it leaves of x̂0.
    """

    delta: Float[Tensor, "n c h w"]
    relative: Float[Tensor, " n"]


class Prompts(NamedTuple):
    """The unit embeddings of the prompt that is asked for and of the entries' prompts."""

    asked: Float[Tensor, " p"]
    of_entries: Float[Tensor, "k p"]


@dataclass(frozen=True)
class Entries:
    """The present neighbours of one group of images: features, and what each counts; a negative one attracts.

    Features are in fp32, or on a GPU in half precision where the memory keeps them so: then with their squared norms, and
    they are read as they are, at half the cost, to the accuracy of fp32.
    For the objective `rke` it counts a_j = weight_j · k_Y(y, y_j)^p, for `vendi` weight_j: that sees prompts among entries
    too, for which it needs `prompts`; without it the set is blind to prompts.
    """

    features: Float[Tensor, "k d"]
    weights: Float[Tensor, " k"]
    prompts: Prompts | None = None
    squared_norms: Float[Tensor, " k"] | None = None

    @classmethod
    def of(
        cls, neighbours: Neighbours, prompt_embedding: Float[Tensor, " p"], preset: DiversityPreset
    ) -> "Entries":
        """The entries that `neighbours` (b = 1) are for a prompt. Once a run: prompts do not move.

        Where the preset is not conditional, a_j = weight_j whatever the prompts are. Prompt embeddings count by their
        directions. Raises InvalidArgument for NaN or infinity in what counts, and ShapeMismatch for b > 1.
        """
        if neighbours.num_problems != 1:
            raise ShapeMismatch(f"the neighbours of one group have b = 1, got b = {neighbours.num_problems}")
        present = slice(None) if bool(neighbours.mask.all()) else neighbours.mask[0]  # no copy where all are
        features, weights = neighbours.features[0][present], neighbours.weights[0][present].float()
        check_finite(features, "neighbours' features")
        check_finite(weights, "neighbours' weights")
        if not preset.conditional:
            return cls(features, weights)
        check_finite(prompt_embedding, "the numbers of the prompt embedding")
        asked, known = unit(prompt_embedding.float()), unit(neighbours.prompt_embeddings.float())
        prompts = Prompts(asked, known[0][present])
        check_finite(prompts.of_entries, "neighbours' prompt embeddings")
        if preset.objective == "rke":
            directed = replace(neighbours, prompt_embeddings=known)
            weights = entry_weights(directed, asked[None], preset.prompt_kernel)[0][present].float()
        return cls(features, weights, prompts)

    @property
    def num_entries(self) -> int:
        """How many entries k there are."""
        return self.features.shape[0]

    def to(self, device: torch.device) -> "Entries":
        """The same entries on a device; half precision stays as it is on a GPU and becomes fp32 elsewhere."""
        prompts = None if self.prompts is None else Prompts(*(part.to(device) for part in self.prompts))
        features, weights = self.features.to(device), self.weights.to(device)
        if features.dtype != torch.float16:
            return Entries(features, weights, prompts)
        if not features.is_cuda:
            return Entries(features.float(), weights, prompts)
        return Entries(features, weights, prompts, HalfRows.of(features).squared_norms)

    @property
    def half_rows(self) -> HalfRows | None:
        """The features with their norms where they are in half precision; None where they are not."""
        if self.features.dtype != torch.float16:
            return None
        if self.squared_norms is None:
            return HalfRows.of(self.features)
        return HalfRows(self.features, self.squared_norms)

    def with_references(self, references: Sequence["Reference"]) -> "Entries":
        """These entries and, at their signed weights, those of the references, taken as of the prompt that is asked for."""
        if not references:
            return self
        features = torch.cat([self.features, *(reference.entries.features for reference in references)])
        weights = torch.cat([self.weights, *(ref.weight * ref.entries.weights for ref in references)])
        if self.prompts is None:
            return Entries(features, weights)
        asked, known = self.prompts
        as_asked = asked.expand(len(features) - len(known), -1)
        return Entries(features, weights, Prompts(asked, torch.cat([known, as_asked])))


class Reference(NamedTuple):
    """Entries of another set: a positive `weight` leads away from them (novelty), a negative one toward them (context)."""

    entries: Entries
    weight: float

    def to(self, device: torch.device) -> "Reference":
        """The same reference on a device, in fp32."""
        moved = self.entries.to(device)
        single = replace(moved, features=moved.features.float(), squared_norms=None)
        return self._replace(entries=single)

    def check(self, feature_dim: int) -> None:
        """Raise InvalidArgument or ShapeMismatch for a reference that latents of that feature's length cannot have."""
        if not -1 <= self.weight <= 1:
            raise InvalidArgument(f"a reference's weight is in [-1, 1], got {self.weight}")
        expected, actual = (self.entries.num_entries, feature_dim), tuple(self.entries.features.shape)
        if self.entries.num_entries > 0 and actual != expected:
            raise ShapeMismatch(f"a reference's features are {expected}, got {actual}")
        check_finite(self.entries.features, "a reference's features")
        weights = self.entries.weights
        if not bool((torch.isfinite(weights) & (weights > 0)).all()):
            raise InvalidArgument("a reference's entries' weights are positive and finite")


def rounding_of(num_entries: int, dtype: torch.dtype) -> float:
    """The length below which a mean of chords f_j − f to so many unit entries is rounding."""
    return max(ROUNDING_ULPS, num_entries / ENTRIES_AN_ULP) * torch.finfo(dtype).eps


def unit_direction(
    field: Field, preset: DiversityPreset, latents: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """φᵀ(D)/‖φᵀ(D)‖, and 0 where D is zero but for rounding.

    D = 0 where nothing is near, and where every entry that is near coincides with the latents: equal latents have no
    direction in which to part. Within a group that takes equal seeds; with different seeds the noises differ.
    """
    mass = torch.where(field.mass > 0, field.mass, 1.0)[:, None]
    mean = field.direction / mass  # of length ≤ 2 for unit entries, so that small weights do not underflow
    is_known = torch.linalg.vector_norm(mean, dim=-1) > rounding_of(field.num_entries, mean.dtype)
    pulled = preset.feature_map.adjoint(mean, latents).flatten(1)
    norm = torch.linalg.vector_norm(pulled, dim=-1)
    is_known = is_known & (norm > 0)
    direction = pulled / torch.where(is_known, norm, 1.0)[:, None]
    return torch.where(is_known[:, None], direction, 0.0).reshape(latents.shape)


def scaled(
    direction: Float[Tensor, "n c h w"],
    latents: Float[Tensor, "n c h w"],
    relative: Float[Tensor, " n"],
) -> Push:
    """The push of size relative·‖latents‖ along unit or zero directions; `relative` is 0 where a direction is."""
    moves = direction.flatten(1).any(-1)
    relative = torch.where(moves, relative, 0.0)
    size = relative * torch.linalg.vector_norm(latents.flatten(1), dim=-1)
    return Push(size[:, None, None, None] * direction, relative)
