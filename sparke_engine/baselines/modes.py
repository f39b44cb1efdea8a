"""SPARKE as its paper and as its published code have it, under the rivals' interface."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from sparke_engine.baselines.rival import Rival
from sparke_engine.core.domains import check_counts, check_positive
from sparke_engine.diffusion.guide import BatchGuide, GroupGuide, GuidedGroup
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import PAPER, RELEASED, DiversityPreset, KernelName, Mode


@dataclass(frozen=True)
class _ModeRival(Rival):
    """A mode of the engine. The engine has to run under `preset(base)`, whose features are whole latents."""

    mode: ClassVar[Mode]

    def guide(self, groups: Sequence[GuidedGroup]) -> BatchGuide:
        """The engine's own guide. Raises InvalidArgument for a group under another mode's preset."""
        for group in groups:
            if group.preset.mode != self.mode:
                raise InvalidArgument(
                    f"this rival needs an engine under a preset of mode {self.mode!r}, got "
                    f"{group.preset.mode!r}: give it `rival.preset(base)`"
                )
        return GroupGuide(list(groups))


@dataclass(frozen=True)
class PaperMode(_ModeRival):
    """Algorithm 1 of arXiv 2506.10173: z becomes z − η‖z‖ĝ after every `interval`-th step; see `guidance/paper.py`."""

    mode: ClassVar[Mode] = "paper"
    eta: float = PAPER.eta
    interval: int = PAPER.interval
    latent_bandwidth: float = PAPER.latent_bandwidth
    conditional: bool = True

    def __post_init__(self) -> None:
        check_positive("mode paper", eta=self.eta, latent_bandwidth=self.latent_bandwidth)
        check_counts("mode paper", interval=self.interval)

    def preset(self, base: DiversityPreset) -> DiversityPreset:
        """The preset `paper` with these numbers and the base's prompt bandwidth."""
        return replace(
            PAPER,
            eta=self.eta,
            interval=self.interval,
            latent_bandwidth=self.latent_bandwidth,
            conditional=self.conditional,
            min_prompt_kernel=PAPER.min_prompt_kernel if self.conditional else 0.0,
            prompt_bandwidth=base.prompt_bandwidth,
            max_push=max(PAPER.max_push, 2 * self.eta),
        )


@dataclass(frozen=True)
class ReleasedMode(_ModeRival):
    """The step of the authors' published code, before the first of every `interval` steps; see `guidance/released.py`."""

    mode: ClassVar[Mode] = "released"
    eta: float = RELEASED.eta
    interval: int = RELEASED.interval
    latent_bandwidth: float = RELEASED.latent_bandwidth
    conditional: bool = True
    kernel: KernelName = "gaussian"

    def __post_init__(self) -> None:
        check_positive("mode released", eta=self.eta, latent_bandwidth=self.latent_bandwidth)
        check_counts("mode released", interval=self.interval)

    def preset(self, base: DiversityPreset) -> DiversityPreset:
        """The preset `released` with these numbers and the base's prompt bandwidth."""
        return replace(
            RELEASED,
            eta=self.eta,
            interval=self.interval,
            latent_bandwidth=self.latent_bandwidth,
            conditional=self.conditional,
            kernel=self.kernel,
            prompt_bandwidth=base.prompt_bandwidth,
        )
