"""The seam to stock diffusers: `scheduler.step` of one instance is wrapped, and its denoiser watched, for one block."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sparke_engine.diffusion.schedulers import CleanPrediction, SchedulerAdapter, adapter_for
from sparke_engine.errors import NestedGuidance, UnsupportedPipeline, UnsupportedScheduler

OnStep = Callable[[int, int], None]
_MARK: Final = "__sparke_guided__"


class Move(NamedTuple):
    """`delta` [n,c,h,w] is to be subtracted from these rows of the batch; rows that no move names stay to the bit."""

    rows: slice
    delta: Tensor


class Step:
    """One call of `scheduler.step`: `index` of `num_steps`, its latents, and what it predicts, computed when read."""

    def __init__(
        self,
        index: int,
        num_steps: int,
        predict: Callable[[], Tensor],
        predict_prompted: Callable[[], Tensor] | None = None,
        *,
        sample: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        self.index = index
        self.num_steps = num_steps
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
    """What decides the pushes, asked in this order in every step. All latents that it sees and gives are fp32."""

    def displace(self, step: Step) -> list[Move]:
        """Moves of the noisy latents that the step starts from; the model's output stays that of the old place."""

    def before(self, step: Step) -> list[Move]:
        """Moves of the predicted clean latents."""

    def after(self, step: Step, latents: Float[Tensor, "b c h w"]) -> list[Move]:
        """Moves of the noisy latents that the step made."""

    def finish(self, latents: Float[Tensor, "b c h w"], num_steps: int) -> None:
        """Take the final latents of a run."""


@contextmanager
def guided_steps(pipe: Any, guide: Guide, on_step: OnStep | None = None) -> Iterator[None]:
    """Within the block, every step of `pipe.scheduler` is guided; afterwards the pipeline is as before, whatever happens.

    A forward hook on the denoiser keeps, step by step, what it predicts under the prompt alone.

    `on_step(done, num_steps)` is called once a step with the number of steps done, from 1 (PLMS takes one more than the
    inference steps). What it raises ends the pipeline's call and comes out of the block.
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

    @functools.wraps(stock)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        _check_call(model_output, sample, kwargs)
        index, num_steps = adapter.step_index(timestep), adapter.num_steps
        prediction = adapter.prediction(index, timestep)
        prompted = half.take(len(sample))

        def clean_of(output: Tensor) -> Callable[[], Tensor]:
            return lambda: prediction.clean(sample.float(), output.float())

        this = Step(
            index,
            num_steps,
            clean_of(model_output),
            None if prompted is None else clean_of(prompted),
            sample=sample,
            guidance_scale=half.guidance_scale,
        )
        moved = sample
        if not adapter.ignores_sample(index):
            moved = _displaced(adapter, sample, guide.displace(this))
        if prediction.can_push:
            model_output = _inject(prediction, model_output, guide.before(this))
        result = stock(model_output, timestep, moved, *args, **kwargs)
        if not adapter.is_provisional(index):
            result = _moved(adapter, result, guide.after(this, _latents(result).float()))
        if index == num_steps - 1:
            guide.finish(_latents(result).float(), num_steps)
        if on_step is not None:
            on_step(index + 1, num_steps)
        return result

    setattr(step, _MARK, True)
    return step


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


def _check_call(output: Tensor, sample: Tensor, kwargs: dict[str, Any]) -> None:
    if output.ndim != 4 or output.shape != sample.shape:
        raise UnsupportedPipeline(
            f"guidance needs latents [b,c,h,w] and a model output of their shape, got {tuple(sample.shape)} and "
            f"{tuple(output.shape)} (packed latents and learned variances are not supported)"
        )
    if kwargs.get("s_churn", 0.0) > 0 or kwargs.get("per_token_timesteps") is not None:
        raise UnsupportedScheduler(
            "guidance knows no s_churn and no per_token_timesteps: leave them out of the call"
        )
