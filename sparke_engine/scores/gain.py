"""How much less an image resembles past ones than those resemble each other."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import Kernel, check_kernel, exact_unit
from sparke_engine.core.rows import num_rows, same_length
from sparke_engine.errors import InvalidArgument, ShapeMismatch


def similarity_gain(
    features: Float[Tensor, "n d"],
    entries: Float[Tensor, "k d"],
    weights: Float[Tensor, " k"],
    kernel: Kernel,
) -> Float[Tensor, " n"]:
    """g_i = Σ_{j≠l} a_j a_l k(e_j, e_l) / Σ_{j≠l} a_j a_l − Σ_j a_j k(f_i, e_j) / Σ_j a_j, for n images and k entries.

    The first term is what a further image that is like the entries would have on average, so E g = 0 where the images and
    the entries come from one distribution and the weights a ≥ 0 are alike; above 0 an image is farther from them than they
    are from each other. In [−1, 1] for a kernel in [0, 1]. In float64; O((n + k)·k·d). Degenerate case: 0 where fewer than
    two entries count. Rows that are none, not finite or do not fit raise InvalidArgument, as do weights that are not finite
    or negative.
    """
    check_kernel(kernel)
    num_rows(features, "features")
    num_rows(entries, "entries")
    same_length(features, entries, ("features", "entries"))
    known, shares = exact_unit(entries), _counts(weights, len(entries)).to(entries.device)
    pairs = torch.outer(shares, shares).fill_diagonal_(0.0)
    if float(pairs.sum()) <= 0:
        return torch.zeros(len(features), dtype=torch.float64)
    among = (pairs * kernel.gram(known, known)).sum() / pairs.sum()
    return among - kernel.gram(exact_unit(features), known) @ (shares / shares.sum())


def _counts(weights: Float[Tensor, " k"], num_entries: int) -> Float[Tensor, " k"]:
    """The weights in float64."""
    if not isinstance(weights, Tensor):
        raise InvalidArgument(f"weights are a tensor [k], got a {type(weights).__name__}")
    if weights.shape != (num_entries,):
        raise ShapeMismatch(
            f"{num_entries} entries need weights [{num_entries}], got the shape {list(weights.shape)}"
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise InvalidArgument("weights are finite and not negative")
    return weights.double()
