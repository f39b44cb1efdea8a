"""The guide of a device batch: each group of images is pushed by its own arithmetic, on its own rows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.recording import Number, Ready
from sparke_engine.diffusion.steps import Step
from sparke_engine.errors import NonFiniteLatents
from sparke_engine.guidance.denoised import Extrapolation, denoised_push
from sparke_engine.guidance.paper import paper_push
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push, Reference
from sparke_engine.guidance.references import references_push
from sparke_engine.guidance.released import Past, ReleasedScore, released_push
from sparke_engine.guidance.schedule import is_interval_start, is_interval_step, open_share, window_weight


@dataclass(frozen=True)
class GuidedGroup:
    """Images that share a prompt and a memory: their rows in the batch, and what pushes them how strongly.

    `keeps_guidance`: classifier-free guidance carries a wish of its own, a negative prompt, and is not relaxed.
    `references`: further sets that push or pull. In mode `denoised` each does by its own weight alone, also at strength 0;
    in the modes `paper` and `released` they are part of what moves at the group's strength.
    `prompt_embedding`: of the prompt that is asked for, where it is known: mode `released` and rivals compare by it.
    """

    rows: slice
    preset: DiversityPreset
    strength: float
    entries: Entries | None
    keeps_guidance: bool = False
    references: tuple[Reference, ...] = ()
    prompt_embedding: Float[Tensor, " p"] | None = None

    @property
    def asked(self) -> Float[Tensor, " p"] | None:
        """The unit embedding of the prompt that is asked for, from the entries or as given; None where neither tells."""
        if self.entries is not None and self.entries.prompts is not None:
            return self.entries.prompts.asked
        return None if self.prompt_embedding is None else unit(self.prompt_embedding.float())

    @property
    def eta(self) -> float:
        """η at the group's strength."""
        return self.preset.eta_at(self.strength)

    def eta_of(self, step: Step) -> float:
        """η at a step, 0 outside the window."""
        return (
            self.eta
            * window_weight(step.index, step.num_steps, self.preset.window)
            * self.open_share_of(step)
        )

    def open_share_of(self, step: Step) -> float:
        """How much is still open where the run began; 1 where it began at the first timestep."""
        if step.start is None:
            return 1.0
        return open_share(*step.start, self.preset.feature_map.cell(*step.size))

    def relax_of(self, step: Step) -> float:
        """λ at a step: how far classifier-free guidance is relaxed, where there is any."""
        if self.keeps_guidance or not step.extrapolates:
            return 0.0
        return self.preset.relax_at(self.strength)

    def reference_eta_of(self, step: Step) -> float:
        """η of the references at a step, 0 outside their window and where there are none."""
        if not any(reference.weight for reference in self.references):
            return 0.0
        preset = self.preset
        window = window_weight(step.index, step.num_steps, preset.reference_window)
        return preset.reference_eta * window * self.open_share_of(step)

    @cached_property
    def sources(self) -> Entries | None:
        """Mode `paper`: all that pushes the group, references included; None where nothing does."""
        if self.entries is not None:
            return self.entries.with_references(self.references)
        if not self.references:
            return None
        like = self.references[0].entries
        nothing = Entries(like.features[:0], like.weights[:0])
        return nothing.with_references(self.references)


@dataclass(frozen=True)
class FinishedRun:
    """The end of one run: final latents in fp32, and each image's total push, the mean over all steps of `Push.relative`."""

    latents: Float[Tensor, "b c h w"]
    pushes: Float[Tensor, " b"]


@dataclass
class BatchGuide:
    """A Guide that moves nothing and records how runs end. What moves something extends it."""

    groups: Sequence[GuidedGroup]
    runs: list[FinishedRun] = field(default_factory=list)
    _spent: Tensor | None = None
    _on_device: dict[int, Entries] = field(default_factory=dict)
    _references_on_device: dict[int, tuple[Reference, ...]] = field(default_factory=dict)

    def displace(self, step: Step) -> list[Move]:
        """Nothing."""
        del step
        return []

    def before(self, step: Step) -> list[Move]:
        """Nothing."""
        del step
        return []

    def after(self, step: Step, latents: Float[Tensor, "b c h w"]) -> list[Move]:
        """Nothing."""
        del step, latents
        return []

    def finish(self, latents: Float[Tensor, "b c h w"], num_steps: int) -> None:
        """Record the run and be ready for another."""
        if not bool(torch.isfinite(latents).all()):
            raise NonFiniteLatents(
                "the final latents hold NaN or infinity: the model overflowed its dtype (try bfloat16 or float32)"
            )
        spent = self._spent_of(latents)
        self.runs.append(FinishedRun(latents, spent / num_steps))
        self._spent = None

    def _references(self, number: int, device: torch.device) -> tuple[Reference, ...]:
        """A group's references on the device, copied there once."""
        if number not in self._references_on_device:
            moved = tuple(reference.to(device) for reference in self.groups[number].references)
            self._references_on_device[number] = moved
        return self._references_on_device[number]

    def _start(self, step: Step) -> None:
        """Forget a run that was broken off."""
        if step.index == 0:
            self._spent = None

    def _sources(self, number: int, device: torch.device) -> Entries | None:
        """What pushes a group at its strength, on the device, copied there once."""
        group = self.groups[number]
        sources = group.sources if group.preset.mode == "paper" else group.entries
        if sources is None:
            return None
        if number not in self._on_device:
            self._on_device[number] = sources.to(device)
        return self._on_device[number]

    def _spent_of(self, latents: Tensor) -> Tensor:
        if self._spent is None:
            self._spent = torch.zeros(latents.shape[0], dtype=torch.float32, device=latents.device)
        return self._spent

    def _limit(self, latents: Tensor, group: GuidedGroup, num_steps: int) -> Tensor:
        """What each image may still be pushed, so that its mean over all steps stays within `max_push`."""
        return (group.preset.max_push * num_steps - self._spent_of(latents)[group.rows]).clamp_min(0)

    def _spend(self, latents: Tensor, group: GuidedGroup, push: Push, *, share: float = 1.0) -> Move:
        """The move, counted by `share`: a push in each of two calls for one step is one push."""
        self._spent_of(latents)[group.rows] += share * push.relative
        return Move(group.rows, push.delta)


class Sizes(NamedTuple):
    """How strongly a group is pushed in a step of mode `denoised`: plain numbers, or numbers on the device."""

    eta: Number
    relax: Number
    reference_eta: Number

    @property
    def diversity_acts(self) -> bool:
        """Whether memory and fellow images do anything."""
        return bool(self.eta > 0) or bool(self.relax > 0)

    @property
    def references_act(self) -> bool:
        """Whether references do."""
        return bool(self.reference_eta > 0)


class GroupGuide(BatchGuide):
    """The modes of this engine. Nothing of a group enters another's arithmetic.

    A group of strength 0 without references is not touched.
    """

    def displace(self, step: Step) -> list[Move]:
        """Mode `released`: before the first of every `interval` steps."""
        self._start(step)
        moves = []
        for number, group in enumerate(self.groups):
            if group.preset.mode != "released" or not (group.entries is not None or group.references):
                continue
            if group.eta > 0 and is_interval_start(step.index, group.preset.interval):
                moves.append(self._released(number, step))
        return moves

    def _released(self, number: int, step: Step) -> Move:
        """The published step; each reference has β = −weight. Where no set tells prompts all are of one prompt."""
        group, noisy = self.groups[number], step.noisy[self.groups[number].rows]
        entries, references = self._sources(number, noisy.device), self._references(number, noisy.device)
        known = Entries(noisy.new_zeros(0, 0), noisy.new_zeros(0)) if entries is None else entries
        told = [other.entries.prompts.asked for other in references if other.entries.prompts is not None]
        asked = group.asked if group.asked is not None else (*told, noisy.new_ones(1))[0]
        push = released_push(
            noisy,
            asked,
            Past.of(known, asked),
            ReleasedScore.of(group.preset),
            eta=group.eta,
            references=[(Past.of(other, asked), -weight) for other, weight in references],
        )
        return self._spend(step.noisy, group, push)

    def ready(self, step: Step) -> Ready | None:
        """Settings: which of its two pushes each group has, and the step's share; numbers: their η, λ and η of references.

        None for the objective `vendi`, whose spectrum is found on the host's word.
        """
        sizes = [self._sizes(number, step) for number in range(len(self.groups))]
        acts = tuple((each.diversity_acts, each.references_act) for each in sizes)
        if not any(map(any, acts)) or any(group.preset.objective == "vendi" for group in self.groups):
            return None
        device = (self._spent_of(step.noisy) if self._spent is None else self._spent).device
        for number in range(len(self.groups)):  # looked up, once they are there
            self._sources(number, device)
            self._references(number, device)
        return Ready((step.share, acts), tuple(float(size) for each in sizes for size in each))

    def before(self, step: Step) -> list[Move]:
        """Mode `denoised`: pushes within the window, relaxed guidance in every step, references within their own window."""
        moves = []
        for number in range(len(self.groups)):
            sizes = self._sizes(number, step)
            held = sizes if step.numbers is None else Sizes(*step.numbers[3 * number : 3 * number + 3])
            if sizes.diversity_acts:
                moves.append(self._diversity(number, step, held))
            if sizes.references_act:
                moves.append(self._toward_references(number, step, held))
        return moves

    def _sizes(self, number: int, step: Step) -> "Sizes":
        group = self.groups[number]
        if group.preset.mode != "denoised":
            return Sizes(0.0, 0.0, 0.0)
        return Sizes(group.eta_of(step), group.relax_of(step), group.reference_eta_of(step))

    def _diversity(self, number: int, step: Step, sizes: "Sizes") -> Move:
        """The push from memory and fellow images, and relaxed guidance."""
        group, clean = self.groups[number], step.clean[self.groups[number].rows]
        push = denoised_push(
            clean,
            self._sources(number, clean.device),
            group.preset,
            eta=sizes.eta,
            limit=self._limit(step.clean, group, step.num_steps),
            extrapolation=_extrapolation(group, step),
            relax=sizes.relax,
        )
        return self._spend(step.clean, group, push, share=step.share)

    def _toward_references(self, number: int, step: Step, sizes: "Sizes") -> Move:
        """The push away from novelty's images and toward those of context, besides the other."""
        group, clean = self.groups[number], step.clean[self.groups[number].rows]
        push = references_push(
            clean,
            self._references(number, clean.device),
            group.preset,
            eta=sizes.reference_eta,
            limit=self._limit(step.clean, group, step.num_steps),
            extrapolation=_extrapolation(group, step),
        )
        return self._spend(step.clean, group, push, share=step.share)

    def after(self, step: Step, latents: Float[Tensor, "b c h w"]) -> list[Move]:
        """Mode `paper`: after every `interval`-th step."""
        moves = []
        for number, group in enumerate(self.groups):
            if not (group.preset.mode == "paper" and _is_time(group, step)):
                continue
            sources = self._sources(number, latents.device)
            if sources is not None:
                push = paper_push(
                    latents[group.rows],
                    sources,
                    group.preset,
                    eta=group.eta,
                    limit=self._limit(latents, group, step.num_steps),
                )
                moves.append(self._spend(latents, group, push))
        return moves


def _is_time(group: GuidedGroup, step: Step) -> bool:
    return group.eta > 0 and is_interval_step(step.index, group.preset.interval)


def _extrapolation(group: GuidedGroup, step: Step) -> Extrapolation:
    return Extrapolation(step.prompted[group.rows], step.guidance_scale[group.rows])


@runtime_checkable
class Method(Protocol):
    """A way to make the images of a device batch differ: this engine's own, or a rival's."""

    def guide(self, groups: Sequence[GuidedGroup]) -> BatchGuide:
        """What guides one run of these groups."""

    def around(self, pipe: Any, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """What else surrounds the run, such as a hook on what the denoiser reads. `seeds` are the images' own."""


@dataclass(frozen=True)
class Sparke:
    """This engine's modes, each group's by its preset."""

    def guide(self, groups: Sequence[GuidedGroup]) -> BatchGuide:
        """A GroupGuide."""
        return GroupGuide(list(groups))

    def around(self, pipe: Any, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Nothing."""
        del pipe, seeds
        return nullcontext()
