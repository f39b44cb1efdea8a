"""Bandwidths from samples: how wide the kernels must be for a text encoder, and for a model's latents.

A prompt bandwidth is right where paraphrases of one scene count as one prompt and other scenes do not count: k_Y^p
is at least `near` for related pairs and at most `far` for unrelated ones. With k_Y^p = exp(−p d²/2σ²) a related pair
at distance d asks for σ ≥ d·√(p / 2 log(1/near)), an unrelated one for σ ≤ d·√(p / 2 log(1/far)). For near = 0.5 and
far = 0.01 both can be had only where unrelated prompts are 2.58 times as far apart as related ones. Where they are
not, the unrelated come first: a memory holds so many of them that small weights add up.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparke_engine.core.domains import check_positive
from sparke_engine.core.kernels import squared_distance, unit
from sparke_engine.core.rows import num_rows, same_number
from sparke_engine.errors import InvalidArgument, ShapeMismatch


class PromptBandwidth(NamedTuple):
    """A bandwidth and what it does.

    Attributes:
        bandwidth: σ_Y.
        least: the narrowest at which the wanted share of related pairs is near.
        most: the widest at which the wanted share of unrelated pairs is far.
        related_near: the share of related pairs that are near at `bandwidth`.
        unrelated_far: the share of unrelated pairs that are far at `bandwidth`.
        related_kernel: the median of k_Y^p over related pairs at `bandwidth`.
    """

    bandwidth: float
    least: float
    most: float
    related_near: float
    unrelated_far: float
    related_kernel: float

    @property
    def can_be_had(self) -> bool:
        """Whether some bandwidth gives both shares: anything from `least` to `most`."""
        return self.least <= self.most


def prompt_bandwidth_from(
    related: Float[Tensor, " r"],
    unrelated: Float[Tensor, " u"],
    *,
    power: float = 2.0,
    near: float = 0.5,
    far: float = 0.01,
    share: float = 0.95,
) -> PromptBandwidth:
    """√(least·most), the middle of the bandwidths that give both shares; `most` where none does.

    `related` and `unrelated` are distances of unit prompt embeddings, as `pair_distances` gives them. In float64;
    O((r+u)·log(r+u)). Embeddings are of single precision, and prompts closer than the root of its ε coincide.
    Degenerate cases: related prompts that all coincide ask for nothing, and `most` is taken; where `share` of the unrelated do not lie apart at all no bandwidth will do, which is an InvalidArgument.
    """
    for name, value in {"near": near, "far": far, "share": share}.items():
        if not 0 < value < 1:
            raise InvalidArgument(f"{name} is between 0 and 1, got {value}")
    if far >= near:
        raise InvalidArgument(f"far is below near, got far = {far} and near = {near}")
    check_positive("a bandwidth from samples", power=power)
    related, unrelated = _distances(related, "related pairs"), _distances(unrelated, "unrelated pairs")
    needed = related * math.sqrt(power / (-2 * math.log(near)))
    allowed = unrelated * math.sqrt(power / (-2 * math.log(far)))
    least = float(needed[math.ceil(share * len(needed)) - 1])
    most = float(allowed[math.floor((1 - share) * len(allowed))])
    if most == 0:
        raise InvalidArgument(
            "unrelated prompts coincide: no bandwidth tells them apart, use another encoder"
        )
    bandwidth = math.sqrt(least * most) if 0 < least <= most else most
    kernel = torch.exp(-power * related.square() / (2 * bandwidth**2))
    return PromptBandwidth(
        bandwidth,
        least,
        most,
        related_near=float((needed <= bandwidth).double().mean()),
        unrelated_far=float((allowed >= bandwidth).double().mean()),
        related_kernel=float(kernel.median()),
    )


def pair_distances(
    prompt_embeddings: Float[Tensor, "n p"], scenes: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, " u"]]:
    """Distances of the unit embeddings of all pairs i < j: those of one scene, and those of two. O(n²·p), fp64."""
    num_rows(prompt_embeddings, "prompt embeddings", least=2)
    same_number(prompt_embeddings, scenes, ("prompt embeddings", "scenes"))
    directions = unit(prompt_embeddings.double())
    first, second = torch.triu_indices(len(scenes), len(scenes), 1, device=directions.device)
    distances = squared_distance(directions, directions)[first, second].sqrt()
    is_related = scenes[first] == scenes[second]
    return distances[is_related], distances[~is_related]


def latent_bandwidth_from(features: Float[Tensor, "n d"]) -> float:
    """The median heuristic: σ_Z = the median of ‖f_i − f_j‖ over i < j, for directions f of a model's finished latents.

    Half of all pairs of such images then have k_Z ≥ exp(−1/2). O(n²·d) time and O(n²) memory in float64: a sample of a
    thousand or two is plenty. Degenerate case: where half of all pairs coincide there is no scale to be had, which
    is an InvalidArgument.
    Source: Gretton et al. 2012, section 8 (the heuristic for kernel tests).
    """
    n = num_rows(features, "features", least=2)
    directions = unit(features.double())
    first, second = torch.triu_indices(n, n, 1, device=directions.device)
    distances = squared_distance(directions, directions)[first, second].sort().values.sqrt()
    middle = float(distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2
    if middle <= math.sqrt(torch.finfo(torch.float64).eps * features.shape[1]):
        raise InvalidArgument("half of all pairs of features coincide: take a sample of different images")
    return middle


def _distances(values: Tensor, name: str) -> Float[Tensor, " r"]:
    """Ascending, in float64; 0 for what rounding may have left."""
    if values.dim() != 1:
        raise ShapeMismatch(f"{name} are a list of distances [r], got the shape {list(values.shape)}")
    if len(values) == 0:
        raise InvalidArgument(f"a bandwidth needs {name}, got none")
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise InvalidArgument(f"the distances of {name} are finite and not negative")
    distances = values.double().sort().values
    return torch.where(distances > math.sqrt(torch.finfo(torch.float32).eps), distances, 0.0)
