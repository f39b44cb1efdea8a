"""How noisy the latents of a step are, in terms that do not depend on the scheduler."""

import math
from typing import Any, NamedTuple


class NoiseLevel(NamedTuple):
    """The latents that a scheduler keeps are `signal` · x0 + `noise` · ε."""

    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """σ̃ = noise/signal; infinite where no signal is left."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def scale(self) -> float:
        """√(signal² + noise²): what to divide latents by to have them variance-preserving."""
        return math.hypot(self.signal, self.noise)


def noise_level(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """The noise level at `position` of the scheduler's timesteps, for any scheduler that can be guided.

    Schedulers without `sigmas` are variance-preserving by `alphas_cumprod`, or keep an angle (TrigFlow). Others have σ̃
    there, or t of flow matching; those that start from more than unit noise keep x0 + σ̃·ε, the rest a
    variance-preserving sum. In the midpoint of a step of second order it is the level at the step's end.
    """
    if scheduler.config.get("prediction_type") == "trigflow":
        angle = float(scheduler.timesteps[position])
        return NoiseLevel(math.cos(angle), math.sin(angle))
    if getattr(scheduler, "sigmas", None) is None:
        alpha_squared = float(scheduler.alphas_cumprod[int(timestep)])
        return NoiseLevel(math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))
    sigma = float(scheduler.sigmas[position])
    if _is_flow(scheduler):
        time = 1 - sigma if scheduler.config.get("invert_sigmas", False) else sigma
        return NoiseLevel(1 - time, time)
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
        return NoiseLevel(1.0, sigma)
    return NoiseLevel(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("use_flow_sigmas", False)
        or config.get("prediction_type") == "flow_prediction"
    )
