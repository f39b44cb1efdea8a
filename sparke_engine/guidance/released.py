"""Mode `released`: the step that the authors' published code computes, for like-for-like comparison.

The noisy latents move up the gradient of a score r of memory and current latent before the scheduler's step, which still
takes the noise that was predicted at the old place. With n entries, the current latent among them (so each sum has one
term 1 for it), q = 1 for Gaussian and 2 for cosine kernels:

    n ≤ 10 (conditional), 20 (not)    r = n² / Σ_ij (k_Z k_Y)(i,j)²
    above                             r = n / Σ_j (k_Z k_Y)(z,j)^q

The unconditional score leaves k_Y out. With a reference set: r = r_memory − β·r_reference, each by its own size; of more
than one, their sum. It acts before the first of every `interval` steps, as published (step % interval == 0 from 0).
Faults of their bookkeeping are not part of the score and not reproduced: a memory that never grows at 50 steps, two
entries an image on some schedulers, a batch merged into one feature, sums that underflow in half precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import tangent
from sparke_engine.core.kernels import GaussianPower, unit
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.presets import DiversityPreset, KernelName
from sparke_engine.guidance.push import Entries, Push

LEAST_GRADIENT = 1e-8


class Past(NamedTuple):
    """A memory or a reference: features and prompt embeddings of finished images; rows of any length, fp32 or fp64."""

    features: Float[Tensor, "k d"]
    prompt_embeddings: Float[Tensor, "k p"]

    @classmethod
    def of(cls, entries: Entries, asked: Float[Tensor, " p"]) -> "Past":
        """The past that entries are. Those that are blind to prompts count as of the prompt that is asked for.

        Each counts once, whatever its weight, as published. Raises InvalidArgument for a negative one.
        """
        if bool((entries.weights < 0).any()):
            raise InvalidArgument(
                "mode released knows no entries of negative weight: give what attracts as a reference"
            )
        if entries.prompts is None:
            return cls(entries.features, asked.expand(entries.num_entries, -1))
        return cls(entries.features, entries.prompts.of_entries)


class Ascent(NamedTuple):
    """A score r of each latent and ∇r with respect to the latent."""

    score: Float[Tensor, " n"]
    gradient: Float[Tensor, "n d"]

    def less(self, share: float, other: "Ascent") -> "Ascent":
        """R − share · r′, and its gradient."""
        return Ascent(self.score - share * other.score, self.gradient - share * other.gradient)


@dataclass(frozen=True)
class ReleasedScore:
    """Which score: conditional on prompts or not, on Gaussian kernels of two bandwidths or on cosine kernels."""

    conditional: bool = True
    kernel: KernelName = "gaussian"
    latent_bandwidth: float = 0.8
    prompt_bandwidth: float = 0.3

    def __post_init__(self) -> None:
        if self.kernel not in {"gaussian", "cosine"}:
            raise InvalidArgument(f"a kernel is gaussian or cosine, got {self.kernel!r}")
        if not (self.latent_bandwidth > 0 and self.prompt_bandwidth > 0):
            raise InvalidArgument(
                f"bandwidths are positive, got {self.latent_bandwidth} and {self.prompt_bandwidth}"
            )

    @classmethod
    def of(cls, preset: DiversityPreset) -> "ReleasedScore":
        """The score that a preset names."""
        return cls(preset.conditional, preset.kernel, preset.latent_bandwidth, preset.prompt_bandwidth)

    @property
    def most_pairs(self) -> int:
        """The largest n, the current latent included, at which the score is over all pairs."""
        return 10 if self.conditional else 20

    def ascent(
        self, latents: Float[Tensor, "n d"], prompt_embedding: Float[Tensor, " p"], past: Past
    ) -> Ascent:
        """R and ∇r for each of n latents by itself, in their dtype. O(n·k·d), and O(k²·d) up to `most_pairs`.

        Degenerate cases: without entries r = 1 and ∇r = 0; ∇r = 0 at a latent of zero, which has no direction.
        """
        n = past.features.shape[0] + 1
        over_pairs = n <= self.most_pairs
        power = 2.0 if over_pairs or self.kernel == "cosine" else 1.0
        features, entries = unit(latents), unit(past.features)
        weights = self._prompt_values(prompt_embedding[None], past.prompt_embeddings)[0] ** power
        values, slopes = self._latent_values(features, entries, power)
        total = (weights * values).sum(-1)
        # ∇_f Σ_j a_j k^q = Σ_j a_j s_j f_j, up to a part along f, which the projection removes
        of_feature = tangent((weights * slopes) @ entries, features)
        norm = torch.linalg.vector_norm(latents, dim=-1, keepdim=True)
        of_total = torch.where(norm > 0, of_feature / torch.where(norm > 0, norm, 1.0), 0.0)
        if over_pairs:
            whole, numerator, of_whole = 1 + 2 * total + self._among(entries, past), float(n**2), 2.0
        else:
            whole, numerator, of_whole = 1 + total, float(n), 1.0
        return Ascent(numerator / whole, -(numerator * of_whole / whole.square())[:, None] * of_total)

    def _among(self, entries: Float[Tensor, "k d"], past: Past) -> Float[Tensor, ""]:
        """Σ_ij (k_Z k_Y)² over the entries."""
        of_prompts = self._prompt_values(past.prompt_embeddings, past.prompt_embeddings)
        return (self._latent_values(entries, entries, 2.0)[0] * of_prompts.square()).sum()

    def _latent_values(
        self, features: Float[Tensor, "n d"], entries: Float[Tensor, "k d"], power: float
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """k_Z^q, and its derivative by the scalar product f·f_j."""
        if self.kernel == "gaussian":
            values = GaussianPower(self.latent_bandwidth, power).gram(features, entries)
            return values, values * (power / self.latent_bandwidth**2)
        products = features @ entries.mT
        return products**power, power * products ** (power - 1)

    def _prompt_values(self, a: Float[Tensor, "n p"], b: Float[Tensor, "m p"]) -> Float[Tensor, "n m"]:
        """k_Y, or 1 where the score is unconditional."""
        if not self.conditional:
            return a.new_ones(a.shape[0], b.shape[0])
        if self.kernel == "gaussian":
            return GaussianPower(self.prompt_bandwidth, 1.0).gram(unit(a), unit(b))
        return unit(a) @ unit(b).mT


def released_push(
    noisy: Float[Tensor, "n c h w"],
    prompt_embedding: Float[Tensor, " p"],
    memory: Past,
    score: ReleasedScore,
    *,
    eta: float,
    references: Sequence[tuple[Past, float]] = (),
) -> Push:
    """δ = −η · ‖z‖ · ∇r/‖∇r‖; z becomes z − δ before the step. A raw gradient of norm ≤ 1e-8 moves nothing.

    r = r_memory − Σ β · r_reference over `references`, each with its β: a positive β leads the latents toward it, a
    negative one away. In fp32 the sums over entries near the latents would be rounding, so all is computed in float64, of
    which a copy of the features is made twice; given in the dtype of `noisy`. Degenerate cases: those of
    `ReleasedScore.ascent`; a memory without entries leaves what references say.
    """
    flat, asked = noisy.flatten(1).double(), prompt_embedding.to(noisy.device).double()
    ascent = score.ascent(flat, asked, _like(memory, flat))
    for reference, beta in references:
        ascent = ascent.less(beta, score.ascent(flat, asked, _like(reference, flat)))
    norm = torch.linalg.vector_norm(ascent.gradient, dim=1)
    moves = norm > LEAST_GRADIENT
    relative = eta * moves.to(flat.dtype)
    size = relative * torch.linalg.vector_norm(flat, dim=1) / torch.where(moves, norm, 1.0)
    delta = (-size[:, None] * ascent.gradient).reshape(noisy.shape)
    return Push(delta.to(noisy.dtype), relative.to(noisy.dtype))


def _like(past: Past, latents: Tensor) -> Past:
    if past.features.shape[0] != past.prompt_embeddings.shape[0]:
        raise ShapeMismatch(
            f"{past.features.shape[0]} features need as many prompt embeddings, got {past.prompt_embeddings.shape[0]}"
        )
    if past.features.shape[0] > 0 and past.features.shape[1] != latents.shape[1]:
        raise ShapeMismatch(
            f"latents of {latents.shape[1]} numbers need features as long, got {past.features.shape[1]}"
        )
    features = past.features.to(latents).reshape(past.features.shape[0], latents.shape[1])
    return Past(features, past.prompt_embeddings.to(latents))
