"""For library users: a stock pipeline, a memory bank, and one `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sparke_engine.diffusion.families import embed_prompt, family_of
from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.prompt_embedding import Prompt
from sparke_engine.diffusion.seam import OnStep, guided_steps
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import DiversityPreset, preset_named
from sparke_engine.guidance.push import Entries, Reference
from sparke_engine.memory_bank import MemoryBank

Weighted = tuple[MemoryBank, float]  # a bank and how strongly it counts, in [0, 1]
_PRESET_ATTRIBUTE = "diversity_preset_name"


@contextmanager
def guided(  # noqa: PLR0913 - each is a choice of its own
    pipe: Any,
    bank: MemoryBank,
    prompt: Prompt,
    *,
    strength: float = 0.5,
    keeps_guidance: bool = False,
    preset: DiversityPreset | None = None,
    on_step: OnStep | None = None,
    novelty: Weighted | None = None,
    context: Weighted | None = None,
) -> Iterator[GroupGuide]:
    """Within the block, images that `pipe` makes for `prompt` are pushed away from the bank and from one another.

        with guided(pipe, bank, prompt):
            images = pipe(prompt, num_images_per_prompt=4).images

    The neighbours are read once, on entry. Where the block ends well, the finished images enter the bank, also at
    strength 0; where it raises, nothing does. All images of one call are taken as one group of this prompt, which is
    what the pipeline reads: a text, a class of DiT, or an embedding of the caller's own as a tensor.
    A preset may relax classifier-free guidance where images are near. Set `keeps_guidance` where the pipeline is called with a negative
    prompt, which would be relaxed with it.

    `novelty` leads away from the images of another bank and `context` toward them, each a bank with a weight in [0, 1]:
    `guided(pipe, bank, prompt, novelty=(published, 0.75), context=(brand, 0.5))`. All images of those banks count,
    whatever their prompts, and they do so in the mode `denoised` at any strength, also at 0. An empty bank adds nothing.
    """
    preset = preset if preset is not None else default_preset(pipe)
    embedding = embed_prompt(pipe, prompt)
    neighbours = bank.neighbours(embedding[None], preset)
    entries = Entries.of(neighbours, embedding, preset) if bool(neighbours.mask.any()) else None
    references = _references(novelty, context)
    guide = GroupGuide([GuidedGroup(slice(None), preset, strength, entries, keeps_guidance, references)])
    with guided_steps(pipe, guide, on_step):
        yield guide
    for run in guide.runs:
        features = preset.feature_map.feature(run.latents)
        bank.append(features, embedding.expand(len(features), -1))


def _references(novelty: Weighted | None, context: Weighted | None) -> tuple[Reference, ...]:
    found = []
    for name, given, sign in (("novelty", novelty, 1), ("context", context, -1)):
        if given is None:
            continue
        bank, weight = given
        if not 0 <= weight <= 1:
            raise InvalidArgument(f"the weight of {name} is in [0, 1], got {weight}")
        if weight > 0 and len(bank) > 0:
            found.append(Reference(Entries(bank.features, torch.ones(len(bank))), sign * weight))
    return tuple(found)


def default_preset(pipe: Any) -> DiversityPreset:
    """The preset that the pipeline was marked with, else that of its class."""
    return preset_named(getattr(pipe, _PRESET_ATTRIBUTE, None) or family_of(pipe).preset)


def mark_preset(pipe: Any, name: str) -> None:
    """Make `name` the pipeline's default preset."""
    setattr(pipe, _PRESET_ATTRIBUTE, name)
