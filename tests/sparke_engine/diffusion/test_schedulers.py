"""The algebra of each scheduler against what the scheduler itself makes of an output."""

import runpy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.schedulers import KINDS, StepCounter, adapter_for, supported_schedulers
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Step
from sparke_engine.errors import NestedGuidance, UnsupportedPipeline, UnsupportedScheduler

HERE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scheduler_cases.py"))))
CASES, Case, Caller = HERE.CASES, HERE.Case, HERE.Caller
run, noise, model, oracle_clean = HERE.run, HERE.noise, HERE.model, HERE.oracle_clean
SHAPE, NUM_STEPS = HERE.SHAPE, HERE.NUM_STEPS
HALF_PRECISION = [torch.float16, torch.bfloat16]

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, of its own rounding


def tolerance(clean: Tensor, sample: Tensor, output: Tensor, prediction: Any) -> float:
    """Sixteen ulps of the terms that x̂0 is the difference of."""
    terms = abs(prediction.of_sample) * sample.abs().max() + abs(prediction.of_output) * output.abs().max()
    return 16 * torch.finfo(torch.float32).eps * float(terms + clean.abs().max())


def test_every_scheduler_and_prediction_type_has_a_case() -> None:
    """A scheduler cannot be supported untested."""
    supported = {
        (name, kind) for name, row in KINDS.items() for kind in row.prediction_types if kind != "flow"
    }
    tested = {(case.name, case.prediction_type) for case in HERE.ALL_CASES}
    assert supported <= tested
    assert {name for name, _ in tested} == set(KINDS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_clean_prediction_and_injection(case: Any) -> None:
    """At every call of a run, x̂0 is the scheduler's own, and that of the shifted output is x̂0 − δ."""
    scheduler = case.make()
    adapter, caller = adapter_for(scheduler), Caller(scheduler)
    counter = StepCounter(adapter, lambda: None)
    sample = HERE.start(scheduler)
    for number, timestep in enumerate(HERE.timesteps_of(scheduler)):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        output, delta = model(sample, number), 0.3 * noise(number)
        place = counter.next(timestep)
        assert place.position == number
        prediction = adapter.prediction(place.position, timestep)
        assert prediction.can_push
        expected_level = HERE.noise_level(scheduler, timestep, number)
        assert adapter.noise_level(place.position, timestep) == pytest.approx(
            expected_level, rel=1e-4, abs=1e-5
        )
        clean = oracle_clean(scheduler, timestep, sample, output)
        atol = tolerance(clean, sample, output, prediction)
        torch.testing.assert_close(
            prediction.clean(sample, output), clean, rtol=0, atol=atol, check_dtype=False
        )
        shifted = oracle_clean(scheduler, timestep, sample, prediction.shifted(output, delta))
        torch.testing.assert_close(shifted, clean - delta, rtol=0, atol=2 * atol, check_dtype=False)
        sample = caller(output, timestep, sample)
    assert place.ends_run
    assert adapter.num_calls == number + 1


@dataclass
class FixedGuide:
    """A guide that moves the first image's clean latents by `size` everywhere, at every step."""

    size: float
    seen: list[Tensor] = field(default_factory=list)
    finished: list[Tensor] = field(default_factory=list)
    after_steps: list[int] = field(default_factory=list)

    def displace(self, step: Step) -> list[Move]:
        """None."""
        del step
        return []

    def before(self, step: Step) -> list[Move]:
        """One move."""
        self.seen.append(step.clean)
        return [Move(slice(0, 1), torch.full((1, *SHAPE[1:]), self.size))]

    def after(self, step: Step, latents: Tensor) -> list[Move]:
        """None."""
        del latents
        self.after_steps.append(step.index)
        return []

    def finish(self, latents: Tensor, num_steps: int) -> None:
        """Keep the final latents."""
        del num_steps
        self.finished.append(latents)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES]
    + [(case, dtype) for case in HERE.ONE_OF_EACH for dtype in HALF_PRECISION],
    ids=str,
)
def test_zero_push_is_the_stock_run(case: Any, dtype: torch.dtype) -> None:
    """A push of zero leaves every latent of a whole run as the stock scheduler makes it, to the bit."""
    stock, guided = run(case.make(), dtype), case.make()
    with guided_steps(SimpleNamespace(scheduler=guided), FixedGuide(0.0)):
        trail = run(guided, dtype)
    for expected, actual in zip(stock, trail, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("return_dict", [False, True])
@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_a_push_moves_its_rows_only(case: Any, *, return_dict: bool) -> None:
    """A run in which the first image is pushed moves it, leaves the second to the bit, and captures the final latents."""
    stock, guided, guide = run(case.make()), case.make(), FixedGuide(0.05)
    with guided_steps(SimpleNamespace(scheduler=guided), guide):
        trail = run(guided, return_dict=return_dict)
    assert not torch.equal(trail[-1][0], stock[-1][0])
    for expected, actual in zip(stock, trail, strict=True):
        assert torch.equal(actual[1], expected[1])
    assert torch.equal(guide.finished[0], trail[-1])
    assert len(guide.seen) == len(HERE.timesteps_of(guided))


@pytest.mark.parametrize("case", HERE.ONE_OF_EACH, ids=str)
def test_after_the_block_the_scheduler_is_stock(case: Any) -> None:
    """Leaving the block gives back the class's own method, and a run equals the stock run."""
    scheduler = case.make()
    with guided_steps(SimpleNamespace(scheduler=scheduler), FixedGuide(0.1)):
        run(scheduler)
    assert "step" not in vars(scheduler)
    for expected, actual in zip(run(case.make()), run(scheduler), strict=True):
        assert torch.equal(actual, expected)


def test_steps_are_counted_from_one() -> None:
    """`on_step` hears how many steps are done; PLMS' two calls for its first step are one."""
    heard: list[tuple[int, int]] = []
    for name, num_steps in (("DDIM", 7), ("PNDM", 7)):
        scheduler = Case(name, "epsilon").make()
        heard.clear()
        with guided_steps(
            SimpleNamespace(scheduler=scheduler), FixedGuide(0.0), lambda done, of: heard.append((done, of))
        ):
            run(scheduler)
        assert heard == [(done, num_steps) for done in range(1, num_steps + 1)]


def test_latents_that_are_thrown_away_are_not_moved() -> None:
    """PLMS takes its first step twice: what the first try made is not offered for a push."""
    for name, expected in (("DDIM", list(range(7))), ("PNDM", list(range(7)))):
        scheduler, guide = Case(name, "epsilon").make(), FixedGuide(0.0)
        with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
            run(scheduler)
        assert guide.after_steps == expected


class Cancelled(Exception):
    """What a service raises to stop a run."""


def test_a_cancel_comes_out_and_restores() -> None:
    """What `on_step` raises ends the run at once, and the scheduler is stock again."""
    scheduler, heard = Case("EulerDiscrete", "epsilon").make(), []

    def on_step(done: int, num_steps: int) -> None:
        del num_steps
        heard.append(done)
        if done == 3:
            raise Cancelled

    with (
        pytest.raises(Cancelled),
        guided_steps(SimpleNamespace(scheduler=scheduler), FixedGuide(0.0), on_step),
    ):
        run(scheduler)
    assert heard == [1, 2, 3]
    assert "step" not in vars(scheduler)
    assert len(run(scheduler)) == NUM_STEPS


def test_another_wrapper_is_kept() -> None:
    """A `step` that someone set on the instance before is there again afterwards."""
    scheduler = Case("DDIM", "epsilon").make()
    own = scheduler.step
    scheduler.step = own
    with guided_steps(SimpleNamespace(scheduler=scheduler), FixedGuide(0.0)):
        run(scheduler)
    assert vars(scheduler)["step"] is own


def test_nested_guidance_is_refused() -> None:
    """A second block on the same scheduler fails with a message, and the first goes on."""
    pipe = SimpleNamespace(scheduler=Case("DDIM", "epsilon").make())
    guide = FixedGuide(0.0)
    with guided_steps(pipe, guide):
        with pytest.raises(NestedGuidance, match="guided already"), guided_steps(pipe, FixedGuide(0.0)):
            pytest.fail("the inner block must not be entered")
        run(pipe.scheduler)
    assert len(guide.finished) == 1
    assert "step" not in vars(pipe.scheduler)


def test_an_unknown_scheduler_names_the_known() -> None:
    """A scheduler without algebra is refused by a message that lists the supported."""
    pipe = SimpleNamespace(scheduler=diffusers.DDIMInverseScheduler())
    with pytest.raises(UnsupportedScheduler) as caught, guided_steps(pipe, FixedGuide(0.0)):
        pytest.fail("the block must not be entered")
    for name in ("DDIMInverseScheduler", *supported_schedulers()):
        assert name in str(caught.value)


def test_no_push_without_signal() -> None:
    """Where α is 0 the clean latents do not follow from a noise prediction, so the output stays; under v they do."""
    for prediction_type, can_push in (("epsilon", False), ("v_prediction", True)):
        more = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        scheduler = Case("DDIM", prediction_type, more).make()
        adapter, first = adapter_for(scheduler), scheduler.timesteps[0]
        assert adapter.prediction(adapter.step_index(first), first).can_push is can_push


def test_packed_latents_are_refused() -> None:
    """Latents that are no images in space are refused before anything is stepped."""
    scheduler = Case("FlowMatchEulerDiscrete", None).make()
    packed = torch.zeros(1, 16, 4)
    with guided_steps(SimpleNamespace(scheduler=scheduler), FixedGuide(0.0)):
        with pytest.raises(UnsupportedPipeline, match="packed"):
            scheduler.step(packed, scheduler.timesteps[0], packed)
        assert scheduler.step_index is None


def test_churn_is_refused() -> None:
    """Noise that the scheduler would add before its step is refused."""
    scheduler = Case("EulerDiscrete", "epsilon").make()
    with (
        guided_steps(SimpleNamespace(scheduler=scheduler), FixedGuide(0.0)),
        pytest.raises(UnsupportedScheduler, match="s_churn"),
    ):
        scheduler.step(noise(0), scheduler.timesteps[0], noise(1), s_churn=1.0)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("FlowMatchLCM", None, {"scale_factors": [0.5]}), "scale_factors"),
        (Case("KDPM2Discrete", "sample"), "epsilon, v_prediction"),
        (Case("DDIM", "flow_prediction"), "epsilon, v_prediction, sample"),
    ],
    ids=str,
)
def test_what_cannot_be_guided_is_refused_with_its_reason(case: Any, reason: str) -> None:
    """A configuration that changes the size of latents, or a prediction type that the class does not know, is refused."""
    with pytest.raises(UnsupportedScheduler, match=reason):
        adapter_for(case.make())


def test_clean_latents_from_outside_are_refused() -> None:
    """EDM's Euler can be handed clean latents in place of the model's output, which a push would then not reach."""
    scheduler = Case("EDMEuler").make()
    sample = HERE.start(scheduler)
    scheduler.scale_model_input(sample, scheduler.timesteps[0])
    with (
        guided_steps(SimpleNamespace(scheduler=scheduler), FixedGuide(0.0)),
        pytest.raises(UnsupportedScheduler, match="pred_original_sample"),
    ):
        scheduler.step(noise(0), scheduler.timesteps[0], sample, pred_original_sample=noise(1))
