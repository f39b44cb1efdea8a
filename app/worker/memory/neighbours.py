"""From a request and a memory to the engine's `Neighbours`."""

import numpy as np
import torch
from torch import Tensor

from app.domain.request import Diversity
from app.worker.memory.host_memory import Chosen, NeighbourQuery
from app.worker.memory.memory_cache import Dimensions
from app.worker.memory.selection import Float32, min_cosine
from sparke_engine.guidance.push import Entries
from sparke_engine.types import NeighbourRule, Neighbours


def prompt_row(prompt_embedding: Tensor) -> Float32:
    """The prompt's embedding `[p]` as copies of memories are asked with it."""
    return prompt_embedding.to(torch.float32).numpy()


def neighbour_query(
    rule: NeighbourRule, diversity: Diversity, prompt_embedding: Tensor, *, version: int
) -> NeighbourQuery:
    """What a request asks of its memory as of `version`: the preset's rule, narrowed by the request's own members."""
    bandwidth = diversity.prompt_bandwidth or rule.prompt_bandwidth
    cap = rule.max_neighbours
    if diversity.num_neighbours is not None:
        cap = min(cap, diversity.num_neighbours)
    return NeighbourQuery(
        prompt_embedding=prompt_row(prompt_embedding),
        version=version,
        min_cosine=min_cosine(bandwidth, rule.power, rule.min_prompt_kernel),
        steepness=rule.power / bandwidth**2 if rule.min_prompt_kernel > 0 else 0.0,
        cap=cap,
    )


def reference_query(cap: int, dimensions: Dimensions, *, version: int) -> NeighbourQuery:
    """All entries of a reference as of `version`, whatever their prompts; above the cap a uniform sample."""
    return NeighbourQuery(
        prompt_embedding=np.zeros(dimensions.prompt, np.float32),
        version=version,
        min_cosine=-1.0,
        steepness=0.0,
        cap=cap,
    )


def to_entries(chosen: Chosen) -> Entries:
    """All that was chosen, blind to prompts, in fp32, at its weights."""
    return Entries(torch.from_numpy(chosen.features), torch.from_numpy(chosen.weights))


def to_neighbours(chosen: Chosen) -> Neighbours | None:
    """One problem (b = 1) of all that was chosen, in fp32, at its weights; None where nothing was."""
    num_chosen = len(chosen.versions)
    if num_chosen == 0:
        return None
    return Neighbours(
        features=torch.from_numpy(chosen.features)[None],
        prompt_embeddings=torch.from_numpy(chosen.prompt_embeddings)[None],
        mask=torch.ones((1, num_chosen), dtype=torch.bool),
        weights=torch.from_numpy(chosen.weights)[None],
    )
