"""Which step a call of `step` belongs to: second-order schedulers, runs from the middle, to the middle, and broken off."""

import runpy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.pipelines import load_pipeline
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Start, Step
from sparke_engine.guidance.presets import preset_named
from sparke_engine.guidance.push import Entries

HERE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scheduler_cases.py"))))
NUM_STEPS = HERE.NUM_STEPS
SECOND_ORDER = [case for case in HERE.ONE_OF_EACH if case.short in HERE.TWO_CALLS]

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, of its own rounding


@dataclass
class Recorder:
    """A guide that keeps what it is asked, and moves nothing."""

    starts: list[int] = field(default_factory=list)
    calls: list[tuple[int, float]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    num_steps: set[int] = field(default_factory=set)
    finished: list[tuple[Tensor, int]] = field(default_factory=list)
    heard: list[tuple[int, int]] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    began: list[Start | None] = field(default_factory=list)

    def displace(self, step: Step) -> list[Move]:
        """Before a step."""
        self.starts.append(step.index)
        self.noise.append(step.noise.ratio)
        self.began.append(step.start)
        return []

    def before(self, step: Step) -> list[Move]:
        """In every call."""
        self.calls.append((step.index, step.share))
        self.num_steps.add(step.num_steps)
        return []

    def after(self, step: Step, latents: Tensor) -> list[Move]:
        """After a step."""
        del latents
        self.ends.append(step.index)
        return []

    def finish(self, latents: Tensor, num_steps: int) -> None:
        """At the end of a run."""
        self.finished.append((latents, num_steps))

    def on_step(self, done: int, num_steps: int) -> None:
        """Progress."""
        self.heard.append((done, num_steps))

    def saw_one_run_of(self, num_steps: int) -> None:
        """Every step was started, ended and told of once, its calls add up to it, and the run was finished."""
        steps = list(range(num_steps))
        assert self.starts == self.ends == steps
        assert self.heard == [(step + 1, num_steps) for step in steps]
        assert self.num_steps == {num_steps}
        shares = [sum(share for index, share in self.calls if index == step) for step in steps]
        assert shares == pytest.approx([1.0] * num_steps)
        assert [number for _, number in self.finished] == [num_steps]


def test_second_order_steps_have_two_calls() -> None:
    """Both calls for a step have its index and half of it; the last step, to no noise, is one call."""
    for case in SECOND_ORDER:
        scheduler, guide = case.make(), Recorder()
        with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
            HERE.run(scheduler)
        both = [(step, 0.5) for step in range(NUM_STEPS - 1) for _ in range(2)]
        assert guide.calls == [*both, (NUM_STEPS - 1, 1.0)]


def test_the_calls_of_other_steps() -> None:
    """PLMS takes its first step twice; Runge-Kutta steps take four calls; a step of DPM++ single-step is the solver's."""
    even = {"lower_order_final": True}
    expected = [
        (HERE.Case("PNDM"), [2, 1, 1, 1, 1, 1, 1]),
        (HERE.Case("PNDM", "epsilon", {"skip_prk_steps": False}), [4, 4, 4, 1, 1, 1, 1]),
        (HERE.Case("DPMSolverSinglestep", "epsilon", even), [2, 2, 2, 1]),
        (HERE.Case("DPMSolverSinglestep", "epsilon", even | {"solver_order": 3}), [3, 3, 1]),
    ]
    for case, sizes in expected:
        scheduler, guide = case.make(), Recorder()
        with guided_steps(SimpleNamespace(scheduler=scheduler), guide, guide.on_step):
            HERE.run(scheduler)
        guide.saw_one_run_of(len(sizes))
        assert [index for index, _ in guide.calls] == [
            step for step, size in enumerate(sizes) for _ in range(size)
        ]


@pytest.mark.parametrize("tells", [True, False], ids=["the pipeline tells", "it does not"])
@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_a_run_from_the_middle(case: Any, *, tells: bool) -> None:
    """Image-to-image pipelines leave the first timesteps out: steps are counted from the first that is taken."""
    if case.short == "PNDM" and not tells:
        pytest.skip("its second and third timesteps are one, and do not tell where a run starts")
    scheduler, guide, begin = case.make(), Recorder(), 2
    pipe = SimpleNamespace(scheduler=scheduler)
    if tells:
        pipe._num_timesteps = len(HERE.timesteps_of(scheduler)) - begin
    with guided_steps(pipe, guide, guide.on_step):
        trail = HERE.run(scheduler, begin=begin)
    shorter = {"DPMSolverSinglestep": 2, **dict.fromkeys(HERE.TWO_CALLS, 1)}
    if case.short == "DPMSolverSinglestep":  # orders 1, 2, 1, 2, 1
        guide.saw_one_run_of(3)
    else:
        guide.saw_one_run_of(NUM_STEPS - shorter.get(case.short, begin))
    assert torch.equal(guide.finished[0][0], trail[-1])


@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_where_a_run_begins_is_told(case: Any) -> None:
    """From the middle, all steps know the noise of the run's first and of the scheduler's; then a whole run knows none."""
    scheduler, guide = case.make(), Recorder()
    begin = 1 if case.short == "PNDM" else 2  # a timestep that tells where it stands
    with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
        HERE.run(scheduler, begin=begin)
        num_steps = len(guide.starts)
        HERE.run(scheduler)
    whole = guide.noise[num_steps]
    assert guide.began[:num_steps] == [Start(guide.noise[0], whole)] * num_steps
    assert guide.began[num_steps:] == [None] * (len(guide.starts) - num_steps)
    assert guide.noise[0] < whole


@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_a_run_that_was_broken_off(case: Any) -> None:
    """What begins after a run that was broken off, in the midst of a step too, is a run of its own."""
    scheduler, guide = case.make(), Recorder()
    with guided_steps(SimpleNamespace(scheduler=scheduler), guide, guide.on_step):
        for calls in (1, 4):
            HERE.set_timesteps(scheduler, NUM_STEPS)
            caller, sample = HERE.Caller(scheduler), HERE.start(scheduler)
            for timestep in HERE.timesteps_of(scheduler)[:calls]:
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(sample, timestep)
                sample = caller(0.1 * sample, timestep, sample)
        for seen in (guide.starts, guide.calls, guide.ends, guide.heard):
            seen.clear()
        HERE.run(scheduler)
        HERE.run(scheduler)
    assert [number for _, number in guide.finished] == [guide.num_steps.pop()] * 2
    half = len(guide.calls) // 2
    assert guide.calls[:half] == guide.calls[half:]


def test_a_run_that_starts_where_another_broke_off() -> None:
    """Timesteps that are set anew are a new run, also where it starts at the place that would have come next."""
    for short in ("DDIM", "EulerDiscrete"):
        scheduler, guide = HERE.Case(short).make(), Recorder()
        with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
            for timestep in scheduler.timesteps[:2]:
                scheduler.scale_model_input(HERE.noise(1), timestep)
                scheduler.step(HERE.noise(0), timestep, HERE.noise(1))
            guide.starts.clear()
            HERE.run(scheduler, begin=2)
        assert guide.starts == list(range(NUM_STEPS - 2))


def test_equal_timesteps_are_told_apart() -> None:
    """With more steps than a schedule has timesteps for, equal ones are steps of their own."""
    scheduler, guide = HERE.Case("DDIM").make(), Recorder()
    scheduler.timesteps = torch.tensor([800, 400, 400, 400, 1])
    with guided_steps(SimpleNamespace(scheduler=scheduler), guide, guide.on_step):
        for timestep in scheduler.timesteps:
            scheduler.step(HERE.noise(0), timestep, HERE.noise(1))
    guide.saw_one_run_of(5)


def test_two_calls_count_as_one_push() -> None:
    """The push of an image is the mean over steps under Heun too, so it is about Euler's and not the double."""
    preset = preset_named("sd")
    known = 0.5 * HERE.noise(77)
    entries = Entries(unit(preset.feature_map.feature(known)), torch.ones(len(known)))
    pushes = []
    for short in ("EulerDiscrete", "HeunDiscrete"):
        guide = GroupGuide([GuidedGroup(slice(None), preset, 1.0, entries)])
        scheduler = HERE.Case(short, "epsilon", {"num_train_timesteps": 100}).make(20)
        HERE.ideal_run(scheduler, 20, guided_steps(SimpleNamespace(scheduler=scheduler), guide))
        pushes.append(guide.runs[0].pushes)
    torch.testing.assert_close(pushes[1], pushes[0], rtol=0.1, atol=0)


def pipeline(directory: Path, scheduler: str, cls: type | None = None) -> Any:
    """A tiny pipeline with that scheduler; or another pipeline of its parts."""
    pipe = load_pipeline(str(directory), scheduler=scheduler)
    if cls is None:
        return pipe
    more = {} if "XL" in cls.__name__ else {"requires_safety_checker": False}
    other = cls(**pipe.components, **more)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("short", ["DDIM", "PNDM", "HeunDiscrete"])
def test_image_to_image(model_directories: dict[str, Path], short: str) -> None:
    """At strength 0.5, half of the steps are taken and counted, and the last latents are the pipeline's."""
    pipe = pipeline(model_directories["sd"], f"{short}Scheduler", StableDiffusionImg2ImgPipeline)
    guide = Recorder()
    with guided_steps(pipe, guide, guide.on_step):
        latents = pipe(
            "a cat",
            Image.new("RGB", (32, 32), "gray"),
            strength=0.5,
            num_inference_steps=8,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
    guide.saw_one_run_of(4)
    assert torch.equal(guide.finished[0][0], latents)


@pytest.mark.parametrize("short", ["EulerDiscrete", "HeunDiscrete"])
def test_a_base_and_a_refiner(model_directories: dict[str, Path], short: str) -> None:
    """Steps of SDXL's base end where its refiner goes on; what the base is remembered by is not noise."""
    base = pipeline(model_directories["sdxl"], f"{short}Scheduler")
    refiner = pipeline(model_directories["sdxl"], f"{short}Scheduler", StableDiffusionXLImg2ImgPipeline)
    guides = Recorder(), Recorder()
    with guided_steps(base, guides[0], guides[0].on_step):
        noisy = base(
            "a cat", width=32, height=32, num_inference_steps=8, denoising_end=0.5, output_type="latent"
        ).images
    with guided_steps(refiner, guides[1], guides[1].on_step):
        final = refiner(
            "a cat", image=noisy, num_inference_steps=8, denoising_start=0.5, output_type="latent"
        ).images
    for guide in guides:
        guide.saw_one_run_of(len(guide.starts))
    assert sum(len(guide.starts) for guide in guides) in {8, 9}  # Heun goes on from the middle of a step
    assert not torch.allclose(guides[0].finished[0][0], noisy)
    assert torch.equal(guides[1].finished[0][0], final)


@pytest.mark.parametrize(
    "asked", [{"timesteps": [900, 500, 100]}, {"sigmas": [10.0, 3.0, 1.0, 0.0]}], ids=str
)
def test_timesteps_of_ones_own(model_directories: dict[str, Path], asked: dict[str, Any]) -> None:
    """Pipelines that are called with timesteps or noise levels take as many steps as those are."""
    pipe, guide = pipeline(model_directories["sd"], "EulerDiscreteScheduler"), Recorder()
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    with guided_steps(pipe, guide, guide.on_step):
        pipe("a cat", width=32, height=32, output_type="latent", **asked)
    guide.saw_one_run_of(3)
