"""The schedulers that can be guided: one row for each class."""

from dataclasses import dataclass
from typing import Any, Final

from sparke_engine.diffusion.schedulers import algebra, noise
from sparke_engine.diffusion.schedulers.counting import (
    one_call_a_step,
    pndm_calls,
    singlestep_calls,
    two_calls_a_step,
)
from sparke_engine.diffusion.schedulers.kind import Algebra, Level, SchedulerKind
from sparke_engine.diffusion.schedulers.noise import NoiseLevel
from sparke_engine.diffusion.schedulers.positions import by_counter, by_step_index, by_timestep
from sparke_engine.diffusion.schedulers.prediction import CleanPrediction
from sparke_engine.errors import UnsupportedScheduler

EPSILON_V: Final = ("epsilon", "v_prediction")
EPSILON_V_SAMPLE: Final = (*EPSILON_V, "sample")
ALL: Final = (*EPSILON_V_SAMPLE, "flow_prediction")
FLOW: Final = ("flow",)


@dataclass(frozen=True)
class SchedulerAdapter:
    """How to read one scheduler. Nothing here changes it."""

    scheduler: Any
    kind: SchedulerKind

    @property
    def num_calls(self) -> int:
        """How many times `step` is called in a whole run from the first timestep."""
        return len(self.scheduler.timesteps) - self.kind.trailing

    @property
    def tells_position(self) -> bool:
        """Whether the scheduler itself knows where its next call stands; else it is found by the timestep."""
        return self.kind.position is by_step_index

    def step_index(self, timestep: Any, expected: int | None = None) -> int:
        """Where in `scheduler.timesteps` the coming call of `step` stands, from 0. `expected`: after the last call."""
        return self.kind.position(self.scheduler, timestep, expected)

    def prediction(self, position: int, timestep: Any) -> CleanPrediction:
        """How x̂0 depends on the sample and the output at `position` = `step_index(timestep)`."""
        return self.kind.algebra(self.scheduler, self.noise_level(position, timestep), timestep)

    def noise_level(self, position: int, timestep: Any) -> NoiseLevel:
        """How noisy the latents are at `position`; in the second call for a step, where that evaluates the model."""
        return self.kind.level(self.scheduler, position, timestep)

    def calls_of_steps(self, start: int, num_calls: int) -> tuple[int, ...]:
        """How many calls each step takes, of a run of `num_calls` from `start`."""
        return self.kind.grouping(self.scheduler, start, num_calls)

    def last_sample_scale(self, position: int) -> float | None:
        """By how much more `last_sample` is to be moved than the sample at `position`; None where none is gone back to.

        A corrector makes the sample anew from that of the last step, and would undo a move of the sample alone.
        """
        is_kept = self.kind.kept_share is not None and self.scheduler.last_sample is not None
        if self.kind.kept_share is None or not is_kept or position >= len(self.scheduler.timesteps):
            return None
        return 1 / self.kind.kept_share(self.scheduler, position)


def adapter_for(scheduler: Any) -> SchedulerAdapter:
    """The adapter of a scheduler, or UnsupportedScheduler. Subclasses may step otherwise, so classes are matched exactly."""
    name = type(scheduler).__name__
    if name not in KINDS:
        raise UnsupportedScheduler(
            f"no guidance for the scheduler {name}; supported: {', '.join(sorted(KINDS))}. "
            "Swap it: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    kind = KINDS[name]
    found = scheduler.config.get("prediction_type", kind.prediction_types[0])
    if found not in kind.prediction_types and kind.prediction_types != FLOW:
        raise UnsupportedScheduler(
            f"no guidance for prediction type {found!r} of {name}; supported: {', '.join(kind.prediction_types)}"
        )
    reason = kind.refusal(scheduler)
    if reason is not None:
        raise UnsupportedScheduler(f"{name} cannot be guided as it is configured: {reason}")
    return SchedulerAdapter(scheduler, kind)


def noise_level(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """The noise level at `position` of a scheduler's timesteps."""
    return adapter_for(scheduler).noise_level(position, timestep)


def supported_schedulers() -> tuple[str, ...]:
    """Class names of the schedulers that can be guided."""
    return tuple(sorted(KINDS))


def _by_timestep(level: Level, of: Algebra, types: tuple[str, ...], **more: Any) -> SchedulerKind:
    return SchedulerKind(level, of, by_timestep, types, one_call_a_step, **more)


def _by_index(level: Level, of: Algebra, types: tuple[str, ...], **more: Any) -> SchedulerKind:
    return SchedulerKind(level, of, by_step_index, types, one_call_a_step, **more)


def _second_order(level: Level, of: Algebra, types: tuple[str, ...], **more: Any) -> SchedulerKind:
    return SchedulerKind(
        level, of, by_step_index, types, two_calls_a_step, calls="2, the last step 1", **more
    )


def _changes_size(scheduler: Any) -> str | None:
    if scheduler._scale_factors:  # noqa: SLF001 - set by configuration or by `set_scale_factors`
        return "it enlarges the latents on the way (scale_factors)"
    return None


CUT: Final = "x̂0 is seen as the scheduler clips or thresholds it; a push acts before that."

KINDS: Final[dict[str, SchedulerKind]] = {
    # α from `alphas_cumprod`
    "DDIMScheduler": _by_timestep(
        noise.of_alpha, algebra.preserving_cut, EPSILON_V_SAMPLE, draws="where eta > 0", note=CUT
    ),
    "DDIMParallelScheduler": _by_timestep(
        noise.of_alpha, algebra.preserving_cut, EPSILON_V_SAMPLE, draws="where eta > 0", note=CUT
    ),
    "DDPMScheduler": _by_timestep(
        noise.of_alpha, algebra.preserving_cut, EPSILON_V_SAMPLE, draws="yes", note=CUT
    ),
    "DDPMParallelScheduler": _by_timestep(
        noise.of_alpha, algebra.preserving_cut, EPSILON_V_SAMPLE, draws="yes", note=CUT
    ),
    "PNDMScheduler": SchedulerKind(
        noise.of_alpha,
        algebra.preserving,
        by_counter,
        EPSILON_V,
        pndm_calls,
        calls="first 2, then 1; Runge-Kutta steps 4",
        note="PLMS takes its first step twice; with `skip_prk_steps=False` the first three steps are Runge-Kutta's.",
    ),
    "LCMScheduler": _by_index(
        noise.of_alpha,
        algebra.consistency,
        EPSILON_V_SAMPLE,
        draws="yes",
        note=f"x̂0 is its `denoised`. {CUT}",
    ),
    "TCDScheduler": _by_index(noise.of_alpha, algebra.preserving, EPSILON_V_SAMPLE, draws="where eta > 0"),
    "CogVideoXDDIMScheduler": _by_timestep(noise.of_alpha, algebra.preserving, EPSILON_V_SAMPLE),
    "CogVideoXDPMScheduler": _by_timestep(noise.of_alpha, algebra.preserving, EPSILON_V_SAMPLE, draws="yes"),
    # σ̃ from `sigmas`, a variance-preserving sample
    "DPMSolverMultistepScheduler": _by_index(
        noise.of_solver, algebra.solving, ALL, draws="sde-dpmsolver++", note=CUT
    ),
    "DPMSolverSinglestepScheduler": SchedulerKind(
        noise.of_solver,
        algebra.solving,
        by_step_index,
        ALL,
        singlestep_calls,
        calls="1 to solver_order",
        draws="sde-dpmsolver++",
        note=f"A step of the guide is one of the solver, up to `solver_order` of the pipeline's. {CUT}",
    ),
    "DEISMultistepScheduler": _by_index(noise.of_solver, algebra.solving, ALL, note=CUT),
    "UniPCMultistepScheduler": _by_index(
        noise.of_solver,
        algebra.solving,
        ALL,
        kept_share=algebra.kept_by_unipc,
        note=CUT,
    ),
    "SASolverScheduler": _by_index(
        noise.of_solver,
        algebra.solving,
        ALL,
        draws="yes",
        kept_share=algebra.kept_by_sa_solver,
        note=CUT,
    ),
    # σ̃ from `sigmas`, a sample that is kept unscaled
    "EulerDiscreteScheduler": _by_index(
        noise.of_sigma, algebra.exploding, EPSILON_V_SAMPLE, note="`s_churn` is refused."
    ),
    "EulerAncestralDiscreteScheduler": _by_index(noise.of_sigma, algebra.exploding, EPSILON_V, draws="yes"),
    "LMSDiscreteScheduler": _by_index(
        noise.of_sigma, algebra.exploding, EPSILON_V_SAMPLE, note="Needs scipy."
    ),
    "HeunDiscreteScheduler": _second_order(noise.of_sigma, algebra.exploding_cut, EPSILON_V_SAMPLE, note=CUT),
    "KDPM2DiscreteScheduler": _second_order(noise.of_midpoint, algebra.exploding, EPSILON_V),
    "KDPM2AncestralDiscreteScheduler": _second_order(
        noise.of_midpoint, algebra.exploding, EPSILON_V, draws="yes"
    ),
    "DPMSolverSDEScheduler": _second_order(
        noise.of_stochastic_midpoint,
        algebra.exploding,
        EPSILON_V,
        draws="yes",
        note="Needs torchsde. Its noise comes from a seed of its own, not from the pipeline's generator.",
    ),
    "EDMEulerScheduler": _by_index(
        noise.of_sigma,
        algebra.preconditioned,
        EPSILON_V,
        note="`s_churn` and `pred_original_sample` are refused.",
    ),
    "EDMDPMSolverMultistepScheduler": _by_index(
        noise.of_sigma, algebra.preconditioned_cut, EPSILON_V, draws="sde-dpmsolver++", note=CUT
    ),
    # flow matching
    "FlowMatchEulerDiscreteScheduler": _by_index(
        noise.of_either_flow_time,
        algebra.flowing_either_way,
        FLOW,
        draws="where stochastic_sampling",
        note="`s_churn` and `per_token_timesteps` are refused.",
    ),
    "FlowMatchHeunDiscreteScheduler": _second_order(
        noise.of_flow_time, algebra.flowing, FLOW, note="`s_churn` is refused."
    ),
    "FlowMatchLCMScheduler": _by_index(
        noise.of_flow_time,
        algebra.flowing,
        FLOW,
        draws="yes",
        refusal=_changes_size,
        note="`scale_factors`, which enlarge the latents on the way, are refused.",
    ),
    "SCMScheduler": _by_index(
        noise.of_angle,
        algebra.turning,
        ("trigflow",),
        draws="yes",
        trailing=1,
        note="Its last timestep, 0, is no step.",
    ),
}
