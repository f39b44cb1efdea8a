"""How noisy the latents of a step are, by where each family of schedulers keeps it."""

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


def of_alpha(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """DDIM, DDPM and their kin: signal² = `alphas_cumprod` at the timestep, variance-preserving."""
    del position
    alpha_squared = float(scheduler.alphas_cumprod[int(timestep)])
    return NoiseLevel(math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared))


def of_solver(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """The solvers of DPM's family: σ̃ = `sigmas`, variance-preserving; under `use_flow_sigmas` they are t of flow matching."""
    del timestep
    sigma = float(scheduler.sigmas[position])
    if scheduler.config.use_flow_sigmas:
        return NoiseLevel(1 - sigma, sigma)
    return NoiseLevel(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))


def of_sigma(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """Euler, LMS, Heun, EDM: σ̃ = `sigmas`, and the sample is kept unscaled."""
    del timestep
    return NoiseLevel(1.0, float(scheduler.sigmas[position]))


def of_midpoint(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """KDPM2: the second call for a step is in its middle, at `sigmas_interpol`, which the ancestral one keeps one earlier."""
    if scheduler.state_in_first_order:
        return of_sigma(scheduler, position, timestep)
    place = position - 1 if hasattr(scheduler, "sigmas_up") else position
    return NoiseLevel(1.0, float(scheduler.sigmas_interpol[place]))


def of_stochastic_midpoint(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """DPM++ SDE: the second call is at `mid_point_sigma`."""
    if scheduler.state_in_first_order:
        return of_sigma(scheduler, position, timestep)
    return NoiseLevel(1.0, float(scheduler.mid_point_sigma))


def of_flow_time(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """Flow matching: t = `sigmas`, latents are (1 − t)·x0 + t·ε."""
    del timestep
    time = float(scheduler.sigmas[position])
    return NoiseLevel(1 - time, time)


def of_either_flow_time(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """The same; under `invert_sigmas` the noise is at 0."""
    level = of_flow_time(scheduler, position, timestep)
    return NoiseLevel(level.noise, level.signal) if scheduler.config.invert_sigmas else level


def of_angle(scheduler: Any, position: int, timestep: Any) -> NoiseLevel:
    """TrigFlow: latents are cos(s)·x0 + sin(s)·ε at the angle s."""
    del timestep
    angle = float(scheduler.timesteps[position])
    return NoiseLevel(math.cos(angle), math.sin(angle))
