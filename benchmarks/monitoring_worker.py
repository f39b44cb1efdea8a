"""A worker of `monitoring.py`: `sparke worker` but for the engine of the model `toy`, which does what it is told.

    python benchmarks/monitoring_worker.py PARENT_PID MOOD

A prompt that begins with `poison` kills it, `broken` raises, `huge` runs out of memory. The file MOOD says, before each batch,
how slow the engine is, and whether it hangs or makes all images alike. Other models are as ever.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from app.domain.model import ModelSpec
from app.serve import die_with_parent
from app.settings import load_settings
from app.telemetry.logs import configure_logs
from app.worker.main import work
from app.worker.model.models import load_spec
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, OnStep, Sample, SampleGroup
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

POISON, BROKEN, HUGE = "poison", "broken", "huge"
_POLL_S = 0.05


@dataclass(frozen=True)
class Mood:
    """What the engine is like: seconds a step, seconds after the last one, whether it hangs, whether images are alike."""

    step_s: float = 0.01
    after_s: float = 0.0
    hangs: bool = False
    is_dull: bool = False

    def write(self, path: Path) -> None:
        """For the engines to read, whole."""
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        beside.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Mood":
        """What is wanted now."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class MoodyEngine(ToyEngine):
    """The weightless engine with faults to order."""

    def __init__(self, mood: Path) -> None:
        super().__init__(preset_named("toy"))
        self._mood = mood

    def generate(
        self, groups: Sequence[SampleGroup], plan: DenoisingPlan, on_step: OnStep
    ) -> list[list[Sample]]:
        """As the toy, in the mood that it is in."""
        _stumble([group.prompt for group in groups])
        while (mood := Mood.read(self._mood)).hangs:
            time.sleep(_POLL_S)

        def slowly(step: int, num_steps: int) -> None:
            time.sleep(mood.step_s)
            on_step(step, num_steps)

        samples = super().generate(groups, plan, slowly)
        time.sleep(mood.after_s)
        return [[_dull(sample) for sample in group] for group in samples] if mood.is_dull else samples


def _stumble(prompts: Sequence[str]) -> None:
    if any(prompt.startswith(POISON) for prompt in prompts):
        os.kill(os.getpid(), signal.SIGKILL)
    if any(prompt.startswith(HUGE) for prompt in prompts):
        raise torch.OutOfMemoryError("there is no room for what is huge")
    if any(prompt.startswith(BROKEN) for prompt in prompts):
        raise RuntimeError("what is broken cannot be made")


def _dull(sample: Sample) -> Sample:
    alike = torch.ones_like(sample.feature)
    return replace(sample, feature=alike / alike.norm())


def _load(spec: ModelSpec, mood: Path) -> ImageEngine:
    return MoodyEngine(mood) if spec.source == "builtin:toy" else load_spec(spec, "cpu")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    torch.set_num_threads(1)
    given = load_settings()
    configure_logs(given.log_format, given.log_level)
    asyncio.run(work(given, asyncio.Event(), load=partial(_load, mood=Path(sys.argv[2]))))
