"""What there is to know of a class of schedulers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparke_engine.diffusion.schedulers.noise import NoiseLevel
from sparke_engine.diffusion.schedulers.prediction import CleanPrediction

Level = Callable[[Any, int, Any], NoiseLevel]
Algebra = Callable[[Any, NoiseLevel, Any], CleanPrediction]
Position = Callable[[Any, Any, int | None], int]
Grouping = Callable[[Any, int, int], tuple[int, ...]]


@dataclass(frozen=True)
class SchedulerKind:
    """How one class of schedulers is read, and what its row in the documents says.

    `level(scheduler, position, timestep)` gives the noise at a place of `scheduler.timesteps`.
    `algebra(scheduler, level, timestep)` gives x̂0 there.
    `position(scheduler, timestep, expected)` gives the place of the coming call; `expected` is the one after the last.
    `grouping(scheduler, start, num_calls)` gives for each step of a run how many calls of `step` it takes.
    `kept_share(scheduler, position)`: a corrector makes the sample at `position` anew from that of the last step, of which
    it holds this share.
    `draws`: when it draws noise on the way.
    `trailing`: how many of `scheduler.timesteps` are an end and no step.
    `refusal(scheduler)` says why one of this class cannot be guided.
    """

    level: Level
    algebra: Algebra
    position: Position
    prediction_types: tuple[str, ...]
    grouping: Grouping
    calls: str = "1"
    draws: str = ""
    note: str = ""
    kept_share: Callable[[Any, int], float] | None = None
    trailing: int = 0
    refusal: Callable[[Any], str | None] = lambda _scheduler: None
