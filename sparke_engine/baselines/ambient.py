"""Contextualised Vendi guidance: the Vendi score of decoded images under an image encoder, back-propagated to x̂0."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival, Seen
from sparke_engine.baselines.vendi import newest
from sparke_engine.core.domains import check_counts, check_not_negative
from sparke_engine.core.entropy_gradients import Population, entropy_field
from sparke_engine.core.gradients import of_mapped
from sparke_engine.core.kernels import CosinePower, unit
from sparke_engine.diffusion.autoencoding import autoencoder_of, overflows
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.push import Entries, rounding_of, scaled
from sparke_engine.guidance.schedule import window_weight
from sparke_engine.memory_bank import MemoryBank

Decode = Callable[[Tensor], Tensor]
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AmbientVendi(Rival):
    """δ = −η·‖x̂0‖·ĝ in every `interval`-th step of the window: ĝ the unit gradient of a score by x̂0.

        log Vendi(past ∪ images) − w·log Vendi(exemplars ∪ images)

    over the embeddings e = `encode`(`decode`(x̂0)) of the request's images, cosine kernel. The past is `bank`, a MemoryBank of
    embeddings of finished images, which the caller fills; its entries count by their prompts' nearness, of more than
    `max_entries` the newest. Under a preset that is blind to prompts the whole bank counts; else, where nothing tells the
    group's prompt, only fellow images do.
    `exemplars` [m,e]: embeddings of real images, of weight w = `context_weight`.

    `decode` takes latents [n,c,h,w] in fp32 to pictures, `encode` pictures to embeddings [n,e], both differentiable and each
    image by itself: see `decoder_of`. One backward pass through both a step. Degenerate case: no push where all coincides.
    Source: Askari Hemmat et al., arXiv 2406.04551, with the step that Algorithm 1 of arXiv 2506.10173 makes of a gradient.
    """

    decode: Decode
    encode: Encode
    bank: MemoryBank
    exemplars: Float[Tensor, "m e"] | None = None
    context_weight: float = 1.0
    eta: float = 0.1
    window: float = 0.5
    interval: int = 1
    max_entries: int = 256

    def __post_init__(self) -> None:
        check_not_negative("ambient Vendi", eta=self.eta, context_weight=self.context_weight)
        check_counts("ambient Vendi", interval=self.interval, max_entries=self.max_entries)
        if not 0 < self.window <= 1:
            raise InvalidArgument(
                f"ambient Vendi: the window is a fraction of the steps in (0, 1], got {self.window}"
            )

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """−η·‖x̂0‖·ĝ."""
        step = seen.step
        eta = self.eta * window_weight(step.index, step.num_steps, self.window)
        if eta == 0 or step.index % self.interval != 0:
            return None
        with torch.enable_grad():
            moving = seen.clean.detach().requires_grad_()
            embeddings = self.encode(self.decode(moving))
            slope = self._slope(embeddings.detach(), seen)
            (gradient,) = torch.autograd.grad(embeddings, moving, slope)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)[:, None, None, None]
        direction = -gradient / torch.where(norm > 0, norm, 1.0)
        return scaled(direction, seen.clean, torch.full_like(norm[:, 0, 0, 0], eta)).delta

    def _slope(self, embeddings: Float[Tensor, "n e"], seen: Seen) -> Float[Tensor, "n e"]:
        """The gradient by the embeddings."""
        known = self._past(embeddings, seen)
        slope = _ascent(embeddings, Population(known.features, known.weights.clamp_min(0)))
        if self.exemplars is None or self.context_weight == 0:
            return slope
        exemplars = unit(self.exemplars.to(embeddings))
        real = Population(exemplars, exemplars.new_ones(len(exemplars)))
        return slope - self.context_weight * _ascent(embeddings, real)

    def _past(self, embeddings: Float[Tensor, "n e"], seen: Seen) -> Entries:
        asked, preset = seen.group.asked, seen.group.preset
        if len(self.bank) == 0 or (preset.conditional and asked is None):
            return Entries(embeddings[:0], embeddings.new_zeros(0))
        if asked is None or not preset.conditional:
            found = Entries(self.bank.features, torch.ones(len(self.bank)))
        else:
            found = Entries.of(self.bank.neighbours(asked[None], preset), asked.cpu(), preset)
        known = newest(found, self.max_entries)
        return Entries(known.features.to(embeddings), known.weights.to(embeddings))


def _ascent(embeddings: Float[Tensor, "n e"], population: Population) -> Float[Tensor, "n e"]:
    """∇ log Vendi of the embeddings and the population by each embedding, 0 where it is zero but for rounding."""
    field = entropy_field(unit(embeddings), population, CosinePower(1.0))
    rounding = rounding_of(field.num_entries, embeddings.dtype) * field.mass
    is_known = torch.linalg.vector_norm(field.direction, dim=1) > rounding
    direction = torch.where(is_known[:, None], field.direction, 0.0)
    return -2 / (len(embeddings) + population.counts.sum()) * of_mapped(direction, embeddings)


def decoder_of(pipe: Any) -> Decode:
    """From latents [n,c,h,w] to pictures [n,3,H,W] around [0,1], through the pipeline's autoencoder, in its dtype inside.

    Where it overflows in half precision, through a copy of it in fp32: gradients come back through what the pipeline itself has
    back in half by then. Raises UnsupportedPipeline where there is none.
    """
    vae, units = autoencoder_of(pipe)
    if overflows(vae):
        vae = copy.deepcopy(vae).float()

    def decode(latents: Tensor) -> Tensor:
        pictures: Tensor = vae.decode(units.to_autoencoder(latents).to(vae.dtype)).sample
        return (pictures.float() + 1) / 2

    return decode
