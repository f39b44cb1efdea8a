"""Mode `denoised`: push predicted clean latents x̂0 apart from memory and fellow images, early; relax guidance there."""

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
    relax: float = 0.0,
) -> Push:
    """δ = λg·(x̂0 − x̂0ᶜ) + min(η·g, limit)·‖x̂0′‖·φᵀ(D)/‖φᵀ(D)‖ for the n images of one group; x̂0 becomes x̂0 − δ.

    x̂0ᶜ = `prompted` is the prediction under the prompt alone (x̂0 where it is not given), g = m/(m+κ) a gate that lets
    all fade where nothing is near. The first term gives up the share λ = `relax` of what classifier-free guidance
    extrapolates, since that is what draws the images of one prompt to one mode; x̂0′ is x̂0 less this term. The second
    is the push proper: D = Σ_j w_j (f_j − f) and m = Σ_j w_j over the entries (weights a_j with the prompt kernel
    inside) and the other n − 1 images of the group (detached, k_Y = 1), seen from f = φ(x̂0ᶜ)/‖φ(x̂0ᶜ)‖.

    Two choices keep what the prompt states. What guidance extrapolates varies with the noise along what is stated, and
    would be pushed along it; x̂0ᶜ varies along what is left open. And D is the chord to the entries, in which what they
    all share cancels, not its part along the sphere. (Only where cells of the pooling overlap, as on sizes that the
    grid does not divide, may a chord to an entry on the far side of the sphere turn the feature toward it.)
    m counts entries by nearness: for a prompt asked some dozens of times the gate is open, g ≈ 1.
    fp32 or fp64 in and out. O(n·(k+n)·d). `relative` is the push proper. Degenerate cases: alone without entries δ = 0;
    at D = 0 the push proper is 0.
    """
    prompted = clean if prompted is None else prompted
    features = preset.feature_map.feature(prompted)
    field = mutual_field(features, preset.latent_kernel)
    if entries is not None and entries.features.shape[0] > 0:
        known = entries.features.to(clean.dtype), entries.weights.to(clean.dtype)[None]
        field = field.plus(kernel_field(features, *known, preset.latent_kernel))
    gate = field.mass / (field.mass + preset.kappa)
    given_up = (relax * gate)[:, None, None, None] * (clean - prompted)
    relative = torch.minimum(eta * gate, limit.to(gate.dtype))
    push = scaled(unit_direction(field, preset, clean), clean - given_up, relative)
    return Push(given_up + push.delta, push.relative)
