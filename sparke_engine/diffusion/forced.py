"""Forced runs: a stock pipeline denoises towards given latents, and is asked at each step what it would have made of them.

In every step x̂0 is moved to the given latents x, so the latents stay z_k = α_k x + σ_k ε with the run's own noise ε, the
same for both prompts, on every scheduler and in every layout that the seam knows: no family needs code of its own. ε is
what the run began with; a stochastic scheduler draws it anew in each step, from the same generators. Before it is moved, x̂0
is the denoiser's restoration of x at that level of noise under the prompt, and ‖x̂0 − x‖² its error. A step that cannot move
x̂0, where no signal is left, stays unforced: the latents leave it as the scheduler alone would have them.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.guide import BatchGuide, FinishedRun, GuidedGroup, Method
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.steps import Step
from sparke_engine.errors import InvalidArgument


@dataclass
class ForcedGuide(BatchGuide):
    """Moves x̂0 to `target` in every step and keeps how far from it x̂0 was."""

    target: Tensor = field(default_factory=lambda: torch.empty(0))
    errors: list[Tensor] = field(default_factory=list)

    def before(self, step: Step) -> list[Move]:
        """The move, after the error is noted: the mean square over all numbers of an image."""
        target = self.target.to(step.clean)
        self.errors.append((step.prompted - target).flatten(1).square().mean(1).cpu())
        return [Move(slice(None), step.clean - target)]


@dataclass
class Forced:
    """The Method of forced runs; the `latest` guide keeps what was measured."""

    target: Float[Tensor, "n c h w"]
    latest: ForcedGuide | None = None

    def guide(self, groups: Sequence[GuidedGroup]) -> BatchGuide:
        """A ForcedGuide."""
        self.latest = ForcedGuide(groups, target=self.target)
        return self.latest

    def around(self, pipe: Any, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Nothing."""
        del pipe, seeds
        return nullcontext()


@dataclass
class KeptRuns:
    """Another Method, whose `latest` guide is kept with the final latents of its runs; those before it are let go."""

    method: Method
    latest: BatchGuide | None = None

    def guide(self, groups: Sequence[GuidedGroup]) -> BatchGuide:
        """The other's."""
        self.latest = self.method.guide(groups)
        return self.latest

    def around(self, pipe: Any, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """The other's."""
        return self.method.around(pipe, seeds)

    @property
    def last_run(self) -> FinishedRun:
        """The end of the latest run. InvalidArgument where there is none."""
        if self.latest is None or not self.latest.runs:
            raise InvalidArgument("no run has ended by this method: make images with it first")
        return self.latest.runs[-1]


@contextmanager
def method_of(engine: PipelineEngine, method: Method) -> Iterator[None]:
    """Within the block the engine makes images by another method."""
    before, engine.method = engine.method, method
    try:
        yield
    finally:
        engine.method = before


def restoration_errors(
    engine: PipelineEngine,
    latents: Float[Tensor, "n c h w"],
    prompts: Sequence[str],
    plan: DenoisingPlan,
    *,
    first_seed: int,
) -> Float[Tensor, "n k"]:
    """‖x̂0_k − x‖²/numbers of each image under its prompt, at the k levels of noise of the plan's steps; fp32 on the CPU.

    Image i begins with the noise of seed `first_seed` + i, so two prompts can be compared on equal noise. One run of the
    denoiser, without decoding. A step whose output cannot move x̂0 (no signal left) is no level.
    """
    forced = Forced(latents)
    groups = [
        SampleGroup(prompt, "", (first_seed + index,), 0.0, None) for index, prompt in enumerate(prompts)
    ]
    with method_of(engine, forced), suppress(_AllStepsDone):
        engine.generate(groups, plan, _stop_before_decoding)
    return torch.stack([] if forced.latest is None else forced.latest.errors, 1)


class _AllStepsDone(Exception):
    """Nothing is wrong: the images need not be decoded."""


def _stop_before_decoding(done: int, num_steps: int) -> None:
    if done == num_steps:
        raise _AllStepsDone
