"""Mode `paper`: Algorithm 1 of arXiv 2506.10173, on the noisy latents after the scheduler's step."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import tangent
from sparke_engine.guidance.objectives import field_of
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push, scaled, unit_direction


def paper_push(
    noisy: Float[Tensor, "n c h w"],
    entries: Entries | None,
    preset: DiversityPreset,
    *,
    eta: float,
    limit: Float[Tensor, " n"],
) -> Push:
    """δ = min(η, limit) · ‖z‖ · ĝ, ĝ the unit gradient of Σ_j k_Z(f, f_j)^p k_Y(y, y_j)^p; z becomes z − δ.

    Or of what another objective than `rke` lowers, see `objectives.py`.

    Memory only: images made together do not see each other. ĝ = φᵀ((I − ffᵀ)D)/‖·‖, since the gradient is that
    times a positive number. A unit gradient is the only reading of the algorithm under which its η = 0.03 has a meaning.
    fp32 or fp64 in and out. O(n·k·d). Degenerate case: without entries, or where (I − ffᵀ)D = 0, δ = 0.
    """
    if entries is None or entries.features.shape[0] == 0:
        return Push(torch.zeros_like(noisy), noisy.new_zeros(noisy.shape[0]))
    features = preset.feature_map.feature(noisy)
    field = field_of(features, entries, preset, mutual=False)
    field = field._replace(direction=tangent(field.direction, features))
    relative = torch.full_like(field.mass, eta).minimum(limit.to(field.mass.dtype))
    return scaled(unit_direction(field, preset, noisy), noisy, relative)
