"""CADS: noise on what the denoiser reads of the prompt, annealed over the trajectory."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival
from sparke_engine.core.domains import check_not_negative
from sparke_engine.errors import InvalidArgument, UnsupportedPipeline

CONDITION: Final = "encoder_hidden_states"
OWN_STREAM: Final = 0x5AD5C0DE  # so that a seed's noise here is not the noise that its latents start from


@dataclass(frozen=True)
class Cads(Rival):
    """y becomes ŷ = √γ(t)·y + s·√(1 − γ(t))·n, n ~ N(0, I), then ψ·rescaled(ŷ) + (1 − ψ)·ŷ.

    γ(t) = 1 up to `tau1`, 0 from `tau2`, linear between; t = timestep / training timesteps, 1 at the start. Rescaled: to
    the mean and standard deviation that y had, each over one image's conditioning. s = `noise_scale`, ψ = `mixing`.

    y is `encoder_hidden_states` of the prompted half of the batch; pooled embeddings, which some denoisers read beside it,
    stay. n comes from a generator for each image, seeded by the image's seed, so an image depends on no other. It acts on
    every image of the batch, whatever its group's strength; s = 0 means off (the formula alone would only fade y).
    Source: Sadat et al., arXiv 2310.17347, Algorithm 1.
    """

    noise_scale: float = 0.25
    tau1: float = 0.6
    tau2: float = 0.9
    mixing: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("CADS", noise_scale=self.noise_scale)
        if not 0 <= self.tau1 < self.tau2 <= 1:
            raise InvalidArgument(f"CADS: 0 ≤ tau1 < tau2 ≤ 1, got {self.tau1} and {self.tau2}")
        if not 0 <= self.mixing <= 1:
            raise InvalidArgument(f"CADS: the mixing factor is in [0, 1], got {self.mixing}")

    def gamma(self, time: float) -> float:
        """γ(t)."""
        return min(max((self.tau2 - time) / (self.tau2 - self.tau1), 0.0), 1.0)

    def anneal(
        self, condition: Float[Tensor, "n s e"], noise: Float[Tensor, "n s e"], gamma: float
    ) -> Float[Tensor, "n s e"]:
        """The conditioning at γ. Degenerate case: a ŷ that is constant has no scale to restore and is not rescaled."""
        noised = gamma**0.5 * condition + self.noise_scale * (1 - gamma) ** 0.5 * noise
        mean, spread = _moments(condition)
        own_mean, own_spread = _moments(noised)
        is_flat = own_spread == 0
        rescaled = (noised - own_mean) / own_spread * spread + mean
        mixed = self.mixing * rescaled + (1 - self.mixing) * noised
        return torch.where(is_flat, noised, mixed)

    def around(self, pipe: Any, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """A hook on what the denoiser reads. Raises UnsupportedPipeline where that is not `encoder_hidden_states`."""
        return nullcontext() if self.noise_scale == 0 else _annealed(self, pipe, seeds)


@contextmanager
def _annealed(cads: Cads, pipe: Any, seeds: Sequence[int]) -> Iterator[None]:
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None or CONDITION not in inspect.signature(type(denoiser).forward).parameters:
        raise UnsupportedPipeline(
            f"CADS puts noise on a denoiser's {CONDITION}; {type(denoiser).__name__} reads no such argument"
        )
    hook = denoiser.register_forward_pre_hook(_Hook(cads, pipe, seeds), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class _Hook:
    def __init__(self, cads: Cads, pipe: Any, seeds: Sequence[int]) -> None:
        self._cads, self._pipe = cads, pipe
        self._streams = [torch.Generator("cpu").manual_seed((seed ^ OWN_STREAM) % 2**63) for seed in seeds]

    def __call__(
        self, _denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        gamma = self._cads.gamma(self._time(args, kwargs))
        if gamma == 1:
            return None
        condition = kwargs.get(CONDITION)
        num_images = len(self._streams)
        halves = 2 if getattr(self._pipe, "do_classifier_free_guidance", False) else 1
        if condition is None or condition.shape[0] not in {halves * num_images, 2 * num_images}:
            found = "no such keyword" if condition is None else f"{condition.shape[0]} rows"
            raise UnsupportedPipeline(
                f"CADS needs {CONDITION} with {halves} rows for each of {num_images} images, the prompt's last; got {found}"
            )
        start = condition.shape[0] - num_images
        prompted = condition[start:].float()
        noise = torch.stack([torch.randn(prompted.shape[1:], generator=stream) for stream in self._streams])
        annealed = self._cads.anneal(prompted, noise.to(prompted), gamma).to(condition.dtype)
        return args, {**kwargs, CONDITION: torch.cat([condition[:start], annealed])}

    def _time(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """T in [0, 1] of a denoiser that is called (latents, timestep, …)."""
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        scheduler = self._pipe.scheduler
        if not bool((scheduler.timesteps == value).any()):
            raise UnsupportedPipeline(
                f"CADS needs the scheduler's own timesteps, but the denoiser was called at {value}"
            )
        return value / float(scheduler.config.num_train_timesteps)


def _moments(condition: Float[Tensor, "n s e"]) -> tuple[Float[Tensor, "n 1 1"], Float[Tensor, "n 1 1"]]:
    """Mean and standard deviation over each image's conditioning."""
    spread, mean = torch.std_mean(condition.flatten(1), dim=1)
    return mean[:, None, None], spread[:, None, None]
