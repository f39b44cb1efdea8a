"""How much less an image resembles past ones than those resemble each other."""

import pytest
import torch

from sparke_engine.core.kernels import GaussianKernel
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.scores import similarity_gain

KERNEL = GaussianKernel(0.7)


def _oracle(image, entries, weights):
    def similarity(a, b):
        return torch.exp(-(a / a.norm() - b / b.norm()).square().sum() / (2 * 0.7**2))

    among, pairs = 0.0, 0.0
    for j, one in enumerate(entries):
        for k, other in enumerate(entries):
            if j != k:
                among += weights[j] * weights[k] * similarity(one, other)
                pairs += weights[j] * weights[k]
    own = sum(weight * similarity(image, entry) for weight, entry in zip(weights, entries, strict=True))
    return float(among / pairs - own / weights.sum())


def test_it_is_what_its_formula_says():
    """Against sums over pairs, with weights that differ."""
    random = torch.Generator().manual_seed(3)
    images, entries = (torch.randn(n, 5, generator=random, dtype=torch.float64) for n in (3, 6))
    weights = torch.rand(6, generator=random, dtype=torch.float64)
    found = similarity_gain(images, entries, weights, KERNEL)
    for image, gain in zip(images, found, strict=True):
        assert float(gain) == pytest.approx(_oracle(image, entries, weights), abs=1e-12)


def test_it_is_zero_on_average_where_nothing_was_gained():
    """Images that come from where the entries came from gain nothing, but for chance."""
    random = torch.Generator().manual_seed(5)
    gains = [
        float(similarity_gain(rows[:1], rows[1:], torch.ones(20), KERNEL))
        for rows in torch.randn(400, 21, 6, generator=random) + 1.0
    ]
    error = float(torch.tensor(gains).std()) / len(gains) ** 0.5
    assert abs(sum(gains) / len(gains)) < 3 * error


def test_a_far_image_gains_and_a_near_one_loses():
    """Opposite to entries that are alike the gain is theirs among themselves; at one of two that differ it is below 0."""
    axes = torch.eye(4)
    alike = axes[:1].expand(3, -1)
    far = float(similarity_gain(-axes[:1], alike, torch.ones(3), KERNEL))
    assert far == pytest.approx(1 - float(KERNEL.gram(axes[:1], -axes[:1])), abs=1e-6)
    assert float(similarity_gain(axes[:1], axes[:2], torch.ones(2), KERNEL)) < 0


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [0.0, 0.0]])
def test_one_entry_tells_nothing(weights):
    """Without a pair of entries that count the gain is 0."""
    entries = torch.eye(3)[: len(weights)]
    assert similarity_gain(torch.eye(3), entries, torch.tensor(weights), KERNEL).tolist() == [0.0, 0.0, 0.0]


def test_rows_that_are_none_are_refused():
    """As all scores do."""
    with pytest.raises(InvalidArgument):
        similarity_gain(torch.empty(0, 3), torch.eye(3), torch.ones(3), KERNEL)
    with pytest.raises(InvalidArgument):
        similarity_gain(torch.eye(3), torch.eye(3) * torch.nan, torch.ones(3), KERNEL)


@pytest.mark.usefixtures("unchecked_types")
def test_what_does_not_fit_is_refused():
    """Entries of another length; weights that are no list of as many; and those that are not finite or negative."""
    rows = torch.eye(3)
    with pytest.raises(ShapeMismatch, match="length 3 need entries of that length, got 5"):
        similarity_gain(rows, torch.eye(5), torch.ones(5), KERNEL)
    for shape in ((3, 1), (2,), (), (1, 3)):
        with pytest.raises(ShapeMismatch, match=r"3 entries need weights \[3\], got the shape"):
            similarity_gain(rows, rows, torch.ones(shape), KERNEL)
    for weight in (torch.nan, torch.inf, -1.0):
        with pytest.raises(InvalidArgument, match="finite and not negative"):
            similarity_gain(rows, rows, torch.tensor([1.0, weight, 1.0]), KERNEL)
