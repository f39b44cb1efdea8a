"""The guide of a device batch: each group of images is pushed by its own arithmetic, on its own rows."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.diffusion.seam import Move, Step
from sparke_engine.errors import NonFiniteLatents
from sparke_engine.guidance.denoised import Extrapolation, denoised_push
from sparke_engine.guidance.paper import paper_push
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push
from sparke_engine.guidance.schedule import is_interval_step, window_weight


@dataclass(frozen=True)
class GuidedGroup:
    """Images that share a prompt and a memory: their rows in the batch, and what pushes them how strongly.

    `keeps_guidance`: classifier-free guidance carries a wish of its own, a negative prompt, and is not relaxed.
    """

    rows: slice
    preset: DiversityPreset
    strength: float
    entries: Entries | None
    keeps_guidance: bool = False

    @property
    def eta(self) -> float:
        """η at the group's strength."""
        return self.preset.eta_at(self.strength)

    def eta_of(self, step: Step) -> float:
        """η at a step, 0 outside the window."""
        return self.eta * window_weight(step.index, step.num_steps, self.preset.window)

    def relax_of(self, step: Step) -> float:
        """λ at a step: how far classifier-free guidance is relaxed."""
        if self.keeps_guidance or step.guidance_scale <= 1:
            return 0.0
        return self.preset.relax_at(self.strength)


@dataclass(frozen=True)
class FinishedRun:
    """The end of one run: final latents in fp32, and each image's total push, the mean over all steps of `Push.relative`."""

    latents: Float[Tensor, "b c h w"]
    pushes: Float[Tensor, " b"]


@dataclass
class GroupGuide:
    """A Guide for groups. Nothing of a group enters another's arithmetic; a group of strength 0 is never touched."""

    groups: list[GuidedGroup]
    runs: list[FinishedRun] = field(default_factory=list)
    _spent: Tensor | None = None
    _on_device: dict[int, Entries] = field(default_factory=dict)

    def before(self, step: Step) -> list[Move]:
        """Mode `denoised`: pushes within the window, relaxed guidance in every step."""
        if step.index == 0:
            self._spent = None  # of a run that was broken off
        moves = []
        for number, group in enumerate(self.groups):
            eta, relax = group.eta_of(step), group.relax_of(step)
            if group.preset.mode == "denoised" and max(eta, relax) > 0:
                clean = step.clean[group.rows]
                push = denoised_push(
                    clean,
                    self._entries(number, clean.device),
                    group.preset,
                    eta=eta,
                    limit=self._limit(step.clean, group, step.num_steps),
                    extrapolation=Extrapolation(step.prompted[group.rows], step.guidance_scale),
                    relax=relax,
                )
                moves.append(self._spend(group, push))
        return moves

    def after(self, step: Step, latents: Float[Tensor, "b c h w"]) -> list[Move]:
        """Mode `paper`: after every `interval`-th step."""
        moves = []
        for number, group in enumerate(self.groups):
            is_time = is_interval_step(step.index, group.preset.interval)
            if group.preset.mode == "paper" and group.eta > 0 and is_time and group.entries is not None:
                push = paper_push(
                    latents[group.rows],
                    self._entries(number, latents.device),
                    group.preset,
                    eta=group.eta,
                    limit=self._limit(latents, group, step.num_steps),
                )
                moves.append(self._spend(group, push))
        return moves

    def finish(self, latents: Float[Tensor, "b c h w"], num_steps: int) -> None:
        """Record the run and be ready for another."""
        if not bool(torch.isfinite(latents).all()):
            raise NonFiniteLatents(
                "the final latents hold NaN or infinity: the model overflowed its dtype (try bfloat16 or float32)"
            )
        spent = self._spent_of(latents)
        self.runs.append(FinishedRun(latents, spent / num_steps))
        self._spent = None

    def _entries(self, number: int, device: torch.device) -> Entries | None:
        entries = self.groups[number].entries
        if entries is None:
            return None
        if number not in self._on_device:
            self._on_device[number] = entries.to(device)
        return self._on_device[number]

    def _spent_of(self, latents: Tensor) -> Tensor:
        if self._spent is None:
            self._spent = torch.zeros(latents.shape[0], device=latents.device)
        return self._spent

    def _limit(self, latents: Tensor, group: GuidedGroup, num_steps: int) -> Tensor:
        """What each image may still be pushed, so that its mean over all steps stays within `max_push`."""
        return (group.preset.max_push * num_steps - self._spent_of(latents)[group.rows]).clamp_min(0)

    def _spend(self, group: GuidedGroup, push: Push) -> Move:
        if self._spent is not None:
            self._spent[group.rows] += push.relative
        return Move(group.rows, push.delta)
