"""What each scheduler makes of the model's output: x̂0 is affine in it, so a push of x̂0 is a shift of the output.

Write x̂0 = a·z + b·o for the sample z (scaled as the scheduler keeps it) and the model's output o. Then o′ = o − δ/b
makes x̂0′ = x̂0 − δ, and whatever else the scheduler derives from o (a noise, a score, its history) agrees with it.
With α, σ of the variance-preserving form and σ̃ = σ/α, or t of flow matching:

    scheduler                     epsilon          v_prediction            sample   flow
    DDIM, PNDM, DPM++, UniPC      1/α, −σ/α        α, −σ                   0, 1     1, −t
    Euler, Euler ancestral        1, −σ̃            1/(1+σ̃²), −σ̃/√(1+σ̃²)    0, 1
    flow-match Euler                                                                1, −t

Where α = 0 under epsilon, or b = 0 at the end of the noise, x̂0 does not depend on the output: no push.
DDIM's `clip_sample` and dynamic thresholding act after this and may cut a push; latent models use neither.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.errors import UnsupportedScheduler


@dataclass(frozen=True)
class CleanPrediction:
    """x̂0 = `of_sample` · z + `of_output` · o."""

    of_sample: float
    of_output: float

    @property
    def can_push(self) -> bool:
        """Whether x̂0 depends on the output, finitely."""
        return self.of_output != 0 and math.isfinite(self.of_sample) and math.isfinite(self.of_output)

    def clean(self, sample: Float[Tensor, "*s"], output: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """x̂0."""
        return self.of_sample * sample + self.of_output * output

    def shifted(self, output: Float[Tensor, "*s"], delta: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The output whose x̂0 is the old one less δ; where δ is 0, the old one to the bit."""
        return torch.where(delta == 0, output, output - delta / self.of_output)


@dataclass(frozen=True)
class SchedulerAdapter:
    """How to read one class of schedulers. Nothing here changes the scheduler, but for `forget_last_sample`."""

    scheduler: Any
    _index: Callable[[Any, Any], int]
    _prediction: Callable[[Any, int, Any], CleanPrediction]

    @property
    def num_steps(self) -> int:
        """How many times `step` is called in a whole run: one more than the inference steps under PLMS."""
        return len(self.scheduler.timesteps)

    def step_index(self, timestep: Any) -> int:
        """Where in `scheduler.timesteps` the coming call of `step` stands, from 0."""
        return self._index(self.scheduler, timestep)

    def prediction(self, step: int, timestep: Any) -> CleanPrediction:
        """How x̂0 depends on the sample and the output at `step` = `step_index(timestep)`."""
        return self._prediction(self.scheduler, step, timestep)

    def is_provisional(self, step: int) -> bool:
        """True where the latents after this step are thrown away: PLMS takes its first step twice."""
        return type(self.scheduler).__name__ == "PNDMScheduler" and step == 0 and self.num_steps > 1

    def ignores_sample(self, step: int) -> bool:
        """True where the scheduler goes on from a sample of its own: PLMS in the second call for its first step."""
        return type(self.scheduler).__name__ == "PNDMScheduler" and step == 1

    def forget_last_sample(self) -> None:
        """Say that the latents were moved. UniPC would correct them back from where it last was."""
        if type(self.scheduler).__name__ == "UniPCMultistepScheduler":
            self.scheduler.last_sample = None


def adapter_for(scheduler: Any) -> SchedulerAdapter:
    """The adapter of a scheduler, or UnsupportedScheduler. Subclasses may step otherwise, so classes are matched exactly."""
    name = type(scheduler).__name__
    if name not in _ADAPTERS:
        raise UnsupportedScheduler(
            f"no guidance for the scheduler {name}; supported: {', '.join(sorted(_ADAPTERS))}. "
            "Swap it: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    if name == "PNDMScheduler" and not scheduler.config.skip_prk_steps:
        raise UnsupportedScheduler(
            "PNDMScheduler is guided with skip_prk_steps=True only (its Runge-Kutta steps reuse latents)"
        )
    index, prediction = _ADAPTERS[name]
    return SchedulerAdapter(scheduler, index, prediction)


def supported_schedulers() -> tuple[str, ...]:
    """Class names of the schedulers that can be guided."""
    return tuple(sorted(_ADAPTERS))


def _index_by_timestep(scheduler: Any, timestep: Any) -> int:
    places = (scheduler.timesteps == timestep).nonzero()
    if len(places) == 0:
        raise UnsupportedScheduler(
            f"timestep {timestep} is not one of the scheduler's {scheduler.timesteps.tolist()}"
        )
    return int(places[0].item())


def _index_by_counter(scheduler: Any, timestep: Any) -> int:
    del timestep  # PLMS meets its second timestep twice
    return int(scheduler.counter)


def _index_by_step_index(scheduler: Any, timestep: Any) -> int:
    if scheduler.step_index is not None:
        return int(scheduler.step_index)
    if scheduler.begin_index is not None:
        return int(scheduler.begin_index)
    if isinstance(timestep, Tensor):
        timestep = timestep.to(scheduler.timesteps.device)
    return int(scheduler.index_for_timestep(timestep))


def _of_cumulative_alpha(scheduler: Any, step: int, timestep: Any) -> CleanPrediction:
    del step
    alpha_squared = float(scheduler.alphas_cumprod[int(timestep)])
    return _variance_preserving(scheduler, math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))


def _of_solver_sigma(scheduler: Any, step: int, timestep: Any) -> CleanPrediction:
    del timestep
    sigma = float(scheduler.sigmas[step])
    if scheduler.config.prediction_type == "flow_prediction":
        return CleanPrediction(1.0, -sigma)
    if scheduler.config.use_flow_sigmas:
        return _variance_preserving(scheduler, 1 - sigma, sigma)
    alpha = 1 / math.sqrt(1 + sigma**2)
    return _variance_preserving(scheduler, alpha, sigma * alpha)


def _of_euler_sigma(scheduler: Any, step: int, timestep: Any) -> CleanPrediction:
    del timestep
    sigma = float(scheduler.sigmas[step])
    match scheduler.config.prediction_type:
        case "epsilon":
            return CleanPrediction(1.0, -sigma)
        case "v_prediction":
            return CleanPrediction(1 / (1 + sigma**2), -sigma / math.sqrt(1 + sigma**2))
        case "sample" | "original_sample":
            return CleanPrediction(0.0, 1.0)
        case other:
            raise _unknown_prediction(scheduler, other)


def _of_flow_time(scheduler: Any, step: int, timestep: Any) -> CleanPrediction:
    del timestep
    return CleanPrediction(1.0, -float(scheduler.sigmas[step]))


def _variance_preserving(scheduler: Any, alpha: float, sigma: float) -> CleanPrediction:
    match scheduler.config.prediction_type:
        case "epsilon":
            if alpha == 0:
                return CleanPrediction(math.inf, -math.inf)
            return CleanPrediction(1 / alpha, -sigma / alpha)
        case "v_prediction":
            return CleanPrediction(alpha, -sigma)
        case "sample":
            return CleanPrediction(0.0, 1.0)
        case other:
            raise _unknown_prediction(scheduler, other)


def _unknown_prediction(scheduler: Any, prediction_type: str) -> UnsupportedScheduler:
    return UnsupportedScheduler(
        f"no guidance for prediction type {prediction_type!r} of {type(scheduler).__name__}; "
        "supported: epsilon, v_prediction, sample, flow_prediction"
    )


_ADAPTERS: dict[str, tuple[Callable[[Any, Any], int], Callable[[Any, int, Any], CleanPrediction]]] = {
    "DDIMScheduler": (_index_by_timestep, _of_cumulative_alpha),
    "PNDMScheduler": (_index_by_counter, _of_cumulative_alpha),
    "EulerDiscreteScheduler": (_index_by_step_index, _of_euler_sigma),
    "EulerAncestralDiscreteScheduler": (_index_by_step_index, _of_euler_sigma),
    "DPMSolverMultistepScheduler": (_index_by_step_index, _of_solver_sigma),
    "UniPCMultistepScheduler": (_index_by_step_index, _of_solver_sigma),
    "FlowMatchEulerDiscreteScheduler": (_index_by_step_index, _of_flow_time),
}
