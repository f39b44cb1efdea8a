"""Mode `denoised`: push the predicted clean latents x̂0, early, softly gated, apart from memory and fellow images."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import kernel_field, mutual_field
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push, scaled, unit_direction


def denoised_push(
    clean: Float[Tensor, "n c h w"],
    entries: Entries | None,
    preset: DiversityPreset,
    *,
    eta: float,
    limit: Float[Tensor, " n"],
    prompted: Float[Tensor, "n c h w"] | None = None,
) -> Push:
    """δ = min(η · m/(m+κ), limit) · ‖x̂0‖ · φᵀ(D)/‖φᵀ(D)‖ for the n images of one group; x̂0 becomes x̂0 − δ.

    The set is the entries (weights a_j with the prompt kernel inside) and the other n − 1 images of the group, detached,
    with k_Y = 1. D and m are its field at f = φ(x̂0ᶜ)/‖φ(x̂0ᶜ)‖, where x̂0ᶜ = `prompted` is the prediction under the prompt
    alone (x̂0 where it is not given). What classifier-free guidance extrapolates varies with the noise along what the
    prompt states, and would be pushed along it; the prediction under the prompt varies along what it leaves open.
    The gate m/(m+κ) lets the push fade where nothing is near. `eta` is η at this strength and step; the preset's own is
    its value at strength 1.
    fp32 or fp64 in and out. O(n·(k+n)·d). Degenerate cases: alone without entries, or at D = 0, δ = 0.
    """
    features = preset.feature_map.feature(clean if prompted is None else prompted)
    field = mutual_field(features, preset.latent_kernel)
    if entries is not None and entries.features.shape[0] > 0:
        known = entries.features.to(clean.dtype), entries.weights.to(clean.dtype)[None]
        field = field.plus(kernel_field(features, *known, preset.latent_kernel))
    gate = field.mass / (field.mass + preset.kappa)
    relative = torch.minimum(eta * gate, limit.to(gate.dtype))
    return scaled(unit_direction(field, preset, clean), clean, relative)
