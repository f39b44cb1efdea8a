"""How strongly a memory would push an image that has not been made."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import entry_weights
from sparke_engine.core.kernels import unit
from sparke_engine.core.matmul import matmul
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.types import Neighbours


def prompt_kernel_values(
    neighbours: Neighbours, prompt_embedding: Float[Tensor, " p"], preset: DiversityPreset
) -> Float[Tensor, " k"]:
    """k_Y(y, y_j)^p of k neighbours (b = 1) in fp32; 1 where the preset is not conditional. O(k·p)."""
    if not preset.conditional:
        return neighbours.mask[0].float()
    once = Neighbours(
        neighbours.features,
        unit(neighbours.prompt_embeddings.float()),
        neighbours.mask,
        neighbours.mask.float(),
    )
    kernel = preset.prompt_kernel_of_power(_power(preset))
    return entry_weights(once, unit(prompt_embedding.float())[None], kernel)[0].float()


def expected_push(
    neighbours: Neighbours | None,
    prompt_embedding: Float[Tensor, " p"],
    preset: DiversityPreset,
    *,
    strength: float,
    num_steps: int,
) -> float:
    """What `Sample.push` of an image would be, about, from its neighbours [1,k,d] alone: in [0, max_push].

    Its feature is unknown, so it is taken to be like that of one of the neighbours, drawn by what they count. With
    a_j = weight_j k_Y(y,y_j)^p and A = Σ_j a_j, neighbour j sees the mass of the others, scaled to as many as there are:

        m_j = (Σ_i a_i k_Z(f_j,f_i)^p − a_j/weight_j) · A / (A − a_j/weight_j)

    and mode `denoised` pushes by Σ_j (a_j/A) · min(η(strength) · window · m_j/(m_j + κ), max_push): every step of the
    window by its share. The modes `paper` and `released` have no gate, and push by η in each of their steps, of num_steps.

    Left out: fellow images of the same request, which push too; references; where a run of an edit begins; and that early
    predictions, which is what is pushed, are nearer to what images of a prompt share than finished images are, so that
    more is near than here. fp32, O(k²·d). Degenerate cases: 0 without neighbours and at strength 0; a single one tells
    nothing of how alike images of its prompt are, so the new image is taken to be as near as can be, k_Z = 1.
    """
    if neighbours is None or strength == 0:
        return 0.0
    counts = neighbours.weights[0].float() * neighbours.mask[0]
    near = prompt_kernel_values(neighbours, prompt_embedding, preset)
    total = float((counts * near).sum())
    if total <= 0:
        return 0.0
    eta = preset.eta_at(strength)
    if preset.mode != "denoised":
        return min(eta * _share_of_steps(preset, num_steps), preset.max_push)
    mass = _mass_seen(neighbours.features[0].float(), counts * near, near, preset)
    pushes = (eta * preset.window * mass / (mass + preset.kappa)).clamp_max(preset.max_push)
    return float((counts * near / total * pushes).sum())


def _mass_seen(
    features: Float[Tensor, "k d"],
    weights: Float[Tensor, " k"],
    alone: Float[Tensor, " k"],
    preset: DiversityPreset,
) -> Float[Tensor, " k"]:
    """m_j; `alone` is what a single copy of each counts."""
    total = weights.sum()
    gram = preset.kernel_of_power(_power(preset)).gram(features, features)
    others = (matmul(gram, weights[:, None])[:, 0] - alone).clamp_min(0)
    left = total - alone
    is_one = left <= 1e-6 * total  # a single entry of weight 1
    scaled = others * total / torch.where(is_one, 1.0, left)
    return torch.where(is_one, total, scaled)


def _power(preset: DiversityPreset) -> float:
    """The power by which entries are near: Vendi's gate is that of the kernels' squares."""
    return preset.power if preset.objective == "rke" else 2.0


def _share_of_steps(preset: DiversityPreset, num_steps: int) -> float:
    """Of `num_steps`, those in which the modes without a window push: after every interval, or before each begins."""
    acting = num_steps // preset.interval if preset.mode == "paper" else -(-num_steps // preset.interval)
    return acting / num_steps
