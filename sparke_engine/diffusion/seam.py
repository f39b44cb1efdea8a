"""The seam to stock diffusers: `scheduler.step` of one instance is wrapped, and its denoiser watched, for one block."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sparke_engine.diffusion.schedulers import (
    CleanPrediction,
    Place,
    SchedulerAdapter,
    StepCounter,
    adapter_for,
)
from sparke_engine.errors import NestedGuidance, UnsupportedPipeline, UnsupportedScheduler

OnStep = Callable[[int, int], None]
_MARK: Final = "__sparke_guided__"


class Move(NamedTuple):
    """`delta` [n,c,h,w] is to be subtracted from these rows of the batch; rows that no move names stay to the bit."""

    rows: slice
    delta: Tensor


class Step:
    """One call of `scheduler.step`: `index` of `num_steps`, its latents, and what it predicts, computed when read.

    Where a scheduler takes several calls for a step, each has `share` of it and has the step's index.
    """

    def __init__(
        self,
        index: int,
        num_steps: int,
        predict: Callable[[], Tensor],
        predict_prompted: Callable[[], Tensor] | None = None,
        *,
        sample: Tensor | None = None,
        guidance_scale: float = 1.0,
        share: float = 1.0,
    ) -> None:
        self.index = index
        self.num_steps = num_steps
        self.share = share
        self._sample = sample
        self._predict = predict
        self._predict_prompted = predict_prompted
        self._guidance_scale = guidance_scale

    @property
    def guidance_scale(self) -> float:
        """The scale by which classifier-free guidance extrapolates; 1 where there is none, or its halves cannot be told."""
        return 1.0 if self._predict_prompted is None else self._guidance_scale

    @functools.cached_property
    def noisy(self) -> Float[Tensor, "b c h w"]:
        """The latents that the step starts from, in fp32, scaled as the scheduler keeps them."""
        return self.clean if self._sample is None else self._sample.float()

    @functools.cached_property
    def clean(self) -> Float[Tensor, "b c h w"]:
        """x̂0 in fp32, before any push."""
        return self._predict()

    @functools.cached_property
    def prompted(self) -> Float[Tensor, "b c h w"]:
        """x̂0 in fp32 under the prompt alone, without the extrapolation of classifier-free guidance.

        `clean` where there is no such guidance, or where its halves cannot be told.
        """
        return self.clean if self._predict_prompted is None else self._predict_prompted()


class _PromptedHalf:
    """A forward hook on the denoiser that keeps the half of a doubled batch that was made under the prompt."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._output: Tensor | None = None

    def num_timesteps(self) -> int | None:
        """How many calls of `step` the pipeline's call that is under way will make; None where it does not tell."""
        number = getattr(self._pipe, "_num_timesteps", None)
        return number if isinstance(number, int) else None

    @property
    def guidance_scale(self) -> float:
        """The scale of the pipeline's call that is under way; 1 where the pipeline does not tell."""
        return float(getattr(self._pipe, "guidance_scale", 1.0))

    def __call__(self, _module: Any, _inputs: Any, result: Any) -> None:
        output = result[0] if isinstance(result, tuple) else result.sample
        self._output = output.detach()

    def take(self, size: int) -> Tensor | None:
        """The half for a batch of `size`, once; None where the last output was not doubled."""
        output, self._output = self._output, None
        if output is None or output.shape[0] != 2 * size:
            return None
        return output[size:]


@runtime_checkable
class Guide(Protocol):
    """What decides the pushes, asked in this order in every step. All latents that it sees and gives are fp32.

    Where a scheduler takes several calls for a step, `before` is asked in each, and gives pushes of the full size: what a
    solver makes of both ends of a step must agree, or it takes half of the push back.
    """

    def displace(self, step: Step) -> list[Move]:
        """Moves of the noisy latents that the step starts from; the model's output stays that of the old place."""

    def before(self, step: Step) -> list[Move]:
        """Moves of the predicted clean latents."""

    def after(self, step: Step, latents: Float[Tensor, "b c h w"]) -> list[Move]:
        """Moves of the noisy latents that the step made."""

    def finish(self, latents: Float[Tensor, "b c h w"], num_steps: int) -> None:
        """Take the final latents of a run; of one that stops with noise left, its last predicted clean latents."""


@contextmanager
def guided_steps(pipe: Any, guide: Guide, on_step: OnStep | None = None) -> Iterator[None]:
    """Within the block, every step of `pipe.scheduler` is guided; afterwards the pipeline is as before, whatever happens.

    A forward hook on the denoiser keeps, step by step, what it predicts under the prompt alone.

    `on_step(done, num_steps)` is called once a step with the number of steps done, from 1, of those that this call of the
    pipeline takes. What it raises ends the pipeline's call and comes out of the block.
    Raises UnsupportedScheduler, or NestedGuidance where a block on this scheduler is open.
    """
    scheduler = pipe.scheduler
    adapter = adapter_for(scheduler)
    if getattr(scheduler.step, _MARK, False):
        raise NestedGuidance(
            "this pipeline's scheduler is guided already; leave the open `with` block first, or use a pipeline of its own"
        )
    before = vars(scheduler).get("step")
    half = _PromptedHalf(pipe)
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    hook = denoiser.register_forward_hook(half) if denoiser is not None else None
    scheduler.step = _wrapped(adapter, guide, half, on_step)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


def _wrapped(
    adapter: SchedulerAdapter, guide: Guide, half: _PromptedHalf, on_step: OnStep | None
) -> Callable[..., Any]:
    stock = adapter.scheduler.step
    signature = inspect.signature(type(adapter.scheduler).step)
    counter = StepCounter(adapter, half.num_timesteps)

    @functools.wraps(stock)
    def step(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(adapter.scheduler, *args, **kwargs)
        output, sample, timestep = (call.arguments[name] for name in ("model_output", "sample", "timestep"))
        _check_call(output, sample, call.arguments)
        place = counter.next(timestep)
        prediction = adapter.prediction(place.position, timestep)
        this = _seen(
            place, prediction, (output, half.take(len(sample))), sample, guidance_scale=half.guidance_scale
        )
        if place.starts_step:
            call.arguments["sample"] = _displaced(adapter, sample, guide.displace(this))
        if prediction.can_push:
            call.arguments["model_output"] = _inject(prediction, output, guide.before(this))
        result = stock(*call.args[1:], **call.kwargs)
        if place.ends_step:
            result = _moved(adapter, result, guide.after(this, _latents(result).float()))
        if place.ends_run:
            final = this.clean if place.leaves_noise else _latents(result).float()
            guide.finish(final, place.num_steps)
        if place.ends_step and on_step is not None:
            on_step(place.step + 1, place.num_steps)
        return result

    setattr(step, _MARK, True)
    return step


def _seen(
    place: Place,
    prediction: CleanPrediction,
    outputs: tuple[Tensor, Tensor | None],
    sample: Tensor,
    *,
    guidance_scale: float,
) -> Step:
    """What the guide sees of a call. `outputs`: the model's, and what it puts out under the prompt alone."""

    def clean_of(output: Tensor) -> Callable[[], Tensor]:
        return lambda: prediction.clean(sample.float(), output.float())

    combined, prompted = outputs
    return Step(
        place.step,
        place.num_steps,
        clean_of(combined),
        None if prompted is None else clean_of(prompted),
        sample=sample,
        guidance_scale=guidance_scale,
        share=place.share,
    )


def _inject(prediction: CleanPrediction, output: Tensor, moves: list[Move]) -> Tensor:
    """The output whose x̂0 is moved, in the model's dtype."""
    if not moves:
        return output
    injected = output.clone()
    for rows, delta in moves:
        injected[rows] = prediction.shifted(output[rows].float(), delta).to(output.dtype)
    return injected


def _displaced(adapter: SchedulerAdapter, sample: Tensor, moves: list[Move]) -> Tensor:
    if moves:
        adapter.forget_last_sample()
    return _less(sample, moves)


def _moved(adapter: SchedulerAdapter, result: Any, moves: list[Move]) -> Any:
    """The step's result with its latents moved, in their dtype."""
    if not moves:
        return result
    latents = _less(_latents(result), moves)
    adapter.forget_last_sample()
    if isinstance(result, tuple):
        return (latents, *result[1:])
    result.prev_sample = latents
    return result


def _less(latents: Tensor, moves: list[Move]) -> Tensor:
    """The latents with what moves subtracted, in their dtype; the same tensor where nothing moves."""
    if not moves:
        return latents
    moved = latents.clone()
    for rows, delta in moves:
        moved[rows] = (latents[rows].float() - delta).to(latents.dtype)
    return moved


def _latents(result: Any) -> Tensor:
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents


def _check_call(output: Tensor, sample: Tensor, call: dict[str, Any]) -> None:
    if output.ndim != 4 or output.shape != sample.shape:
        raise UnsupportedPipeline(
            f"guidance needs latents [b,c,h,w] and a model output of their shape, got {tuple(sample.shape)} and "
            f"{tuple(output.shape)} (packed latents and learned variances are not supported)"
        )
    refused = [name for name in ("per_token_timesteps", "pred_original_sample") if call.get(name) is not None]
    if call.get("s_churn", 0.0) > 0 or refused:
        raise UnsupportedScheduler(
            "guidance knows no s_churn, per_token_timesteps or pred_original_sample: leave them out of the call"
        )
