"""What a run's time goes to, told without anybody waiting for it.

On a CUDA device work is launched and done later, so a host's clock around it tells little, and waiting for the device would
slow it down. There events are recorded between kernels and read once the run is over: what lies between two of them is the
time on the device's own clock, idle gaps included. Elsewhere the host's clock is as good.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch

Mark = float | torch.cuda.Event


@dataclass(frozen=True)
class RunTimes:
    """Seconds of one device batch.

    `guidance_s`: all steps, without the denoiser and the scheduler's own step. `decode_s`: from the last step to the images.
    `steps_s`: from the end of each step to the end of the next, one fewer than there were steps.
    """

    guidance_s: float
    decode_s: float
    steps_s: tuple[float, ...]


@runtime_checkable
class EngineListener(Protocol):
    """Who is told what an engine did, on the thread that it works on."""

    def embedded(self, *, is_known: bool) -> None:
        """A prompt's embedding was asked for; known, it had not to be computed."""

    def finished(self, times: RunTimes) -> None:
        """A batch has its images. One that was broken off is not told of."""


@dataclass
class Stopwatch:
    """Marks on the way of one run. About two microseconds each."""

    clock_s: Callable[[], float] = time.perf_counter
    _guided: list[tuple[Mark, Mark]] = field(default_factory=list)
    _steps: list[Mark] = field(default_factory=list)

    def begin(self) -> None:
        """A run begins: what was marked of another is gone, so a block of any number of runs holds the marks of one."""
        self._guided.clear()
        self._steps.clear()

    def mark(self, device: torch.device) -> Mark:
        """Now, as the device has it."""
        if device.type != "cuda":
            return self.clock_s()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    def guided(self, begun: Mark, ended: Mark) -> None:
        """Guidance took from one mark to the other."""
        self._guided.append((begun, ended))

    def end_step(self, ended: Mark) -> None:
        """A step is done."""
        self._steps.append(ended)

    def read(self, device: torch.device) -> RunTimes:
        """All of it, once the images are there: nothing is waited for but the last mark."""
        finished = self.mark(device)
        return RunTimes(
            guidance_s=sum(_seconds(begun, ended) for begun, ended in self._guided),
            decode_s=_seconds(self._steps[-1], finished) if self._steps else 0.0,
            steps_s=tuple(_seconds(earlier, later) for earlier, later in pairwise(self._steps)),
        )


def _seconds(begun: Mark, ended: Mark) -> float:
    if isinstance(begun, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
        ended.synchronize()
        return float(begun.elapsed_time(ended)) / 1000
    if isinstance(begun, torch.cuda.Event) or isinstance(ended, torch.cuda.Event):
        raise TypeError("two marks of a run are of one device")
    return ended - begun
