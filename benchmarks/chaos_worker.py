"""A worker of `chaos.py`: `sparke worker` but for its engine, the weightless one, which takes its time and can be killed.

    python benchmarks/chaos_worker.py PARENT_PID

A job whose prompt begins with `poison` kills it. Settings are the environment's; it runs until it is killed.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence

import torch
from chaos_check import POISON

from app.domain.model import ModelSpec
from app.serve import die_with_parent
from app.settings import load_settings
from app.telemetry.logs import configure_logs_of
from app.worker.main import work
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, OnStep, Sample, SampleGroup
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

_STEP_S = 0.015


class MortalEngine(ToyEngine):
    """The weightless engine, slow enough to be interrupted."""

    def generate(
        self, groups: Sequence[SampleGroup], plan: DenoisingPlan, on_step: OnStep
    ) -> list[list[Sample]]:
        """As the toy, with a pause in every step; but poison ends the process."""
        if any(group.prompt.startswith(POISON) for group in groups):
            os.kill(os.getpid(), signal.SIGKILL)

        def slowly(step: int, num_steps: int) -> None:
            time.sleep(_STEP_S)
            on_step(step, num_steps)

        return super().generate(groups, plan, slowly)


def _load(_spec: ModelSpec) -> ImageEngine:
    return MortalEngine(preset_named("toy"))


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    torch.set_num_threads(1)
    given = load_settings()
    configure_logs_of(given)
    asyncio.run(work(given, asyncio.Event(), load=_load))
