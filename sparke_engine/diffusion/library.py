"""For library users: a stock pipeline, a memory bank, and one `with` block."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sparke_engine.core.domains import check_pair, check_share, check_type
from sparke_engine.diffusion.asked import Asked, heard_calls, shows_calls, takes_negative_prompt
from sparke_engine.diffusion.autoencoding import encoded
from sparke_engine.diffusion.families import embed_prompt, family_of, feature_dim_of
from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.prompt_embedding import Prompt
from sparke_engine.diffusion.seam import Runs, guided_steps
from sparke_engine.diffusion.steps import OnStep, Step
from sparke_engine.errors import InvalidArgument, MisplacedGuidance, ShapeMismatch
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
    keeps_guidance: bool | None = None,
    preset: DiversityPreset | str | None = None,
    on_step: OnStep | None = None,
    novelty: Weighted | None = None,
    context: Weighted | None = None,
    remember: bool = True,
) -> Iterator[GroupGuide]:
    """Within the block, images that `pipe` makes for `prompt` are pushed away from the bank and from one another.

        with guided(pipe, bank, prompt):
            images = pipe(prompt, num_images_per_prompt=4).images

    The neighbours are read once, on entry. Where the block ends well, the finished images enter the bank, also at
    strength 0; where it raises, nothing does, nor do images of a run that was interrupted, of which a warning tells. With
    `remember=False` nothing enters: so say in all stages but the last where several make one image. All images of one call
    are taken as one group of this prompt, which is what the pipeline reads: a text, a class of DiT, or an embedding of the
    caller's own as a tensor. A call with another text is refused. Where the pipeline is to read more than images are
    remembered by (a style, weights of words), give an embedding for `prompt`, compared with no text, such as
    `embed_prompt(pipe, "a cat")` of `sparke_engine.diffusion.families`.

    A preset may relax classifier-free guidance where images are near, but not guidance that leads away from a negative
    prompt, which would be relaxed with it. True and False say so for all calls; with None each call is looked at: guidance is kept where it has
    a negative prompt that is not empty, or an embedding of one, or where the pipeline takes one and hides what it is called
    with. An embedding may be of the empty text: a warning says, once a block, that guidance is kept which else were relaxed.

    `novelty` leads away from the images of another bank and `context` toward them, each a bank with a weight in [0, 1]:
    `guided(pipe, bank, prompt, novelty=(published, 0.75), context=(brand, 0.5))`. All images of those banks count,
    whatever their prompts, and they do so in the mode `denoised` at any strength, also at 0. An empty bank adds nothing.
    Above the preset's `max_neighbours` (of a reference: `max_reference_entries`) a sample stands for a bank, another one for
    each of its sizes. The mode `paper` acts after every `interval`-th step: a warning tells of runs that have fewer.

    Raises, before the block, UnsupportedPipeline, UnsupportedScheduler, NestedGuidance, InvalidArgument, or ShapeMismatch for
    a bank of another kind of images; from within the pipeline's call InvalidArgument for prompts that differ,
    MisplacedGuidance where another pipeline runs on this scheduler, and ShapeMismatch in the first step where only that
    tells; after it MisplacedGuidance where the pipeline made nothing, or had another scheduler.
    """
    preset = _chosen(pipe, preset)
    check_type("a bank", bank, MemoryBank, "a MemoryBank")
    check_share("a strength", strength)
    references = _references(novelty, context, preset)
    widths = _Widths.of(bank, references)
    widths.check(feature_dim_of(pipe, preset.feature_map))
    embedding = embed_prompt(pipe, prompt)
    neighbours = bank.neighbours(embedding[None], preset)
    entries = Entries.of(neighbours, embedding, preset) if bool(neighbours.mask.any()) else None
    keeps = keeps_guidance if keeps_guidance is not None else _may_hide_a_negative_prompt(pipe)
    group = GuidedGroup(slice(None), preset, strength, entries, keeps, references)
    guide = _BlockGuide([group], widths=widths, text=_text(prompt), looks=keeps_guidance is None)
    with heard_calls(pipe, guide.hear), guided_steps(pipe, guide, on_step) as runs:
        yield guide
    _check_runs(pipe, runs)
    _tell_of_idle_runs(guide)
    if remember:
        _remember(guide, bank, embedding)


def _remember(guide: GroupGuide, bank: MemoryBank, embedding: Tensor) -> None:
    """The finished images of all runs enter the bank."""
    for run in guide.runs:
        features = guide.groups[0].preset.feature_map.feature(run.latents)
        bank.append(features, embedding.expand(len(features), -1))


def remember_pictures(
    pipe: Any,
    bank: MemoryBank,
    pictures: Sequence[Image.Image],
    prompt: Prompt = "",
    *,
    preset: DiversityPreset | str | None = None,
) -> None:
    """Pictures enter the bank as if `pipe` had made them of the prompt: a reference of what there is already.

    Sides are multiples of what the autoencoder takes together; under a preset without a grid all are of one size. Raises
    UnsupportedPipeline, InvalidArgument and ShapeMismatch; then nothing is added.
    """
    preset = _chosen(pipe, preset)
    check_type("a bank", bank, MemoryBank, "a MemoryBank")
    embedding = embed_prompt(pipe, prompt)
    found = [preset.feature_map.feature(latents)[0].cpu() for latents in encoded(pipe, pictures)]
    if len({len(feature) for feature in found}) > 1:
        raise ShapeMismatch("under this preset pictures are of one size: it keeps whole latents")
    if found:
        bank.append(torch.stack(found), embedding.expand(len(found), -1))


class _Widths(NamedTuple):
    """The lengths of features that an image is to be compared with; 0 where there are none."""

    bank: int
    references: tuple[int, ...]

    @classmethod
    def of(cls, bank: MemoryBank, references: tuple[Reference, ...]) -> "_Widths":
        own = bank.features.shape[1] if len(bank) > 0 else 0
        return cls(own, tuple(reference.entries.features.shape[1] for reference in references))

    def check(self, expected: int | None) -> None:
        """Raise ShapeMismatch where an image's feature has another length; None is not known."""
        for name, width in (("bank", self.bank), *(("reference", width) for width in self.references)):
            if expected is not None and width not in {0, expected}:
                raise ShapeMismatch(
                    f"under this preset an image of this pipeline has a feature of {expected} numbers, and this {name} holds "
                    f"features of {width}: take a bank that was filled with this preset and kind of model, or its preset"
                )


@dataclass
class _BlockGuide(GroupGuide):
    """The guide of one group, whose memory and references are known to fit once there are latents.

    `text`: the block's prompt where it is a text. `looks`: whether guidance is kept is told by each call.
    """

    widths: _Widths = _Widths(0, ())  # noqa: RUF009 - immutable
    text: str | None = None
    looks: bool = True
    _has_warned: bool = False
    num_idle: int = 0

    def hear(self, asked: Asked) -> None:
        """Be told of a call. Raises InvalidArgument for prompts that differ, from one another or from the block's."""
        if not asked.has_one_prompt:
            raise InvalidArgument(
                "one guided block is for one prompt, under which all its images are remembered, and this call has several: "
                "open a block for each"
            )
        if self.text is not None and asked.text is not None and asked.text != self.text:
            raise InvalidArgument(
                f"this guided block remembers its images under the prompt {self.text!r}, and this call has {asked.text!r}: "
                "give both the same text, or the block an embedding as its prompt"
            )
        if self.looks:
            self.groups = [replace(self.groups[0], keeps_guidance=asked.leads_away)]
            self._warn_of_embeddings(asked)

    def _warn_of_embeddings(self, asked: Asked) -> None:
        """Say once that an embedding keeps the guidance which the preset would relax."""
        group = self.groups[0]
        relaxes = group.preset.mode == "denoised" and group.preset.relax_at(group.strength) > 0
        if self._has_warned or not relaxes or not asked.has_negative_embedding:
            return
        self._has_warned = True
        warnings.warn(
            "this call leads away from an embedding, whose wish cannot be read, so that its guidance is not relaxed as the "
            "preset would have it: pass keeps_guidance=False if it is of no wish, or True to keep guidance silently",
            stacklevel=5,
        )

    def displace(self, step: Step) -> list[Move]:
        """As for any group; before the first step, the check."""
        if step.index == 0:
            feature_map = self.groups[0].preset.feature_map
            self.widths.check(feature_map.dim(*step.noisy.shape[1:]))
        return super().displace(step)

    def finish(self, latents: Tensor, num_steps: int) -> None:
        """As for any group; runs are counted in which mode `paper` had no step to push in what there was to push."""
        super().finish(latents, num_steps)
        group = self.groups[0]
        had_step = group.preset.mode != "paper" or num_steps >= group.preset.interval
        self.num_idle += not had_step and group.eta > 0 and group.sources is not None


def _text(prompt: Prompt) -> str | None:
    return prompt if isinstance(prompt, str) else None


def _may_hide_a_negative_prompt(pipe: Any) -> bool:
    return takes_negative_prompt(pipe) and not shows_calls(pipe)


def _check_runs(pipe: Any, runs: Runs) -> None:
    """Raise or warn where a block that ended well did not make what was meant."""
    if runs.started == 0:
        raise MisplacedGuidance(
            f"the guided {type(pipe).__name__} made nothing in its block, so that nothing was guided or remembered: call that "
            "pipeline, with the scheduler that it has before the block"
        )
    if runs.finished < runs.started:
        warnings.warn(
            f"{runs.started - runs.finished} of {runs.started} runs of the guided pipeline stopped before their last step: "
            "their images are not remembered",
            stacklevel=4,
        )


def _tell_of_idle_runs(guide: _BlockGuide) -> None:
    """Warn where the preset never acted."""
    if guide.num_idle > 0:
        interval = guide.groups[0].preset.interval
        warnings.warn(
            f"nothing was pushed in {guide.num_idle} of {len(guide.runs)} runs: mode paper acts after each {interval} steps, "
            "and they had fewer: take more steps, a preset of another mode, or dataclasses.replace(preset, interval=...)",
            stacklevel=4,
        )


def _references(
    novelty: Weighted | None, context: Weighted | None, preset: DiversityPreset
) -> tuple[Reference, ...]:
    found = []
    takes_all = replace(preset, min_prompt_kernel=0.0, max_neighbours=preset.max_reference_entries)
    for name, given, sign in (("novelty", novelty, 1), ("context", context, -1)):
        if given is None:
            continue
        check_pair(f"{name} is", given, "(bank, weight)")
        bank, weight = given
        check_type(f"the bank of {name}", bank, MemoryBank, "a MemoryBank")
        check_share(f"the weight of {name}", weight)
        if weight > 0 and len(bank) > 0:
            known = bank.neighbours(bank.prompt_embeddings[:1], takes_all)
            found.append(Reference(Entries(known.features[0], known.weights[0]), sign * weight))
    return tuple(found)


def _chosen(pipe: Any, preset: DiversityPreset | str | None) -> DiversityPreset:
    if preset is None:
        return default_preset(pipe)
    if isinstance(preset, str):
        return preset_named(preset)
    check_type("a preset", preset, DiversityPreset, "a DiversityPreset or the name of one")
    return preset


def default_preset(pipe: Any) -> DiversityPreset:
    """The preset that the pipeline was marked with, else that of its class."""
    return preset_named(getattr(pipe, _PRESET_ATTRIBUTE, None) or family_of(pipe).preset)


def mark_preset(pipe: Any, name: str) -> None:
    """Make `name` the pipeline's default preset."""
    setattr(pipe, _PRESET_ATTRIBUTE, name)
