"""What becomes of a push by the end of a run, for every scheduler, against the exact solution of the flow.

In the angle φ = arctan(σ/α) of noise, with u = z/√(α² + σ²), the flow is du/dφ = cos(φ)·ε̂ − sin(φ)·x̂0 with
ε̂ = (u − cos(φ)·x̂0)/sin(φ). A push δ of x̂0 adds δ/sin(φ), and the perfect model of standard normal pixels adds nothing.
So a push from φ₀ to φ₁ moves the image by −δ·log(tan(φ₀/2)/tan(φ₁/2)), and a move of z moves it by as much over √(α² + σ²).
"""

import math
import runpy
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.schedulers import adapter_for
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import preset_named
from sparke_engine.guidance.push import Entries

HERE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scheduler_cases.py"))))
DELTA = 0.5 * HERE.noise(77)
FIRST = slice(0, 1)
NUM_STEPS = 20
# Prediction types of one scheduler differ by what test_schedulers.py looks at alone.
CASES = [case for case in HERE.CASES if case.more or case in HERE.ONE_OF_EACH]

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, of its own rounding


@dataclass
class Pusher:
    """A guide that moves the first image by DELTA: clean latents in the first half of the steps, or noisy ones at one step."""

    pushes: bool = False
    displaced_at: int | None = None
    after_at: int | None = None
    indices: list[int] = field(default_factory=list)
    half: float = 0.0

    def displace(self, step: Step) -> list[Move]:
        """At one step."""
        return [Move(FIRST, DELTA[FIRST])] if step.index == self.displaced_at else []

    def before(self, step: Step) -> list[Move]:
        """In the first half."""
        self.indices.append(step.index)
        self.half = step.num_steps / 2
        return [Move(FIRST, DELTA[FIRST])] if self.pushes and step.index < self.half else []

    def after(self, step: Step, latents: Tensor) -> list[Move]:
        """After one step."""
        del latents
        return [Move(FIRST, DELTA[FIRST])] if step.index == self.after_at else []

    def finish(self, latents: Tensor, num_steps: int) -> None:
        """Nothing."""


def moved_by(case: Any, guide: Pusher, num_steps: int = NUM_STEPS) -> tuple[float, list[float]]:
    """How far the first image moves along −DELTA, in its length, and the angle of each call.

    It moves along it only, and the other image not by a bit.
    """
    stock, _ = HERE.ideal_run(case.make(num_steps), num_steps, nullcontext())
    scheduler = case.make(num_steps)
    pushed, angles = HERE.ideal_run(
        scheduler, num_steps, guided_steps(SimpleNamespace(scheduler=scheduler), guide)
    )
    assert torch.equal(stock[1:], pushed[1:])
    move = (stock - pushed)[FIRST].flatten()
    delta = DELTA[FIRST].flatten().double()
    assert float(torch.nn.functional.cosine_similarity(move, delta, dim=0)) > 0.999
    return float(move @ delta / (delta @ delta)), angles


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_push_lasts(case: Any) -> None:
    """No solver takes a push back: in a deterministic run it moves the image as the exact solution says.

    Solvers of first order fall short by a tenth in so large steps, EDM's from σ = 80 by more; half of it would be what a
    corrector takes back that is not pushed. Noise on the way doubles what a push does at most, and then forgets it.
    """
    guide = Pusher(pushes=True)
    move, angles = moved_by(case, guide)
    end = next(call for call, index in enumerate(guide.indices) if index >= guide.half)
    exact = math.log(math.tan(angles[0] / 2) / math.tan(angles[end] / 2))
    if HERE.is_stochastic(case):
        assert 0 < move < 2 * exact
    else:
        assert 0.7 * exact < move < 1.05 * exact


@pytest.mark.parametrize("way", ["displaced_at", "after_at"])
@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_a_move_of_noisy_latents_lasts(case: Any, way: str) -> None:
    """What modes `released` and `paper` do to the noisy latents on the way is there at the end, by the exact solution.

    The tolerance is for steps of first order, and for a step that starts from moved latents with the old output, which
    multistep solvers extrapolate. Where every step draws noise anew, most is forgotten, and the rest is measured late.
    """
    stochastic = HERE.is_stochastic(case)
    step = (3 if stochastic else 1) * NUM_STEPS // 4
    guide = Pusher(**{way: step})
    move, angles = moved_by(case, guide)
    exact = HERE.length_of_unit(
        case, angles[guide.indices.index(step if way == "displaced_at" else step + 1)]
    )
    if stochastic:
        assert 0 < move < 1.2 * exact
    else:
        assert 0.8 * exact < move < 1.2 * exact


CORRECTORS = [
    HERE.Case("UniPCMultistep", "sample"),
    HERE.Case("UniPCMultistep", "epsilon", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    HERE.Case("SASolver", "sample"),
    HERE.Case("SASolver", "epsilon", {"algorithm_type": "noise_prediction"}),
]


def latents_after(case: Any, *, moves: bool, corrects: bool) -> Tensor:
    """The first image's latents after the 9th step, which starts from moved latents, or goes without a corrector."""
    scheduler = case.make(NUM_STEPS)
    guide = Pusher(displaced_at=8 if moves else None)
    caller, sample = HERE.Caller(scheduler), HERE.start(scheduler).double()
    with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
        for number, timestep in enumerate(scheduler.timesteps[:9]):
            if number == 8 and not corrects:
                scheduler.last_sample = None
            sample = caller(HERE.noise(number).double(), timestep, sample)
    return sample[FIRST]


@pytest.mark.parametrize("case", CORRECTORS, ids=str)
def test_a_corrector_comes_to_where_latents_were_moved(case: Any) -> None:
    """Where the output fixes what a solver keeps, a move does with the corrector exactly what it does without it."""
    differences = [
        latents_after(case, moves=True, corrects=corrects)
        - latents_after(case, moves=False, corrects=corrects)
        for corrects in (True, False)
    ]
    assert differences[0].norm() > 1
    # coefficients of the schedulers are fp32
    torch.testing.assert_close(differences[0], differences[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_the_noise_is_the_pipelines(case: Any) -> None:
    """A push changes nothing about what is drawn from the pipeline's generator."""
    states = []
    for pushes in (False, True):
        scheduler = case.make()
        caller, sample = HERE.Caller(scheduler), HERE.start(scheduler)
        with guided_steps(SimpleNamespace(scheduler=scheduler), Pusher(pushes=pushes)):
            for timestep in HERE.timesteps_of(scheduler):
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(sample, timestep)
                sample = caller(0.1 * sample, timestep, sample)
        states.append(caller.generator.get_state())
    assert torch.equal(*states)


CUTS = [
    HERE.Case("DDIM", "epsilon", {"clip_sample": True, "clip_sample_range": 0.7}),
    HERE.Case("DDPM", "v_prediction", {"clip_sample": True}),
    HERE.Case("DDPM", "epsilon", {"thresholding": True}),
    HERE.Case("LCM", "epsilon", {"clip_sample": True}),
    HERE.Case("HeunDiscrete", "epsilon", {"clip_sample": True}),
    HERE.Case("DPMSolverMultistep", "epsilon", {"thresholding": True}),
    HERE.Case("EDMDPMSolverMultistep", "epsilon", {"thresholding": True}),
]


@pytest.mark.parametrize("case", CUTS, ids=str)
def test_a_cut_is_seen_and_comes_after_the_push(case: Any) -> None:
    """Where a scheduler clips or thresholds x̂0, a guide sees what is left, and a push acts before: cut(x̂0 − δ)."""
    scheduler = case.make()
    adapter, timestep = adapter_for(scheduler), scheduler.timesteps[0]
    sample, output, delta = 2 * HERE.start(scheduler), HERE.noise(3), HERE.noise(4)
    scheduler.scale_model_input(sample, timestep)
    prediction = adapter.prediction(0, timestep)
    free = prediction.of_sample * sample + prediction.of_output * output
    cut = HERE.oracle_clean(scheduler, timestep, sample, output)
    assert not torch.allclose(cut, free)
    torch.testing.assert_close(prediction.clean(sample, output), cut, rtol=1e-5, atol=1e-5)
    shifted = HERE.oracle_clean(scheduler, timestep, sample, prediction.shifted(output, delta))
    torch.testing.assert_close(shifted, prediction.bound(sample, free - delta), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_few_steps_are_pushed(case: Any, num_steps: int) -> None:
    """A window narrower than one step is a weaker push in it: images of models that take 1 or 4 steps move too."""
    if num_steps == 1 and case.short in {"DPMSolverSinglestep", "KDPM2AncestralDiscrete", "PNDM", "SASolver"}:
        pytest.skip("the stock scheduler takes no single step, or makes nothing of it")
    preset = preset_named("sd")
    entries = Entries(unit(preset.feature_map.feature(DELTA)), torch.ones(len(DELTA)))
    finals = []
    for strength in (0.0, 1.0):
        guide = GroupGuide([GuidedGroup(slice(None), preset, strength, entries)])
        scheduler = case.make(num_steps)
        with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
            HERE.run(scheduler)
        finals.append(guide.runs[0])
    assert finals[0].pushes.sum() == 0
    assert torch.all(finals[1].pushes > 0)
    assert not torch.equal(finals[0].latents, finals[1].latents)
