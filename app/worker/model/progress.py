"""How far a worker is with its models: told to the registry, and shown in the terminal or said in the log."""

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import structlog

from app.domain.ids import ModelId
from app.jobs.types import LoadStage, ModelProgress
from app.settings import Settings

_TELL_EVERY_S = 1.0
_SAY_EVERY_S = 10.0
_TICK_S = 0.2
_WORDS: Mapping[LoadStage, str] = {
    "waiting": "waits",
    "downloading": "downloading",
    "loading": "loading",
    "warming_up": "warming up",
    "ready": "ready",
}
_COUNTED = "{desc}  {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt}  {rate_fmt}, {remaining} left"

_log = structlog.get_logger(__name__)


class Shown(Protocol):
    """Where a person sees it."""

    def show(self, model: ModelId, progress: ModelProgress) -> None:
        """How far a model is now; called at every change, from any thread."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...


class LoadProgress:
    """Made on the event loop; its other methods may be called from any thread, one model at a time.

    `tell` is called on the loop, at once for a new stage and once a second for bytes.
    """

    def __init__(
        self,
        models: Sequence[ModelId],
        tell: Callable[[Mapping[ModelId, ModelProgress]], None],
        shown: Shown,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._states: dict[ModelId, ModelProgress] = dict.fromkeys(models, ModelProgress("waiting"))
        self._tell = tell
        self._shown = shown
        self._loop = asyncio.get_running_loop()
        self._told_at_s = 0.0
        self._is_untold = False

    def enter(self, model: ModelId, stage: LoadStage) -> None:
        """A model is at a stage from now on."""
        self._set(model, ModelProgress(stage), is_new=True)

    def receive(self, model: ModelId, done_bytes: int, total_bytes: int) -> None:
        """So much of a model is downloaded."""
        is_new = self._states[model].stage != "downloading"
        self._set(model, ModelProgress("downloading", done_bytes, total_bytes), is_new=is_new)

    async def tick(self) -> None:
        """Lets what is shown move, and tells what came since it was last told, for ever."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._shown.tick()
            if self._is_untold and self._monotonic_s() - self._told_at_s >= _TELL_EVERY_S:
                self._tell_now()

    def _set(self, model: ModelId, progress: ModelProgress, *, is_new: bool) -> None:
        self._states = {**self._states, model: progress}
        self._shown.show(model, progress)
        self._is_untold = True
        if is_new:
            self._loop.call_soon_threadsafe(self._tell_now)

    def _tell_now(self) -> None:
        self._is_untold, self._told_at_s = False, self._monotonic_s()
        self._tell(self._states)


class Said:
    """Lines of the log: one for each stage, and one now and then while bytes come."""

    def __init__(self) -> None:
        self._stage: tuple[ModelId, LoadStage] | None = None
        self._said_at_s = 0.0

    def show(self, model: ModelId, progress: ModelProgress) -> None:
        """Says what is new."""
        now_s = time.monotonic()
        if (model, progress.stage) == self._stage and now_s - self._said_at_s < _SAY_EVERY_S:
            return
        self._stage, self._said_at_s = (model, progress.stage), now_s
        _log.info(
            "model_progress",
            model=model,
            stage=progress.stage,
            done_bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
        )

    def tick(self) -> None:
        """Nothing."""


class Drawn:
    """A bar in a terminal for the model in hand, and a line that stays for each that is ready."""

    def __init__(self, bar: Callable[..., Any]) -> None:
        self._make = bar
        self._bar: Any = None
        self._stage: tuple[ModelId, LoadStage] | None = None
        self._began_s: dict[ModelId, float] = {}

    def show(self, model: ModelId, progress: ModelProgress) -> None:
        """Draws what is new."""
        began_s = self._began_s.setdefault(model, time.monotonic())
        if (model, progress.stage) != self._stage:
            self._stage = (model, progress.stage)
            self.close()
            if progress.stage == "ready":
                self._make.write(f"{model}: ready after {time.monotonic() - began_s:.1f} s", file=sys.stderr)  # type: ignore[attr-defined]
                return
            self._bar = self._open(
                f"{model}: {_WORDS[progress.stage]}", is_counted=progress.done_bytes is not None
            )
        bar = self._bar  # another thread may take it away meanwhile
        if bar is not None and progress.done_bytes is not None:
            bar.total = progress.total_bytes
            bar.update(progress.done_bytes - bar.n)

    def tick(self) -> None:
        """Lets the time move."""
        bar = self._bar
        if bar is not None:
            bar.refresh()

    def _open(self, text: str, *, is_counted: bool) -> Any:
        form = _COUNTED if is_counted else "{desc} ... {elapsed}"
        size = shutil.get_terminal_size()
        return self._make(
            desc=text,
            total=0 if is_counted else None,
            unit="B",
            unit_scale=True,
            bar_format=form,
            ncols=size.columns - 1,
            nrows=size.lines,
            position=0,  # whatever bars others have that they draw nowhere
            leave=False,
            file=sys.stderr,
        )

    def close(self) -> None:
        """Takes the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


@contextmanager
def shown_progress(settings: Settings) -> Iterator[Shown]:
    """A bar where a person watches, among whose frames the log's lines go; else lines of the log."""
    if settings.log_format == "json" or not sys.stderr.isatty():
        yield Said()
        return
    from tqdm import tqdm  # noqa: PLC0415 - of the extra engine
    from tqdm.contrib.logging import logging_redirect_tqdm  # noqa: PLC0415 - likewise

    with logging_redirect_tqdm():
        drawn = Drawn(tqdm)
        try:
            yield drawn
        finally:
            drawn.close()
