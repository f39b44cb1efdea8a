"""A preset from measurements: bandwidths from a model's own samples, η at strength 1 from what images still say.

`sparke_engine/diffusion/calibration.py` makes the measurements; here is what follows from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparke_engine.core.rows import same_number
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.bandwidths import PromptBandwidth, pair_distances, prompt_bandwidth_from


@dataclass(frozen=True)
class Trial:
    """What one η at strength 1 did to the sample; η = 0 is the sample without guidance.

    Attributes:
        eta: η.
        push: the mean push, in norms of the latents.
        vendi: the Vendi score of the features of one prompt's images, the mean over prompts.
        of_prompts: of each prompt's images the mean of `prompt_information`.
    """

    eta: float
    push: float
    vendi: float
    of_prompts: tuple[float, ...]

    @property
    def information(self) -> float:
        """The mean over prompts, in nats."""
        return sum(self.of_prompts) / len(self.of_prompts)


class Kept(NamedTuple):
    """A share of the information of unguided images, and its standard error over prompts."""

    share: float
    error: float


@dataclass(frozen=True)
class FullStrength:
    """Where strength 1 lies. `is_bracketed`: between two trials, one that keeps enough and one that does not."""

    eta: float
    kept: float
    is_bracketed: bool


def prompt_information(
    errors: Float[Tensor, "n k"], errors_without: Float[Tensor, "m l"]
) -> Float[Tensor, " n"]:
    """I = mean_k log(e∅_k / e_k): what knowing an image's prompt is worth to the denoiser that is to restore the image.

    e_k is the squared error of x̂0 under the prompt at the k-th level of noise, e∅_k the same without a prompt. Positive
    where the image shows what its prompt states, 0 where it shows nothing of it, negative where it shows something else.
    A ratio at each level, so that no level outweighs the others. In float64; O(n·k). Degenerate case: where one of the two
    errors is 0 the level says nothing and counts as 0.
    Source: denoising errors as likelihoods of a prompt, Li et al. 2023, arXiv 2303.16203; Kong et al., arXiv 2310.07972.
    """
    if errors.shape != errors_without.shape or errors.numel() == 0:
        raise ShapeMismatch(
            f"errors with and without a prompt are of one shape [n,k], n and k ≥ 1, got {list(errors.shape)} and "
            f"{list(errors_without.shape)}"
        )
    known, unknown = errors.double(), errors_without.double()
    if not bool((torch.isfinite(known) & torch.isfinite(unknown) & (known >= 0) & (unknown >= 0)).all()):
        raise InvalidArgument("squared errors are finite and not negative")
    says = (known > 0) & (unknown > 0)
    ratio = torch.where(says, unknown, 1.0) / torch.where(says, known, 1.0)
    return ratio.log().mean(1)


def kept(trial: Trial, unguided: Trial) -> Kept:
    """R = Σ_p I_p / Σ_p I⁰_p over P prompts, with √(Σ_p (I_p − r·I⁰_p)² / (P(P−1))) / mean I⁰, which sees them in pairs.

    Degenerate case: one prompt has no standard error, and nan is given.
    Source: the ratio estimator, e.g. Cochran, Sampling Techniques, 1977, section 6.3.
    """
    number, whole = len(unguided.of_prompts), unguided.information
    share = trial.information / whole
    if number < 2:
        return Kept(share, math.nan)
    pairs = zip(trial.of_prompts, unguided.of_prompts, strict=True)
    squares = sum((own - share * other) ** 2 for own, other in pairs)
    return Kept(share, math.sqrt(squares / (number * (number - 1))) / whole)


def check_unguided(unguided: Trial) -> None:
    """Raise InvalidArgument where images made without guidance say nothing of their prompts: there is nothing to keep."""
    if not unguided.information > 0:
        raise InvalidArgument(
            f"images made without guidance say nothing of their prompts ({unguided.information:.3g} nats): use prompts "
            "that this model draws, more steps, or a larger guidance scale"
        )


def full_strength(trials: Sequence[Trial], *, keep: float) -> FullStrength:
    """The largest η up to which images keep the share `keep` of the information that unguided ones have.

    Linear in log η between the last trial that keeps it and the first that does not; a later trial that keeps it again is
    not believed. Degenerate cases: all keep it, and the largest η is taken; none does, and the smallest is; neither is
    bracketed. InvalidArgument where unguided images say nothing of their prompts, so that there is nothing to keep.
    """
    if not 0 < keep < 1:
        raise InvalidArgument(f"the share that is kept is between 0 and 1, got {keep}")
    unguided = [trial for trial in trials if trial.eta == 0]
    pushed = sorted((trial for trial in trials if trial.eta > 0), key=lambda trial: trial.eta)
    if len(unguided) != 1 or not pushed:
        raise InvalidArgument("strength 1 needs one trial without guidance and at least one with it")
    check_unguided(unguided[0])
    shares = [kept(trial, unguided[0]).share for trial in pushed]
    fails = next((index for index, share in enumerate(shares) if share < keep), len(shares))
    if fails in {0, len(shares)}:
        index = min(fails, len(shares) - 1)
        return FullStrength(pushed[index].eta, shares[index], is_bracketed=False)
    above, below = shares[fails - 1], shares[fails]
    way = (above - keep) / (above - below)
    low, high = math.log(pushed[fails - 1].eta), math.log(pushed[fails].eta)
    return FullStrength(math.exp(low + way * (high - low)), keep, is_bracketed=True)


def latent_bandwidth_within(features: Float[Tensor, "n d"], prompts: Int[Tensor, " n"]) -> float:
    """The median of ‖f_i − f_j‖ over pairs of images of one prompt: those that a conditional preset weighs.

    The median heuristic of `latent_bandwidth_from`, of which images of different prompts are no part; O(n²·d) in float64.
    Degenerate cases: no prompt with two images, or half of all pairs coincide; both are an InvalidArgument.
    """
    same_number(features, prompts, ("features", "prompts"))
    distances = pair_distances(features, prompts)[0].sort().values
    if len(distances) == 0:
        raise InvalidArgument("a latent bandwidth needs two images of one prompt, got one of each")
    middle = float(distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2
    if middle <= math.sqrt(torch.finfo(torch.float32).eps):
        raise InvalidArgument(
            "half of all pairs of images of one prompt coincide: take other seeds, prompts that leave more open, or a "
            "lower guidance scale"
        )
    return middle


def prompt_bandwidth_between(
    prompt_embeddings: Float[Tensor, "n p"], scenes: Int[Tensor, " n"], *, power: float
) -> PromptBandwidth:
    """`prompt_bandwidth_from` for prompts that state scenes; where each states one of its own, equal prompts are related.

    InvalidArgument where all state one scene: nothing is unrelated.
    """
    related, unrelated = pair_distances(prompt_embeddings, scenes)
    if len(unrelated) == 0:
        raise InvalidArgument("a prompt bandwidth needs prompts of two scenes or more")
    return prompt_bandwidth_from(related if len(related) else torch.zeros(1), unrelated, power=power)
