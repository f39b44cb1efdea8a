"""Novelty and context: pushes of x̂0 away from the images of a reference, or toward them.

A reference counts by its own weight, whatever the strength, and whatever its prompts are. It is no part of the memory's
field: there, a large reference would drown the memory, and a gate that the memory has opened would open for it too.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import Field, tangent
from sparke_engine.core.half import weighted_sums
from sparke_engine.core.kernels import squared_distance, unit
from sparke_engine.guidance.denoised import Extrapolation
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push, Reference, rounding_of, scaled, unit_direction


def references_push(
    clean: Float[Tensor, "n c h w"],
    references: Sequence[Reference],
    preset: DiversityPreset,
    *,
    eta: float | Float[Tensor, ""],
    limit: Float[Tensor, " n"],
    extrapolation: Extrapolation | None = None,
) -> Push:
    """δ = min(η‖d‖, limit) · ‖x̂0‖ · φᵀ(d)/‖φᵀ(d)‖, d = Σ_r ω_r g_r μ_r⊥/‖μ_r⊥‖, for n images; x̂0 becomes x̂0 − δ.

    Of each reference r with the weight ω_r (positive for novelty, negative for context; d is bounded by 1 in length):
    μ_r is the mean shift of `reference_shift`, seen from f = φ(x̂0ᶜ)/‖φ(x̂0ᶜ)‖, the prediction under the prompt alone, and
    μ_r⊥ is μ_r less its part along φ(x̂0 − x̂0ᶜ), which is up to the scale of guidance, as in `denoised_push`. g_r is the
    nearness max_j exp(−p‖f − f_j‖²/2σ_Z²): both fade where the reference has nothing near, novelty since there is nothing
    to avoid, context since it would lead away from what the prompt states. Images do not see each other here, nor do
    references.
    fp32 or fp64 in and out. O(n·k·d). Degenerate cases: at weight 0, without entries, and where μ_r⊥ = 0, as at the
    only entry itself, a reference adds nothing.
    """
    prompted = clean if extrapolation is None else extrapolation.prompted
    features = preset.feature_map.feature(prompted)
    axis = unit(preset.feature_map.apply(clean - prompted))
    total = torch.zeros_like(features)
    num_entries = 0
    for reference in references:
        shift = reference_shift(features, reference.entries, preset)
        across = shift._replace(direction=tangent(shift.direction, axis))
        total = total + (reference.weight * shift.nearness)[:, None] * _unit_shift(across)
        num_entries += shift.num_entries
    length = torch.linalg.vector_norm(total, dim=-1).clamp_max(1.0)
    field = Field(total, torch.ones_like(length), length, num_entries)
    relative = torch.minimum(eta * length, limit.to(length.dtype))
    return scaled(unit_direction(field, preset, clean), clean, relative)


def reference_shift(features: Float[Tensor, "n d"], entries: Entries, preset: DiversityPreset) -> Field:
    """μ = Σ_j q_j f_j − f with q_j = a_j k(f, f_j)^p / Σ_i a_i k(f, f_i)^p; its nearness is max_j k_Z(f, f_j)^p.

    k is Gaussian of width σ = `reference_bandwidth`, k_Z of the wider `latent_bandwidth`: which modes lead is a finer
    question than whether anything is near. (p/σ²)·μ is the gradient of log Σ_j a_j k(f, f_j)^p along f, so μ leads to the nearest modes of the reference, and
    hardly changes where every entry is there twice: the size of the reference does not count. Sampling weights a_j > 0.
    fp32 or fp64. O(n·k·d). Degenerate cases: without entries all is zero; from far away the nearest entry alone counts,
    also where every k underflows.
    """
    if entries.num_entries == 0:
        nothing = features.new_zeros(features.shape[0])
        return Field(torch.zeros_like(features), nothing, nothing, 0)
    known = entries.features.to(features.dtype)
    distances = squared_distance(features, known)
    logarithms = distances * (-preset.reference_kernel.steepness / 2)
    shares = torch.softmax(logarithms + entries.weights.to(features.dtype).log(), dim=-1)
    nearness = torch.exp(distances.amin(1) * (-preset.power / (2 * preset.latent_bandwidth**2)))
    return Field(weighted_sums(shares, known) - features, torch.ones_like(nearness), nearness, len(known))


def _unit_shift(shift: Field) -> Float[Tensor, "n d"]:
    """μ/‖μ‖, and 0 where μ is zero but for rounding."""
    length = torch.linalg.vector_norm(shift.direction, dim=-1, keepdim=True)
    is_known = length > rounding_of(shift.num_entries, length.dtype)
    return torch.where(is_known, shift.direction / torch.where(is_known, length, 1.0), 0.0)
