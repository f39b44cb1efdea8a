"""A preset from measurements: what is kept, where strength 1 lies, which pairs give bandwidths."""

import math

import pytest
import torch

from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.calibration import (
    Trial,
    full_strength,
    kept,
    latent_bandwidth_within,
    prompt_bandwidth_between,
    prompt_information,
)


def trial(eta: float, *of_prompts: float) -> Trial:
    """A trial of which only the information matters."""
    return Trial(eta, push=0.1, vendi=2.0, of_prompts=of_prompts)


def test_information_is_the_mean_log_ratio():
    """Against logarithms one by one; a level at which an error is 0 says nothing."""
    errors = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.0, 0.4]])
    without = torch.tensor([[1.0, 0.2, 0.3], [0.1, 0.7, 0.4]])
    expected = [
        (math.log(2) + 0 + math.log(3)) / 3,
        (math.log(1 / 3) + 0 + 0) / 3,
    ]
    # inputs are fp32: half an ulp each
    assert prompt_information(errors, without).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("errors", "without", "error"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), ShapeMismatch),
        (torch.ones(0, 3), torch.ones(0, 3), ShapeMismatch),
        (torch.tensor([[-1.0]]), torch.ones(1, 1), InvalidArgument),
        (torch.ones(1, 1), torch.tensor([[math.nan]]), InvalidArgument),
    ],
)
def test_what_are_no_errors_is_refused(errors, without, error):
    """Other shapes, none at all, negative, not finite."""
    with pytest.raises(error):
        prompt_information(errors, without)


def test_strength_one_is_between_the_last_that_keeps_and_the_first_that_does_not():
    """Linear in log η: 0.8 at 1, 0.4 at 4, so 0.6 at 2; what comes back at 8 is not believed, and order is nothing."""
    trials = [trial(8, 0.7), trial(0, 1.0), trial(4, 0.4), trial(1, 0.8)]
    found = full_strength(trials, keep=0.6)
    assert (found.eta, found.kept, found.is_bracketed) == (pytest.approx(2.0), 0.6, True)


@pytest.mark.parametrize(("keep", "eta", "share"), [(0.3, 4, 0.4), (0.9, 1, 0.8)])
def test_without_a_bracket_the_end_is_taken_and_said(keep, eta, share):
    """All keep it: the largest. None does: the smallest."""
    found = full_strength([trial(0, 2.0), trial(1, 1.6), trial(4, 0.8)], keep=keep)
    assert (found.eta, found.kept, found.is_bracketed) == (eta, pytest.approx(share), False)


@pytest.mark.parametrize(
    ("trials", "keep", "said"),
    [
        ([trial(0, 0.0), trial(1, 0.1)], 0.5, "say nothing"),
        ([trial(0, -0.1), trial(1, 0.1)], 0.5, "say nothing"),
        ([trial(0, math.nan), trial(1, 0.1)], 0.5, "say nothing"),
        ([trial(1, 0.1)], 0.5, "without guidance"),
        ([trial(0, 0.1)], 0.5, "at least one with it"),
        ([trial(0, 0.1), trial(1, 0.1)], 1.0, "between 0 and 1"),
    ],
)
def test_where_no_strength_follows_it_is_said(trials, keep, said):
    """A model that does not draw its prompts, missing trials, a share that is none."""
    with pytest.raises(InvalidArgument, match=said):
        full_strength(trials, keep=keep)


def test_the_error_of_a_share_is_that_of_resampled_prompts():
    """Against the spread of the share over bootstrap samples of prompts, which sees them in pairs too."""
    generator = torch.Generator().manual_seed(1)
    whole = 1 + 0.3 * torch.randn(40, generator=generator, dtype=torch.float64)
    own = 0.6 * whole + 0.05 * torch.randn(40, generator=generator, dtype=torch.float64)
    found = kept(trial(1, *own.tolist()), trial(0, *whole.tolist()))
    rows = torch.randint(40, (4000, 40), generator=generator)
    shares = own[rows].sum(1) / whole[rows].sum(1)
    assert found.share == pytest.approx(float(own.sum() / whole.sum()))
    # 4,000 resamples know a spread to about 1 %; linearising the ratio costs some per cent more
    assert found.error == pytest.approx(float(shares.std()), rel=0.06)
    assert math.isnan(kept(trial(1, 0.5), trial(0, 1.0)).error)


def test_latents_are_compared_within_a_prompt():
    """Two prompts at right angles: the pairs within are 0.2 and 0.4 apart, and those across, √2, do not count."""

    def at(angle: float, *, axis: int) -> torch.Tensor:
        row = torch.zeros(4)
        row[axis], row[axis + 1] = math.cos(angle), math.sin(angle)
        return row

    def chord(distance: float) -> float:
        return 2 * math.asin(distance / 2)

    features = torch.stack([at(0, axis=0), at(0, axis=2), at(chord(0.2), axis=0), at(chord(0.4), axis=2)])
    found = latent_bandwidth_within(features, torch.tensor([0, 1, 0, 1]))
    assert found == pytest.approx(0.3, abs=1e-6)  # fp32 features


@pytest.mark.parametrize("features", [torch.eye(3), torch.ones(3, 2)])
def test_without_a_distance_within_prompts_there_is_no_bandwidth(features):
    """One image of each prompt, or all images of a prompt the same."""
    prompts = torch.arange(3) if features.shape[1] == 3 else torch.zeros(3, dtype=torch.long)
    with pytest.raises(InvalidArgument, match=r"one prompt"):
        latent_bandwidth_within(features, prompts)


def test_without_paraphrases_equal_prompts_alone_are_related():
    """The widest that keeps other prompts far: k_Y² = 0.01 at the nearest, 0.6 away."""
    angles = torch.tensor([0.0, 2 * math.asin(0.3), 2.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    found = prompt_bandwidth_between(embeddings, torch.arange(3), power=2.0)
    assert math.exp(-(0.6**2) / found.bandwidth**2) == pytest.approx(0.01, rel=1e-4)
    assert found.related_near == 1.0
    with pytest.raises(InvalidArgument, match="two scenes"):
        prompt_bandwidth_between(embeddings, torch.zeros(3, dtype=torch.long), power=2.0)
