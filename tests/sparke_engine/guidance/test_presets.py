"""Presets and the map from strength to η."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparke_engine.core.kernels import CosinePower, GaussianPower
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import PRESETS, DiversityPreset, preset_named


@given(st.sampled_from(sorted(PRESETS)), st.floats(0, 1), st.floats(0, 1))
def test_eta_grows_with_strength(name: str, one: float, other: float) -> None:
    """η and λ are 0 at strength 0, the preset's at 1, and monotone between."""
    preset = preset_named(name)
    assert preset.eta_at(0) == preset.relax_at(0) == 0
    assert (preset.eta_at(1), preset.relax_at(1)) == (preset.eta, preset.relax)
    low, high = sorted((one, other))
    assert preset.eta_at(low) <= preset.eta_at(high)
    assert preset.relax_at(low) <= preset.relax_at(high)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("strength", [0.25, 0.81])
def test_strength_is_raised_to_the_exponent(exponent: float, strength: float) -> None:
    """η and λ at a strength are the preset's times strength^exponent, both."""
    preset = DiversityPreset(eta=1.4, relax=0.7, strength_exponent=exponent)
    assert preset.eta_at(strength) == pytest.approx(1.4 * strength**exponent)
    assert preset.relax_at(strength) == pytest.approx(0.7 * strength**exponent)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_is_a_fraction(strength: float) -> None:
    """Strengths outside [0, 1] are refused."""
    with pytest.raises(InvalidArgument, match="strength"):
        DiversityPreset().eta_at(strength)


@pytest.mark.parametrize(
    "wrong",
    [
        {"eta": 0.0},
        {"kappa": -1.0},
        {"latent_bandwidth": 0.0},
        {"window": 0.0},
        {"window": 1.5},
        {"relax": 1.1},
        {"max_neighbours": 0},
        {"max_spectral_entries": 0},
        {"min_prompt_kernel": 2.0},
        {"power": float("nan")},
        {"power": float("inf")},
        {"eta": float("inf")},
        {"kappa": float("inf")},
        {"max_push": float("inf")},
        {"reference_eta": float("inf")},
        {"strength_exponent": float("inf")},
        {"latent_bandwidth": float("inf")},
        {"latent_bandwidth": 1e-200},
        {"prompt_bandwidth": 1e-9},
        {"reference_bandwidth": 1e-9},
        {"interval": 0},
        {"interval": 2.5},
        {"interval": 2.0},
        {"interval": True},
        {"max_neighbours": 0.5},
        {"max_spectral_entries": 10.5},
    ],
    ids=str,
)
def test_a_preset_is_checked(wrong: dict[str, float]) -> None:
    """A preset with a number outside its domain cannot be made, nor with a fraction for a count."""
    preset = DiversityPreset()
    vars(preset).update(wrong)  # past what checks annotations in tests alone
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        preset.__post_init__()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "released", "objective": "vendi"}, "released has the objective rke alone"),
        ({"conditional": False}, "its min_prompt_kernel is 0, got 0.001"),
        ({"kernel": "cosine"}, "its min_prompt_kernel is 0, got 0.001"),
        ({"kernel": "cosine", "min_prompt_kernel": 0.0, "power": 1.5}, "whole number, got 1.5"),
        ({"kernel": "cosine", "min_prompt_kernel": 0.0, "power": 3}, "an even power, got 3"),
        ({"kernel": "cosine", "min_prompt_kernel": 0.0, "power": 3.0}, "an even power, got 3.0"),
    ],
)
def test_what_makes_no_sense_together_is_refused(wrong: dict[str, Any], message: str) -> None:
    """An objective, a kernel and a power that contradict each other say what would do."""
    with pytest.raises(InvalidArgument, match=message):
        DiversityPreset(**wrong)


@pytest.mark.parametrize("field", ["mode", "objective", "kernel"])
def test_a_misspelt_name_lists_the_known(field: str) -> None:
    """Names that a type checker would refuse are refused at run time too."""
    preset = DiversityPreset()
    vars(preset)[field] = "lapalce"
    with pytest.raises(InvalidArgument, match=rf"preset's {field} is one of .*lapalce"):
        preset.__post_init__()


def test_the_kernels_that_a_preset_names() -> None:
    """Gaussian kernels have the preset's bandwidths, cosine kernels none."""
    gaussian = DiversityPreset(latent_bandwidth=0.4, prompt_bandwidth=0.2, power=3.0)
    assert gaussian.latent_kernel == GaussianPower(0.4, 3.0)
    assert gaussian.prompt_kernel == GaussianPower(0.2, 3.0)
    cosine = replace(gaussian, kernel="cosine", min_prompt_kernel=0.0, power=2.0)
    assert cosine.latent_kernel == cosine.prompt_kernel == CosinePower(2.0)
    assert cosine.kernel_of_power(1.0) == cosine.prompt_kernel_of_power(1.0) == CosinePower(1.0)


def test_a_whole_power_is_a_power() -> None:
    """A power of 2 is that of 2.0, for either kernel."""
    for kernel in ("gaussian", "cosine"):
        preset = DiversityPreset(kernel=kernel, min_prompt_kernel=0.0, power=2)
        assert preset == replace(preset, power=2.0)
        assert preset.latent_kernel == replace(preset, power=2.0).latent_kernel


def test_given_bandwidths_replace_the_presets() -> None:
    """A bandwidth of None is the preset's; another takes its place, and only its place."""
    preset = DiversityPreset(latent_bandwidth=0.4, prompt_bandwidth=0.3)
    assert preset.with_bandwidths(None, None) == preset
    assert preset.with_bandwidths(0.7, None) == replace(preset, latent_bandwidth=0.7)
    assert preset.with_bandwidths(None, 0.2) == replace(preset, prompt_bandwidth=0.2)


def test_the_papers_numbers() -> None:
    """The preset `paper` holds the paper's values."""
    paper = preset_named("paper")
    assert (paper.mode, paper.grid, paper.power, paper.interval) == ("paper", None, 2.0, 10)
    assert (paper.latent_bandwidth, paper.prompt_bandwidth, paper.eta) == (0.8, 0.3, 0.03)


def test_an_unknown_name_lists_the_known() -> None:
    """A misspelt preset names those that exist."""
    with pytest.raises(InvalidArgument, match=r"denosied.*demo, .*paper"):
        preset_named("denosied")
