"""What classifier-free guidance made a model's output from: measured, not read off a pipeline's attributes.

Pipelines differ in which half of a doubled batch is the prompt's, call the denoiser once or twice a step, name the scale
as they like or not at all, and some change it on the way. But with p₁, p₂ what the denoiser predicted since the last step
and o what the scheduler is given, plain guidance is

    o = p₁ + a·(p₂ − p₁),   a = ⟨o − p₁, p₂ − p₁⟩ / ‖p₂ − p₁‖²

for each image. It extrapolates, so a > 1 says that p₂ is the prompt's and the scale s = a; a < 0 that p₁ is, and
s = 1 − a. Where `guidance_rescale` multiplies all that by a number of its own for each image, the same holds for o over
that number, and no scale is claimed, s = 1. Where o is no such combination, nothing is claimed.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparke_engine.diffusion.layouts import LatentLayout
from sparke_engine.errors import MisplacedGuidance

# Three roundings make the output from its parts, each of half an ulp of numbers no larger than those below.
TOLERANCE_ULPS = 2.0
LEAST_TOLERANCE = 1e-5  # of the sums here, in fp32
MOST_PARTS = 3


class Told(NamedTuple):
    """For each image its output under the prompt alone, and the scale s by which guidance went from there.

    s = 1 where there was no plain guidance: then `output` is what the scheduler was given, or, where guidance did more
    than extrapolate, the output under the prompt all the same.
    """

    output: Float[Tensor, "b c h w"]
    scale: Float[Tensor, " b"]


class Parts(NamedTuple):
    """What the denoiser predicted for an output, in its order; `rescaled` says that a multiple was made of them.

    Two are measured. Of three, diffusers keeps one order: without the prompt, under it, perturbed (skip-layer and
    perturbed-attention guidance); there s is 1.
    """

    predictions: tuple[Float[Tensor, "b c h w"], ...]
    rescaled: bool

    def told(self, output: Float[Tensor, "b c h w"]) -> Told:
        """What of the output is the prompt's."""
        if len(self.predictions) == 3:
            return Told(self.predictions[1], _ones(output))
        first, second = self.predictions
        return tell(output, first, second, rescaled=self.rescaled)


class _Used(int):
    """A number of timesteps that a run was told already, or that was there before the block."""


class DenoiserWatch:
    """A forward hook, with keyword arguments, that keeps what the denoiser predicts between two steps.

    Pipelines that tell their number of timesteps set it anew in each call, before its first step. So a run that starts
    while it is an old one is of another pipeline on the same scheduler, or of a loop of the caller's own.
    """

    def __init__(self, pipe: Any, layout: LatentLayout) -> None:
        self._pipe = pipe
        self._layout = layout
        self._outputs: list[Tensor] = []
        self._is_under_way = False
        self._tells = hasattr(type(pipe), "num_timesteps")
        self._mark(_Used)

    def close(self) -> None:
        """Leave the pipeline as it was."""
        self._mark(int)

    def _mark(self, kind: type[int]) -> None:
        number = getattr(self._pipe, "_num_timesteps", None)
        if self._tells and isinstance(number, int):
            self._pipe._num_timesteps = kind(number)  # noqa: SLF001 - equal, and reads as what it was

    @property
    def modules(self) -> list[Any]:
        """The pipeline's denoisers: one, or one for each stage of the noise."""
        named = (getattr(self._pipe, name, None) for name in ("unet", "transformer", "transformer_2"))
        return [module for module in named if module is not None]

    def num_timesteps(self) -> int | None:
        """How many calls of `step` the pipeline's call that is under way will make; None where it does not tell.

        Asked once a run. Raises MisplacedGuidance where the run is not of a call of this pipeline.
        """
        number = getattr(self._pipe, "_num_timesteps", None)
        if self._tells and (isinstance(number, _Used) or not isinstance(number, int)):
            raise MisplacedGuidance(
                f"the scheduler of this guided {type(self._pipe).__name__} is stepped by something else, such as another "
                "pipeline made of its parts, which would be pushed under a prompt that is not its own: give that a "
                "scheduler of its own, or call it outside the block"
            )
        self._mark(_Used)
        self._is_under_way = False
        return number if isinstance(number, int) else None

    def _begins(self) -> bool:
        """Whether this is the first output of a call of the pipeline that is guided. Others may share its denoiser."""
        number = getattr(self._pipe, "_num_timesteps", None)
        is_anew = self._tells and isinstance(number, int) and not isinstance(number, _Used)
        begins, self._is_under_way = is_anew and not self._is_under_way, is_anew
        return begins

    def __call__(self, _module: Any, inputs: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        """Let the layout see the call, and keep its output, and of those before it as many as tell that they are too many."""
        latents: Any = inputs[0] if inputs else named.get("hidden_states", named.get("sample"))
        self._layout.observe(latents, named)
        output = result[0] if isinstance(result, tuple) else result.sample
        if self._begins():
            self._outputs.clear()
        self._outputs = [*self._outputs[-MOST_PARTS:], output.detach()]

    def take(self, output: Float[Tensor, "b c h w"]) -> "Parts | None":
        """The parts of the output that the scheduler is given, once; None where it has none that can be told.

        Two are told, a doubled batch or two calls, and three, see `Parts`.
        """
        outputs, self._outputs = self._outputs, []
        predictions = self._parts(outputs, output) if outputs else []
        if not 2 <= len(predictions) <= MOST_PARTS:
            return None
        rescaled = float(getattr(self._pipe, "guidance_rescale", 0.0) or 0.0) > 0
        return Parts(tuple(predictions), rescaled)

    def _parts(self, outputs: list[Tensor], like: Tensor) -> list[Tensor]:
        """The predictions for the batch, in the order in which they were made; none if they are not of its shape."""
        spatial = [self._layout.spatial(one)[:, : like.shape[1]] for one in outputs]
        if any(len(one) % len(like) or one.shape[1:] != like.shape[1:] for one in spatial):
            return []
        return [part for one in spatial for part in torch.split(one, len(like))]


def tell(
    output: Float[Tensor, "b c h w"],
    first: Float[Tensor, "b c h w"],
    second: Float[Tensor, "b c h w"],
    *,
    rescaled: bool = False,
) -> Told:
    """Which of two predictions each image's output was extrapolated from, and how far.

    fp32 inside; each image by itself, so that none depends on what else is in the batch; O(numbers). With `rescaled` the
    output may be a multiple of the combination, and s is 1 for all: how near to plain a rescaled output comes is a question of
    the dtype's rounding, and a scale that is claimed for some steps of a run and not for others would be worse than none.
    Degenerate case: equal predictions are both "under the prompt", s = 1.
    """
    ulp = max(torch.finfo(part.dtype).eps for part in (output, first, second))
    tolerance = max(TOLERANCE_ULPS * ulp, LEAST_TOLERANCE)
    output, first, second = output.float(), first.float(), second.float()
    plain, is_known = _fitted(output, first, second, tolerance)
    told = _where(is_known, plain, Told(output, _ones(output)))
    if rescaled:
        whole = output / _multiple(output, first, second - first)[:, None, None, None]
        of_whole, is_multiple = _fitted(whole, first, second, tolerance)
        told = _where(is_multiple & ~is_known, of_whole, told)._replace(scale=_ones(output))
    return told


def _fitted(
    output: Float[Tensor, "b c h w"], first: Tensor, second: Tensor, tolerance: float
) -> tuple[Told, Bool[Tensor, " b"]]:
    """The part that a tells, and whether the output is an extrapolation from it."""
    apart = second - first
    moved = _dot(apart, apart)
    a = torch.where(moved > 0, _dot(output - first, apart) / torch.where(moved > 0, moved, 1.0), 1.0)
    left = _norm(output - first - a[:, None, None, None] * apart)
    is_combined = left <= tolerance * (_norm(output) + a.abs() * moved.sqrt())
    is_second, is_first = a >= 1 - tolerance, a <= tolerance
    told = Told(torch.where(is_second[:, None, None, None], second, first), torch.where(is_second, a, 1 - a))
    return told, is_combined & (is_second | is_first)


def _multiple(
    output: Float[Tensor, "b c h w"], first: Float[Tensor, "b c h w"], apart: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """The k of o = k·(p₁ + a·(p₂ − p₁)), from what is across p₂ − p₁; 1 where nothing is."""
    moved = _dot(apart, apart)
    share = _dot(first, apart) / torch.where(moved > 0, moved, 1.0)
    across = first - share[:, None, None, None] * apart
    size, along = _dot(across, across), _dot(output, across)
    return torch.where((size > 0) & (along != 0), along / torch.where(size > 0, size, 1.0), 1.0)


def _where(condition: Bool[Tensor, " b"], told: Told, other: Told) -> Told:
    output = torch.where(condition[:, None, None, None], told.output, other.output)
    return Told(output, torch.where(condition, told.scale, other.scale))


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " b"]:
    return (a * b).flatten(1).sum(1)


def _norm(a: Tensor) -> Float[Tensor, " b"]:
    return _dot(a, a).sqrt()


def _ones(latents: Tensor) -> Float[Tensor, " b"]:
    return torch.ones(len(latents), device=latents.device)
