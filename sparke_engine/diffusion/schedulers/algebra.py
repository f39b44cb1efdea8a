"""x̂0 of each family of schedulers, at one place of a run. What differs is only where a scheduler keeps α and σ."""

import math
from typing import Any

from torch import Tensor

from sparke_engine.diffusion.schedulers.prediction import (
    Bound,
    CleanPrediction,
    variance_exploding,
    variance_preserving,
)


def of_cumulative_alpha(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """α² = `alphas_cumprod` at the timestep: DDIM, DDPM and their kin."""
    del position
    alpha_squared = float(scheduler.alphas_cumprod[int(timestep)])
    return variance_preserving(scheduler, math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))


def of_clipped_alpha(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """The same where the scheduler cuts x̂0, as models of pixels have it."""
    prediction = of_cumulative_alpha(scheduler, position, timestep)
    return CleanPrediction(prediction.of_sample, prediction.of_output, _bound(scheduler, clips=True))


def of_consistency(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """LCM goes on from c_out·x̂0 + c_skip·z, which is z itself at timestep 0."""
    prediction = of_cumulative_alpha(scheduler, position, timestep)
    c_skip, c_out = map(float, scheduler.get_scalings_for_boundary_condition_discrete(int(timestep)))
    cut = _bound(scheduler, clips=True)
    bound: Bound | None = None
    if cut is not None and c_out != 0:

        def bound(sample: Tensor, clean: Tensor) -> Tensor:
            return c_out * cut(sample, (clean - c_skip * sample) / c_out) + c_skip * sample

    if not prediction.can_push:
        return prediction
    return CleanPrediction(c_out * prediction.of_sample + c_skip, c_out * prediction.of_output, bound)


def of_solver_sigma(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """σ̃ = `sigmas` with a variance-preserving sample, or under `use_flow_sigmas` α = 1 − σ: the solvers of DPM's family."""
    del timestep
    sigma = float(scheduler.sigmas[position])
    if scheduler.config.prediction_type == "flow_prediction":
        prediction = CleanPrediction(1.0, -sigma)
    elif scheduler.config.use_flow_sigmas:
        prediction = variance_preserving(scheduler, 1 - sigma, sigma)
    else:
        alpha = 1 / math.sqrt(1 + sigma**2)
        prediction = variance_preserving(scheduler, alpha, sigma * alpha)
    return CleanPrediction(prediction.of_sample, prediction.of_output, _bound(scheduler))


def of_exploding_sigma(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """σ̃ = `sigmas` with a sample that is kept unscaled: Euler, LMS."""
    del timestep
    return variance_exploding(scheduler, float(scheduler.sigmas[position]))


def of_clipped_sigma(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """The same where the scheduler cuts x̂0: Heun."""
    prediction = of_exploding_sigma(scheduler, position, timestep)
    bound = _bound(scheduler, thresholds=False, clips=True)
    return CleanPrediction(prediction.of_sample, prediction.of_output, bound)


def of_midpoint_sigma(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """KDPM2: the second call for a step is in its middle, at `sigmas_interpol`, which the ancestral one keeps one earlier."""
    if scheduler.state_in_first_order:
        return of_exploding_sigma(scheduler, position, timestep)
    place = position - 1 if hasattr(scheduler, "sigmas_up") else position
    return variance_exploding(scheduler, float(scheduler.sigmas_interpol[place]))


def of_stochastic_midpoint(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """DPM++ SDE: the second call is at `mid_point_sigma`."""
    if scheduler.state_in_first_order:
        return of_exploding_sigma(scheduler, position, timestep)
    return variance_exploding(scheduler, float(scheduler.mid_point_sigma))


def of_preconditioned_sigma(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """EDM: x̂0 = s²/(σ²+s²)·z ± σs/√(σ²+s²)·o for the data's deviation s; minus under v_prediction."""
    del timestep
    sigma, data = float(scheduler.sigmas[position]), float(scheduler.config.sigma_data)
    sign = -1.0 if scheduler.config.prediction_type == "v_prediction" else 1.0
    total = sigma**2 + data**2
    return CleanPrediction(data**2 / total, sign * sigma * data / math.sqrt(total))


def of_bounded_preconditioned_sigma(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """The same where the scheduler cuts x̂0: EDM's DPM++."""
    prediction = of_preconditioned_sigma(scheduler, position, timestep)
    return CleanPrediction(prediction.of_sample, prediction.of_output, _bound(scheduler))


def of_flow_time(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """Flow matching: t = `sigmas`."""
    del timestep
    return CleanPrediction(1.0, -float(scheduler.sigmas[position]))


def of_either_flow_time(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """The same; under `invert_sigmas` the noise is at 0, and o points from it to the image."""
    if not scheduler.config.invert_sigmas:
        return of_flow_time(scheduler, position, timestep)
    return CleanPrediction(1.0, 1 - float(scheduler.sigmas[position]))


def of_angle(scheduler: Any, position: int, timestep: Any) -> CleanPrediction:
    """TrigFlow: z = cos(s)·x0 + sin(s)·ε at the angle s, so x̂0 = cos(s)·z − sin(s)·o."""
    del timestep
    angle = float(scheduler.timesteps[position])
    return CleanPrediction(math.cos(angle), -math.sin(angle))


def kept_by_unipc(scheduler: Any, position: int) -> float:
    """σ_t/σ_s from the last place s to t, or α_t/α_s where the solver keeps noises."""
    (last_alpha, last_sigma), (alpha, sigma) = _levels(scheduler, position - 1), _levels(scheduler, position)
    return sigma / last_sigma if scheduler.predict_x0 else alpha / last_alpha


def kept_by_sa_solver(scheduler: Any, position: int) -> float:
    """As UniPC's, times exp(−τ²h) for the log signal-to-noise h gained and the τ of the last step, where it keeps x̂0."""
    share = kept_by_unipc(scheduler, position)
    if not scheduler.predict_x0:
        return share
    (last_alpha, last_sigma), (alpha, sigma) = _levels(scheduler, position - 1), _levels(scheduler, position)
    gained = math.log(alpha / sigma) - math.log(last_alpha / last_sigma)
    return share * math.exp(-(float(scheduler.tau_func(scheduler.timestep_list[-1])) ** 2) * gained)


def _levels(scheduler: Any, position: int) -> tuple[float, float]:
    """α and σ of a solver's place."""
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[position])  # noqa: SLF001 - its own reading
    return float(alpha), float(sigma)


def _bound(scheduler: Any, *, thresholds: bool = True, clips: bool = False) -> Bound | None:
    """How the scheduler cuts x̂0, if it does. Configurations carry entries of classes that know more: each says which it heeds."""
    config = scheduler.config
    if thresholds and config.thresholding:
        return lambda _sample, clean: scheduler._threshold_sample(clean)  # noqa: SLF001 - the scheduler's own cut
    if clips and config.clip_sample:
        return lambda _sample, clean: clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    return None
