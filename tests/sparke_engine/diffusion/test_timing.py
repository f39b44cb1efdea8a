"""Where a run's time goes, by marks that nobody waits for."""

import time

import pytest
import torch
from diffusers import StableDiffusionPipeline

from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup
from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.timing import EngineListener, RunTimes, Stopwatch
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

CPU = torch.device("cpu")
PLAN = DenoisingPlan(width_px=32, height_px=32, steps=4, guidance_scale=5.0)


class Listener:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.times: list[RunTimes] = []
        self.known: list[bool] = []

    def embedded(self, *, is_known: bool) -> None:
        """A prompt."""
        self.known.append(is_known)

    def finished(self, times: RunTimes) -> None:
        """A batch."""
        self.times.append(times)


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def test_marks_become_times():
    """Spans of guidance add up; steps lie between their ends; the rest up to the reading is decoding."""
    watch = Stopwatch(iter([0.0, 1.0, 3.0, 5.0, 10.0, 10.5, 16.0]).__next__)
    first, second = watch.mark(CPU), watch.mark(CPU)
    watch.guided(first, second)
    watch.guided(watch.mark(CPU), watch.mark(CPU))
    for _ in range(2):
        watch.end_step(watch.mark(CPU))
    assert watch.read(CPU) == RunTimes(guidance_s=3.0, decode_s=5.5, steps_s=(0.5,))


def test_a_run_without_steps_has_no_times():
    """Nothing is decoded of what never began."""
    assert Stopwatch().read(CPU) == RunTimes(0.0, 0.0, ())


@pytest.mark.parametrize("engine_name", ["toy", "sd"])
def test_engines_tell_their_listener(engine_name, model_directories):
    """Each finished batch and each prompt that was asked for; what was guided is a part of the whole."""
    preset = preset_named("toy")
    engine = (
        ToyEngine(preset)
        if engine_name == "toy"
        else load_engine(str(model_directories["sd"]), preset="sd", device="cpu")
    )
    listener = Listener()
    assert isinstance(listener, EngineListener)
    engine.listener = listener
    engine.embed_prompts(["a star"])
    engine.embed_prompts(["a star", "a moon"])
    assert listener.known == [False, True, False]
    begun_s = time.perf_counter()
    engine.generate([SampleGroup("a star", "", (1, 2), 1.0, None)], PLAN, silent)
    whole_s = time.perf_counter() - begun_s
    (times,) = listener.times
    assert len(times.steps_s) == PLAN.steps - 1
    assert min(times.guidance_s, times.decode_s, *times.steps_s) > 0
    assert times.guidance_s + times.decode_s < whole_s
    assert sum(times.steps_s) + times.decode_s < whole_s


def test_a_block_of_many_runs_holds_the_marks_of_one(model_directories):
    """However many images somebody makes in one block: on CUDA each mark is an event of the device."""
    pipe = StableDiffusionPipeline.from_pretrained(model_directories["sd"], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    watch, preset = Stopwatch(), preset_named("sd")
    guide = GroupGuide([GuidedGroup(slice(None), preset, 1.0, None)])
    with guided_steps(pipe, guide, stopwatch=watch):
        for _ in range(3):
            pipe("a star", num_inference_steps=4, width=32, height=32, output_type="latent")
    assert len(watch.read(CPU).steps_s) == 3
    assert len(watch._guided) == 8


def test_what_is_broken_off_is_not_told(model_directories):
    """A batch that was cancelled at a step has no times."""
    engine = load_engine(str(model_directories["sd"]), preset="sd", device="cpu")
    engine.listener = listener = Listener()

    def stop(_done: int, _num_steps: int) -> None:
        raise KeyError("cancelled")

    with pytest.raises(KeyError):
        engine.generate([SampleGroup("a star", "", (1,), 1.0, None)], PLAN, stop)
    assert listener.times == []


@pytest.mark.gpu
def test_a_device_is_timed_by_its_own_clock():
    """Work that is launched is not done: between events its whole time is found, though nothing waited for it."""
    device = torch.device("cuda")
    rows = torch.randn(4096, 4096, device=device)
    torch.mm(rows, rows)
    torch.cuda.synchronize()
    watch, begun_s = Stopwatch(), time.perf_counter()
    begun = watch.mark(device)
    for _ in range(20):
        rows = torch.mm(rows, rows).clamp(-1, 1)
    ended = watch.mark(device)
    launched_s = time.perf_counter() - begun_s
    watch.guided(begun, ended)
    watch.end_step(ended)
    torch.cuda.synchronize()
    whole_s = time.perf_counter() - begun_s
    times = watch.read(device)
    assert launched_s < times.guidance_s <= whole_s
