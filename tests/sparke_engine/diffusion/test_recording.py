"""Guidance that is recorded once and replayed does what guidance does step by step."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.guide import FinishedRun, GroupGuide, GuidedGroup
from sparke_engine.diffusion.recording import StepRecorder
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Reference

PRESET = DiversityPreset(
    grid=(2, 2), eta=0.5, window=0.55, relax=0.7, latent_bandwidth=1.5, reference_window=0.4, max_push=10
)
SCALE, STEPS = 5.0, 10
SCHEDULERS = [
    diffusers.EulerDiscreteScheduler(),
    diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    diffusers.DPMSolverMultistepScheduler(),
    diffusers.UniPCMultistepScheduler(),
    diffusers.HeunDiscreteScheduler(),
    diffusers.PNDMScheduler(skip_prk_steps=True),
    diffusers.FlowMatchEulerDiscreteScheduler(),
]


class Doubled(nn.Module):
    """A denoiser of doubled batches whose halves differ, and differ with what they are given."""

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Without the prompt and under it."""
        return (torch.cat([torch.tanh(latents), torch.tanh(latents.flip(-1)) + 0.1]),)


class FrozenPython:
    """Stands for a graph: what was recorded reads its tensors anew, and Python as it was; it does nothing by itself."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The work itself, each time."""
        self.num_recorded += 1

        def replay() -> Tensor:
            self.num_replayed += 1
            return work()

        return replay


def groups() -> list[GuidedGroup]:
    """A group with a memory and a reference, one that is pushed by its own images alone, and one that is not."""
    generator = torch.Generator().manual_seed(7)
    features = unit(torch.randn(5, 16, generator=generator))
    reference = Reference(Entries(features[:2], torch.ones(2)), 0.6)
    return [
        GuidedGroup(slice(0, 1), PRESET, 1.0, Entries(features, torch.ones(5)), references=(reference,)),
        GuidedGroup(slice(1, 3), PRESET, 0.4, None),
        GuidedGroup(slice(3, 4), PRESET, 0.0, None),
    ]


def runs_of(scheduler: Any, recorder: StepRecorder, num_runs: int = 1) -> list[FinishedRun]:
    """The ends of whole runs under classifier-free guidance."""
    scheduler = type(scheduler).from_config(scheduler.config)
    pipe, guide = SimpleNamespace(scheduler=scheduler, unet=Doubled()), GroupGuide(groups())
    with guided_steps(pipe, guide, recorder=recorder):
        for run in range(num_runs):
            scheduler.set_timesteps(STEPS)
            latents = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(run))
            latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
            for timestep in scheduler.timesteps:
                scaled = latents
                if hasattr(scheduler, "scale_model_input"):
                    scaled = scheduler.scale_model_input(latents, timestep)
                without, under = pipe.unet(scaled)[0].chunk(2)
                output = without + SCALE * (under - without)
                latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return guide.runs


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
def test_replayed_guidance_is_guidance(scheduler: Any) -> None:
    """Latents and pushes agree with those made step by step, in the second run of a block too, to rounding in fp32."""
    graphs = FrozenPython()
    plain, replayed = runs_of(scheduler, StepRecorder(), 2), runs_of(scheduler, StepRecorder(graphs), 2)
    for expected, found in zip(plain, replayed, strict=True):
        torch.testing.assert_close(found.latents, expected.latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.pushes, expected.pushes, rtol=1e-5, atol=1e-7)
        assert found.pushes[0] > found.pushes[1] > 0 == found.pushes[3]
    # In each run all acts in four steps and all but the reference in six, at smaller and smaller sizes. In the first run
    # the first of each comes as it is. Schedulers that call `step` more than once a step repeat more.
    assert graphs.num_recorded >= 2 * 2
    assert graphs.num_replayed >= (3 + 5) + (4 + 6)


def test_a_cut_is_not_recorded() -> None:
    """Where the scheduler cuts x̂0, by plain numbers of the step, guidance comes as it is."""
    graphs = FrozenPython()
    runs_of(diffusers.DDIMScheduler(clip_sample=True), StepRecorder(graphs))
    assert graphs.num_recorded == 0


def test_what_a_spectrum_decides_is_not_recorded() -> None:
    """Nor under the objective `vendi`, nor where no group acts: then it is never ready."""
    step = Step(
        0, STEPS, lambda: torch.ones(4, 4, 4, 4), lambda: torch.zeros(4, 4, 4, 4), guidance_scale=SCALE
    )
    first, *others = groups()
    vendi = replace(PRESET, objective="vendi")
    assert GroupGuide([first, *others]).ready(step) is not None
    assert GroupGuide([replace(first, preset=vendi), *others]).ready(step) is None
    assert GroupGuide(others[1:]).ready(step) is None


class Doubling:
    """Work that counts how often it is asked, and depends on a tensor, a number and a setting."""

    def __init__(self) -> None:
        self.num_asked = 0

    def __call__(self, tensors: Any, numbers: Any) -> Tensor:
        """2·tensor + number."""
        self.num_asked += 1
        return 2 * tensors[0] + numbers[0]


def test_work_is_done_then_recorded_then_replayed() -> None:
    """As it comes when first met, recorded the second time and in every run after; a result stays when the next is made."""
    graphs, work = FrozenPython(), Doubling()
    recorder = StepRecorder(graphs)
    results = [recorder.do(work, "a", [torch.full((2,), float(i))], [0.5]) for i in range(4)]
    assert [float(result[1]) for result in results] == [0.5, 2.5, 4.5, 6.5]
    assert (graphs.num_recorded, graphs.num_replayed) == (1, 3)
    assert float(recorder.do(work, "b", [torch.ones(2)], [1.0])[0]) == 3.0
    assert graphs.num_recorded == 1
    recorder.forget()
    assert float(recorder.do(work, "a", [torch.ones(2)], [1.0])[0]) == 3.0
    assert (graphs.num_recorded, graphs.num_replayed) == (2, 4)


def test_another_form_of_the_tensors_is_other_work() -> None:
    """Tensors of another shape or dtype do not meet what was recorded for these."""
    graphs, work = FrozenPython(), Doubling()
    recorder = StepRecorder(graphs)
    for tensor in (torch.ones(2), torch.ones(2), torch.ones(3), torch.ones(3, dtype=torch.float64)):
        result = recorder.do(work, "a", [tensor], [0.0])
        assert (result.shape, result.dtype) == (tensor.shape, tensor.dtype)
    assert (graphs.num_recorded, graphs.num_replayed) == (1, 1)


def test_what_cannot_be_recorded_is_done_all_the_same() -> None:
    """A recorder that fails costs a warning and no result."""

    def failing(_work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    recorder, work = StepRecorder(failing), Doubling()
    recorder.do(work, "a", [torch.ones(2)], [0.0])
    with pytest.warns(UserWarning, match="kernel by kernel: operation not permitted"):
        assert float(recorder.do(work, "a", [torch.ones(2)], [0.0])[0]) == 2.0
    assert float(recorder.do(work, "a", [torch.full((2,), 3.0)], [1.0])[0]) == 7.0
    recorder.forget()
    assert float(recorder.do(work, "a", [torch.full((2,), 4.0)], [1.0])[0]) == 9.0


def test_a_processor_records_nothing() -> None:
    """Without a CUDA device work is done as it comes."""
    assert not StepRecorder().records(torch.device("cpu"))
    assert StepRecorder().records(torch.device("cuda"))


class Operations(TorchDispatchMode):
    """Counts what is done to tensors."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself."""
        self.num += 1
        return func(*args, **(kwargs or {}))


def test_more_numbers_are_no_more_copies() -> None:
    """What is done before a replay does not grow with the numbers that it reads: a batch of many groups has many."""
    counts = []
    for num_numbers in (2, 50):
        recorder = StepRecorder(lambda work: work)

        def work(tensors: Any, _numbers: Any) -> Tensor:
            return tensors[0]

        recorder.do(work, "a", [torch.ones(2)], [0.0] * num_numbers)
        with Operations() as operations:
            recorder.do(work, "a", [torch.ones(2)], [0.0] * num_numbers)
        counts.append(operations.num)
    assert counts[0] == counts[1]


def test_a_call_in_inference_mode_leaves_the_recorder_usable() -> None:
    """What was held there is written by a later call without it."""
    recorder, work = StepRecorder(FrozenPython()), Doubling()
    with torch.inference_mode():
        recorder.do(work, "a", [torch.ones(2)], [0.0])
    assert float(recorder.do(work, "a", [torch.full((2,), 3.0)], [1.0])[0]) == 7.0
