"""Calibration as a library: the demo model gets bandwidths and η of its own; what cannot be calibrated is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparke_engine.diffusion.calibration import Calibration, CalibrationPlan, asking_plan, calibrate
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine
from sparke_engine.diffusion.pipelines import DEMO, TOY, load_engine
from sparke_engine.errors import InvalidArgument, UnsupportedPipeline

SCENES = (("a star", "a picture of a star"), ("a red circle",))
PLAN = CalibrationPlan(
    DenoisingPlan(64, 64, 4, 9.0), images=3, eta_factors=(8.0, 0.5), keep=0.9, batch_images=2
)


@pytest.fixture(scope="module")
def engine() -> Iterator[PipelineEngine]:
    """The demo model."""
    loaded = load_engine(DEMO)
    assert isinstance(loaded, PipelineEngine)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def found(engine: PipelineEngine) -> Calibration:
    """A calibration with very few images, in batches smaller than a request."""
    return calibrate(engine, SCENES, PLAN)


def test_trials_go_from_none_to_much(found: Calibration, engine: PipelineEngine):
    """By η; without guidance nothing is pushed; a huge push leaves less of the prompt and more diversity than a small one."""
    eta = engine.preset.eta
    assert [trial.eta for trial in found.trials] == [0, 0.5 * eta, 8 * eta]
    unguided, small, huge = found.trials
    assert unguided.push == 0 < small.push < huge.push
    assert unguided.information > small.information > huge.information
    assert unguided.vendi < small.vendi < huge.vendi
    assert all(len(trial.of_prompts) == len(SCENES) for trial in found.trials)


def test_the_preset_is_the_engines_but_for_what_was_measured(found: Calibration, engine: PipelineEngine):
    """Bandwidths, η, and a bound that does not cut such pushes short; the engine has its own preset as before."""
    preset = found.preset
    assert preset.eta == found.strength.eta
    assert preset.prompt_bandwidth == found.prompt_bandwidth.bandwidth
    assert 0 < preset.latent_bandwidth < 2
    same = replace(
        engine.preset,
        eta=preset.eta,
        latent_bandwidth=preset.latent_bandwidth,
        prompt_bandwidth=preset.prompt_bandwidth,
        max_push=preset.max_push,
    )
    assert preset == same
    assert preset.max_push >= preset.eta * preset.window
    assert engine.preset == load_engine(DEMO).preset


def test_a_calibration_is_repeatable(engine: PipelineEngine):
    """The same seeds, the same figures; other seeds, others."""
    short = replace(PLAN, plan=DenoisingPlan(64, 64, 2, 9.0), images=2, eta_factors=(1.0,))
    found = calibrate(engine, SCENES, short)
    assert calibrate(engine, SCENES, short) == found
    assert calibrate(engine, SCENES, replace(short, first_seed=9)).preset != found.preset


def test_an_engine_is_as_before_after_an_error(model_directories: dict[str, Path]):
    """A network of random weights says nothing of its prompts, or little; whatever comes of it, preset and method stay."""
    engine = load_engine(str(model_directories["sd"]))
    assert isinstance(engine, PipelineEngine)
    preset, method = engine.preset, engine.method

    def refuse(done: int, total: int) -> None:
        raise ConnectionError(f"{done} of {total}")

    with pytest.raises(ConnectionError, match="1 of 3"):
        calibrate(engine, SCENES, replace(PLAN, plan=DenoisingPlan(32, 32, 2, 5.0)), refuse)
    assert (engine.preset, engine.method) == (preset, method)


@pytest.mark.parametrize(("family", "scale"), [("sd", 1.0), ("flux", 3.5)])
def test_a_model_is_asked_without_extrapolation(
    model_directories: dict[str, Path], family: str, scale: float
):
    """At 8 levels at most; a distilled model keeps the scale that it was given as an input."""
    engine = load_engine(str(model_directories[family]))
    assert isinstance(engine, PipelineEngine)
    for steps, levels in ((30, 8), (4, 4)):
        plan = DenoisingPlan(32, 32, steps, 3.5)
        assert asking_plan(engine, plan) == DenoisingPlan(32, 32, levels, scale)


@pytest.mark.parametrize("scenes", [(), (("a star",),), (("a star",), ()), "a star"])
def test_too_few_scenes_are_refused(engine: PipelineEngine, scenes: Any):
    """None, one, one without a prompt, or a text by itself."""
    with pytest.raises(InvalidArgument, match="two scenes"):
        calibrate(engine, scenes, PLAN)


def test_the_toy_has_no_denoiser_to_ask():
    """It is an engine, but not of a model."""
    with pytest.raises(UnsupportedPipeline, match="ToyEngine"):
        calibrate(load_engine(TOY), SCENES, PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 1},
        {"first_seed": -1},
        {"eta_factors": ()},
        {"eta_factors": (0.0,)},
        {"eta_factors": (1.0, float("inf"))},
        {"eta_factors": (float("nan"),)},
        {"keep": 1.0},
        {"batch_images": 0},
    ],
)
def test_a_plan_that_measures_nothing_is_refused(change: dict[str, object]):
    """Each member is named."""
    with pytest.raises(InvalidArgument):
        replace(PLAN, **change)


def test_what_cannot_succeed_ends_after_the_first_trial(model_directories: dict[str, Path]):
    """A network that does not read its prompt makes images that say nothing of it: nothing is made at strength 1."""
    deaf = load_engine(str(model_directories["sd"]))
    assert isinstance(deaf, PipelineEngine)
    for name, parameter in deaf.pipeline.unet.named_parameters():
        if "attn2.to_out" in name:
            parameter.data.zero_()
    trials: list[int] = []
    small = replace(PLAN, plan=DenoisingPlan(32, 32, 2, 5.0))
    with pytest.raises(InvalidArgument, match=r"say nothing of their prompts \(0 nats\)"):
        calibrate(deaf, SCENES, small, lambda done, _total: trials.append(done))
    assert trials == [1]


@pytest.mark.parametrize("factor", [1e308, 1e-323])
def test_an_eta_out_of_range_is_refused_before_all(engine: PipelineEngine, factor: float):
    """A factor may be finite and positive, and η times it neither: said before an image is made."""
    trials: list[int] = []
    steep = replace(engine.preset, eta=20.0 if factor > 1 else 0.05)
    before, engine.preset = engine.preset, steep
    try:
        with pytest.raises(InvalidArgument, match="eta"):
            calibrate(
                engine, SCENES, replace(PLAN, eta_factors=(1.0, factor)), lambda done, _: trials.append(done)
            )
    finally:
        engine.preset = before
    assert trials == []


def test_a_scene_of_one_prompt_may_be_its_text(engine: PipelineEngine):
    """It is no list of letters."""
    short = replace(PLAN, plan=DenoisingPlan(64, 64, 2, 9.0), images=2, eta_factors=(1.0,))
    texts = calibrate(engine, ["a star", "a red circle"], short)
    assert texts == calibrate(engine, [["a star"], ["a red circle"]], short)
