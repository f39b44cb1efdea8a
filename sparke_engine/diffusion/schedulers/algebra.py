"""x̂0 of each family of schedulers at a level of noise: latents z = α·x0 + σ·ε, an output o of the configured type."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from sparke_engine.diffusion.schedulers.noise import NoiseLevel, of_solver
from sparke_engine.diffusion.schedulers.prediction import Bound, CleanPrediction
from sparke_engine.errors import UnsupportedScheduler


def preserving(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """α, σ with α² + σ² = 1: PNDM, TCD, CogVideoX. The solvers read the same formulas under flow sigmas, α + σ = 1."""
    del timestep
    match scheduler.config.prediction_type:
        case "epsilon":
            if level.signal == 0:
                return CleanPrediction(math.inf, -math.inf)
            return CleanPrediction(1 / level.signal, -level.noise / level.signal)
        case "v_prediction":
            return CleanPrediction(level.signal, -level.noise)
        case "sample":
            return CleanPrediction(0.0, 1.0)
        case other:
            raise _unknown_prediction(scheduler, other)


def preserving_cut(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """The same where the scheduler clips or thresholds x̂0, as models of pixels have it: DDIM, DDPM."""
    return replace(preserving(scheduler, level, timestep), bound=_bound(scheduler, clips=True))


def consistency(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """LCM goes on from c_out·x̂0 + c_skip·z, which is z itself at timestep 0."""
    prediction = preserving(scheduler, level, timestep)
    c_skip, c_out = map(float, scheduler.get_scalings_for_boundary_condition_discrete(int(timestep)))
    cut = _bound(scheduler, clips=True)
    bound: Bound | None = None
    if cut is not None and c_out != 0:

        def bound(sample: Tensor, clean: Tensor) -> Tensor:
            return c_out * cut(sample, (clean - c_skip * sample) / c_out) + c_skip * sample

    if not prediction.can_push:
        return prediction
    return CleanPrediction(c_out * prediction.of_sample + c_skip, c_out * prediction.of_output, bound)


def solving(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """The solvers of DPM's family; for flow_prediction they take t = `sigmas`, whatever those are."""
    if scheduler.config.prediction_type == "flow_prediction":
        time = level.noise if scheduler.config.use_flow_sigmas else level.ratio
        prediction = CleanPrediction(1.0, -time)
    else:
        prediction = preserving(scheduler, level, timestep)
    return replace(prediction, bound=_bound(scheduler))


def exploding(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """α = 1, σ = σ̃: Euler, LMS, KDPM2."""
    del timestep
    sigma = level.noise
    match scheduler.config.prediction_type:
        case "epsilon":
            return CleanPrediction(1.0, -sigma)
        case "v_prediction":
            return CleanPrediction(1 / (1 + sigma**2), -sigma / math.sqrt(1 + sigma**2))
        case "sample" | "original_sample":
            return CleanPrediction(0.0, 1.0)
        case other:
            raise _unknown_prediction(scheduler, other)


def exploding_cut(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """The same where the scheduler clips x̂0: Heun."""
    bound = _bound(scheduler, thresholds=False, clips=True)
    return replace(exploding(scheduler, level, timestep), bound=bound)


def preconditioned(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """EDM: x̂0 = s²/(σ²+s²)·z ± σs/√(σ²+s²)·o for the data's deviation s; minus under v_prediction."""
    del timestep
    data, sigma = float(scheduler.config.sigma_data), level.noise
    sign = -1.0 if scheduler.config.prediction_type == "v_prediction" else 1.0
    total = sigma**2 + data**2
    return CleanPrediction(data**2 / total, sign * sigma * data / math.sqrt(total))


def preconditioned_cut(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """The same where the scheduler thresholds x̂0: EDM's DPM++."""
    return replace(preconditioned(scheduler, level, timestep), bound=_bound(scheduler))


def flowing(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """Flow matching: o = ε − x0."""
    del scheduler, timestep
    return CleanPrediction(1.0, -level.noise)


def flowing_either_way(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """The same; under `invert_sigmas` o = x0 − ε."""
    prediction = flowing(scheduler, level, timestep)
    return replace(prediction, of_output=level.noise) if scheduler.config.invert_sigmas else prediction


def turning(scheduler: Any, level: NoiseLevel, timestep: Any) -> CleanPrediction:
    """TrigFlow: o = α·ε − σ·x0, as in v_prediction."""
    del scheduler, timestep
    return CleanPrediction(level.signal, -level.noise)


def kept_by_unipc(scheduler: Any, position: int) -> float:
    """σ_t/σ_s from the last place s to t, or α_t/α_s where the solver keeps noises."""
    last, now = of_solver(scheduler, position - 1, None), of_solver(scheduler, position, None)
    return now.noise / last.noise if scheduler.predict_x0 else now.signal / last.signal


def kept_by_sa_solver(scheduler: Any, position: int) -> float:
    """As UniPC's, times exp(−τ²h) for the log signal-to-noise h gained and the τ of the last step, where it keeps x̂0."""
    share = kept_by_unipc(scheduler, position)
    if not scheduler.predict_x0:
        return share
    last, now = of_solver(scheduler, position - 1, None), of_solver(scheduler, position, None)
    gained = math.log(last.ratio / now.ratio)
    return share * math.exp(-(float(scheduler.tau_func(scheduler.timestep_list[-1])) ** 2) * gained)


def _unknown_prediction(scheduler: Any, prediction_type: str) -> UnsupportedScheduler:
    return UnsupportedScheduler(
        f"no guidance for prediction type {prediction_type!r} of {type(scheduler).__name__}"
    )


def _bound(scheduler: Any, *, thresholds: bool = True, clips: bool = False) -> Bound | None:
    """How the scheduler cuts x̂0, if it does. Configurations carry entries of classes that know more: each says which it heeds."""
    config = scheduler.config
    if thresholds and config.thresholding:
        return lambda _sample, clean: scheduler._threshold_sample(clean)  # noqa: SLF001 - the scheduler's own cut
    if clips and config.clip_sample:
        return lambda _sample, clean: clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    return None
