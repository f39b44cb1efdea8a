"""Mode `denoised`: push predicted clean latents x̂0 apart from memory and fellow images, early; relax guidance."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import tangent
from sparke_engine.core.kernels import unit
from sparke_engine.guidance.objectives import field_of
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push, scaled, unit_direction


class Extrapolation(NamedTuple):
    """Where classifier-free guidance started, x̂0ᶜ = `prompted` under the prompt alone, and the scale s it went by.

    The scale is one for all, or one for each image; 1 where guidance is not to be relaxed.
    """

    prompted: Float[Tensor, "n c h w"]
    scale: float | Float[Tensor, " n"]


def denoised_push(
    clean: Float[Tensor, "n c h w"],
    entries: Entries | None,
    preset: DiversityPreset,
    *,
    eta: float | Float[Tensor, ""],
    limit: Float[Tensor, " n"],
    extrapolation: Extrapolation | None = None,
    relax: float | Float[Tensor, ""] = 0.0,
) -> Push:
    """δ = r·(x̂0 − x̂0ᶜ) + min(η·g, limit)·‖x̂0′‖·φᵀ(D⊥)/‖φᵀ(D⊥)‖ for the n images of one group; x̂0 becomes x̂0 − δ.

    x̂0ᶜ is the prediction under the prompt alone (x̂0 where no `extrapolation` is given), g = m/(m+κ) a gate that lets all
    fade where nothing is near, x̂0′ what the first term leaves of x̂0.

    Along the axis of classifier-free guidance, x̂0 − x̂0ᶜ, all is up to its scale s: it draws the images of one prompt to
    one mode, and where images are near the first term relaxes it to s^(1−λg), λ = `relax`; see `share_given_up`. The push proper is across that axis: D and m are the field of the preset's objective (`objectives.py`;
    for `rke` D = Σ_j w_j (f_j − f) and m = Σ_j w_j over the entries, with the prompt kernel inside the weights, and the
    other n − 1 images of the group, detached, k_Y = 1), seen from f = φ(x̂0ᶜ)/‖φ(x̂0ᶜ)‖, and D⊥ = D less its part along
    φ(x̂0 − x̂0ᶜ).

    Two more choices keep what the prompt states. What guidance extrapolates varies with the noise along what is stated,
    and would be pushed along it; x̂0ᶜ varies along what is left open. And D is the chord to the entries, in which what
    they all share cancels, not its part along the sphere. (Only where cells of the pooling overlap, as on sizes that the
    grid does not divide, may a chord to an entry on the far side of the sphere turn the feature toward it.)
    m counts entries by nearness: for a prompt asked some dozens of times the gate is open, g ≈ 1.
    fp32 or fp64 in and out. O(n·(k+n)·d). `relative` is the push proper. Degenerate cases: alone without entries δ = 0;
    at D⊥ = 0 the push proper is 0.
    """
    prompted, scale = extrapolation or Extrapolation(clean, 1.0)
    extrapolated = clean - prompted
    field = field_of(preset.feature_map.feature(prompted), entries, preset, mutual=True)
    axis = unit(preset.feature_map.apply(extrapolated))
    field = field._replace(direction=tangent(field.direction, axis))
    gate = field.nearness / (field.nearness + preset.kappa)
    given_up = share_given_up(scale, relax * gate)[:, None, None, None] * extrapolated
    relative = torch.minimum(eta * gate, limit.to(gate.dtype))
    push = scaled(unit_direction(field, preset, clean), clean - given_up, relative)
    return Push(given_up + push.delta, push.relative)


def share_given_up(scale: float | Float[Tensor, " n"], relax: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(s − s^(1−λ)) / (s − 1): the share of x̂0 − x̂0ᶜ that turns a guidance scale s into s^(1−λ).

    Even steps of λ are even steps of log s, in which diversity grows about evenly. 0 where s ≤ 1.
    """
    scale = torch.as_tensor(scale, dtype=relax.dtype, device=relax.device)
    extrapolates = scale > 1
    known = torch.where(extrapolates, scale, 2.0)
    return torch.where(extrapolates, -known / (known - 1) * torch.expm1(-known.log() * relax), 0.0)
