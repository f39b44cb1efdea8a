"""What questions reckon with the entries that were chosen for them. Pure, and to be called in a thread."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.domain.question import Guiding, PreviewRequest
from app.worker.memory.host_memory import Chosen
from app.worker.memory.neighbours import prompt_row, to_neighbours
from app.worker.memory.selection import exact_cosines, unit_rows
from sparke_engine.core.kernels import CosineKernel, GaussianKernel, Kernel
from sparke_engine.core.scores import cond_rke, cond_vendi, rke, vendi
from sparke_engine.guidance.estimate import expected_push, prompt_kernel_values
from sparke_engine.guidance.presets import DiversityPreset


@dataclass(frozen=True, slots=True)
class Guidance:
    """The neighbours that are nearest to a prompt, and the push that is to be expected of all."""

    neighbours: tuple[Guiding, ...] = ()
    expected_push: float = 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """As `StatsResult` has them."""

    rke: float | None
    cond_rke: float | None
    vendi: float | None
    cond_vendi: float | None
    latent_bandwidth: float | None
    prompt_bandwidth: float | None


def estimate(
    chosen: Chosen | None, prompt_embedding: Tensor, preset: DiversityPreset, request: PreviewRequest
) -> Guidance:
    """What the chosen entries would do to an image of the prompt; the nearest first, equally near ones by version."""
    neighbours = None if chosen is None else to_neighbours(chosen)
    if chosen is None or neighbours is None:
        return Guidance()
    diversity = request.diversity
    own = preset.with_bandwidths(diversity.latent_bandwidth, diversity.prompt_bandwidth)
    kernels = prompt_kernel_values(neighbours, prompt_embedding, own).tolist()
    prompt = unit_rows(prompt_row(prompt_embedding)[None])[0]
    cosines = np.clip(exact_cosines(chosen.prompt_embeddings, prompt), -1.0, 1.0)
    order = np.lexsort((chosen.versions, -cosines))[: request.limit].tolist()
    named = (
        Guiding(int(chosen.versions[row]), float(cosines[row]), kernels[row], float(chosen.weights[row]))
        for row in order
    )
    push = expected_push(
        neighbours, prompt_embedding, own, strength=diversity.strength, num_steps=request.steps
    )
    return Guidance(tuple(named), push)


def score(chosen: Chosen, preset: DiversityPreset) -> Scores:
    """The scores of the chosen entries, each counted once, by the preset's kernels. O(n³) for n entries."""
    is_cosine = preset.kernel == "cosine"
    widths = (None, None) if is_cosine else (preset.latent_bandwidth, preset.prompt_bandwidth)
    if len(chosen.versions) == 0:
        return Scores(None, None, None, None, *widths)
    features, prompts = torch.from_numpy(chosen.features), torch.from_numpy(chosen.prompt_embeddings)
    kernels: tuple[Kernel, Kernel] = (CosineKernel(), CosineKernel())
    if not is_cosine:
        kernels = GaussianKernel(preset.latent_bandwidth), GaussianKernel(preset.prompt_bandwidth)
    return Scores(
        rke=rke(features, kernels[0]),
        cond_rke=cond_rke(features, prompts, kernels),
        vendi=vendi(features, kernels[0]),
        cond_vendi=cond_vendi(features, prompts, kernels),
        latent_bandwidth=widths[0],
        prompt_bandwidth=widths[1],
    )
