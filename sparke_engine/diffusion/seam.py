"""The seam to stock diffusers: `scheduler.step` of one instance is wrapped, and its denoiser watched, for one block."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import Tensor

from sparke_engine.diffusion.extrapolation import DenoiserWatch, Parts
from sparke_engine.diffusion.families import layout_for
from sparke_engine.diffusion.layouts import LatentLayout
from sparke_engine.diffusion.moves import Move, changed, latents_of, less, moved
from sparke_engine.diffusion.recording import Number, StepRecorder
from sparke_engine.diffusion.schedulers import (
    CleanPrediction,
    NoiseLevel,
    Place,
    SchedulerAdapter,
    StepCounter,
    adapter_for,
)
from sparke_engine.diffusion.steps import Guide, Observer, OnStep, RecordableGuide, Start, Step
from sparke_engine.diffusion.timing import Stopwatch
from sparke_engine.errors import MisplacedGuidance, NestedGuidance, UnsupportedPipeline, UnsupportedScheduler

_MARK: Final = "__sparke_guided__"


@dataclass
class Runs:
    """How many runs began in a block, how many of them came to their end, and where the latest began."""

    started: int = 0
    finished: int = 0
    start: Start | None = None


@contextmanager
def guided_steps(
    pipe: Any,
    guide: Guide,
    on_step: OnStep | None = None,
    recorder: StepRecorder | None = None,
    *,
    observe: Observer | None = None,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Runs]:
    """Within the block, every step of `pipe.scheduler` is guided; afterwards the pipeline is as before, whatever happens.

    A forward hook on the denoiser keeps, step by step, what it predicts, from which the part under the prompt is told.
    The guide sees canonical latents whatever form the scheduler's have: see `layouts`.

    `on_step(done, num_steps)` is called once a step with the number of steps done, from 1, of those that this call of the
    pipeline takes. What it raises ends the pipeline's call and comes out of the block.
    `observe(step)` is called before it, with what the step predicts before any push; it changes nothing.
    `recorder`: one to be used again by later blocks of the same thread. `stopwatch` takes the times of the block's last run.
    Raises UnsupportedScheduler, or NestedGuidance where a block on this scheduler is open; MisplacedGuidance where another
    pipeline runs on it, and at the end of a block in which the pipeline was given another scheduler.
    """
    scheduler = pipe.scheduler
    adapter = adapter_for(scheduler)
    if getattr(scheduler.step, _MARK, False):
        raise NestedGuidance(
            "this pipeline's scheduler is guided already; leave the open `with` block first, or use a pipeline of its own"
        )
    before = vars(scheduler).get("step")
    layout = layout_for(pipe)
    watch = DenoiserWatch(pipe, layout)
    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in watch.modules]
    recorder = StepRecorder() if recorder is None else recorder
    runs = Runs()
    seam = _Seam(adapter, layout, watch, recorder, runs, stopwatch or Stopwatch())
    scheduler.step = _wrapped(seam, guide, _Hooks(on_step, observe))
    try:
        yield runs
        if pipe.scheduler is not scheduler:
            raise MisplacedGuidance(
                f"the pipeline was given a {type(pipe.scheduler).__name__} within the block, whose steps were not guided: "
                "give it before the block"
            )
    finally:
        recorder.forget()
        watch.close()
        for hook in hooks:
            hook.remove()
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


class _Seam(NamedTuple):
    """What a wrapped step reads with: the scheduler's algebra, the latents' layout, the denoiser's predictions."""

    adapter: SchedulerAdapter
    layout: LatentLayout
    watch: DenoiserWatch
    recorder: StepRecorder
    runs: Runs
    stopwatch: Stopwatch


class _Hooks(NamedTuple):
    """Who hears of each step that is done."""

    on_step: OnStep | None
    observe: Observer | None

    def call(self, step: Step) -> None:
        if self.observe is not None:
            self.observe(step)
        if self.on_step is not None:
            self.on_step(step.index + 1, step.num_steps)


class _Seen(NamedTuple):
    """A call of `step`: its tensors in their canonical form, what the output was made from, where it stands, and x̂0."""

    latents: Tensor
    output: Tensor
    parts: Parts | None
    place: Place
    level: NoiseLevel
    prediction: CleanPrediction
    start: Start | None

    def step(self, numbers: Sequence[Number] | None = None) -> Step:
        """What the guide sees of the call."""
        latents, output, parts, place = self.latents, self.output, self.parts, self.place
        prediction = self.prediction
        told = None if parts is None else functools.cache(lambda: parts.told(output))
        return Step(
            place.step,
            place.num_steps,
            lambda: prediction.clean(latents.float(), output.float()),
            None if told is None else lambda: prediction.clean(latents.float(), told().output.float()),
            sample=latents,
            guidance_scale=1.0 if told is None else lambda: told().scale,
            share=place.share,
            noise=lambda: self.level,
            numbers=numbers,
            start=self.start,
        )


def _wrapped(seam: _Seam, guide: Guide, hooks: _Hooks) -> Callable[..., Any]:
    adapter, layout, stopwatch = seam.adapter, seam.layout, seam.stopwatch
    stock = adapter.scheduler.step
    signature = inspect.signature(type(adapter.scheduler).step)
    counter = StepCounter(adapter, seam.watch.num_timesteps)

    @functools.wraps(stock)
    def step(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(adapter.scheduler, *args, **kwargs)
        latents, output = _canonical(layout, call.arguments)
        begun = stopwatch.mark(latents.device)
        timestep = call.arguments["timestep"]
        place = counter.next(timestep)
        level = adapter.noise_level(place.position, timestep)
        prediction = adapter.kind.algebra(adapter.scheduler, level, timestep)
        if place.starts_run:
            seam.runs.started += 1
            seam.runs.start = _start(adapter, place, level)
            seam.recorder.forget()
            stopwatch.begin()
        seen = _Seen(latents, output, seam.watch.take(output), place, level, prediction, seam.runs.start)
        this = seen.step()
        if place.starts_step:
            moves = guide.displace(this)
            _carry(seam, place.position, moves)
            call.arguments["sample"] = less(layout, call.arguments["sample"], moves)
        if prediction.can_push:
            pushed = _pushed(seam, guide, seen, this)
            if pushed is not None:
                call.arguments["model_output"] = layout.restored(pushed, call.arguments["model_output"])
        stopwatch.guided(begun, stopwatch.mark(latents.device))
        result = stock(*call.args[1:], **call.kwargs)
        begun = stopwatch.mark(latents.device)
        if place.ends_step:
            moves = guide.after(this, layout.canonical(latents_of(result)).float())
            _carry(seam, place.position + 1, moves)
            result = moved(layout, result, moves)
        if place.ends_run:
            final = this.clean if place.leaves_noise else layout.canonical(latents_of(result)).float()
            guide.finish(final, place.num_steps)
            seam.runs.finished += 1
        ended = stopwatch.mark(latents.device)
        stopwatch.guided(begun, ended)
        if place.ends_step:
            stopwatch.end_step(ended)
            hooks.call(this)
        return result

    setattr(step, _MARK, True)
    return step


def _start(adapter: SchedulerAdapter, place: Place, level: NoiseLevel) -> Start | None:
    if place.position == 0:
        return None
    return Start(level.ratio, adapter.noise_level(0, adapter.scheduler.timesteps[0]).ratio)


def _pushed(seam: _Seam, guide: Guide, seen: _Seen, this: Step) -> Tensor | None:
    """The canonical output whose x̂0 is moved, in the model's dtype; None where nothing moves."""
    output, prediction = seen.output, seen.prediction
    records = seam.recorder.records(output.device) and prediction.bound is None
    ready = guide.ready(this) if records and isinstance(guide, RecordableGuide) else None
    if ready is None:
        moves = guide.before(this)
        return _shifted(output, moves, prediction) if moves else None
    parts = seen.parts or Parts((), rescaled=False)

    def work(tensors: Sequence[Tensor], numbers: Sequence[Number]) -> Tensor:
        latents, output, *predictions = tensors
        of_sample, of_output, *of_guide = numbers
        there = seen._replace(
            latents=latents,
            output=output,
            parts=Parts(tuple(predictions), parts.rescaled) if predictions else None,
            prediction=CleanPrediction(of_sample, of_output),
        )
        return _shifted(output, guide.before(there.step(of_guide)), there.prediction)

    return seam.recorder.do(
        work,
        (ready.settings, parts.rescaled),
        (seen.latents, output, *parts.predictions),
        (float(prediction.of_sample), float(prediction.of_output), *ready.numbers),
    )


def _shifted(output: Tensor, moves: list[Move], prediction: CleanPrediction) -> Tensor:
    """The canonical output whose x̂0 is moved, in the model's dtype."""
    return changed(output, moves, lambda part, delta: prediction.shifted(part.float(), delta).to(part.dtype))


def _carry(seam: _Seam, position: int, moves: list[Move]) -> None:
    """Move what a corrector goes back to such that the sample that it corrects at `position` comes to where it was moved."""
    scheduler, scale = seam.adapter.scheduler, seam.adapter.last_sample_scale(position)
    if moves and scale is not None:
        carried = [Move(move.rows, scale * move.delta) for move in moves]
        scheduler.last_sample = less(seam.layout, scheduler.last_sample, carried)


def _canonical(layout: LatentLayout, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The latents and the model's output of a call in their canonical form."""
    sample, output = call["sample"], call["model_output"]
    latents = layout.canonical(sample)
    canonical = layout.canonical(output, latents.shape[1])
    if canonical.shape != latents.shape:
        raise UnsupportedPipeline(
            f"guidance needs latents and a model output of one shape, got {tuple(sample.shape)} and {tuple(output.shape)}"
        )
    refused = [name for name in ("per_token_timesteps", "pred_original_sample") if call.get(name) is not None]
    if call.get("s_churn", 0.0) > 0 or refused:
        raise UnsupportedScheduler(
            "guidance knows no s_churn, per_token_timesteps or pred_original_sample: leave them out of the call"
        )
    return latents, canonical
