"""Features of images and texts through the caller's extractor."""

import pytest
import torch
from torch import Tensor

from sparke_engine.core.rows import num_rows, same_length, same_number
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.scores import features_of


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_do_not_matter(batch_size: int) -> None:
    """Every item is seen once, in order, at most `batch_size` at a time."""
    images = torch.arange(5 * 3 * 2 * 2, dtype=torch.float32).reshape(5, 3, 2, 2)
    sizes = []

    def extractor(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.flatten(1)

    assert torch.equal(features_of(images, extractor, batch_size=batch_size), images.flatten(1))
    assert (sum(sizes), max(sizes)) == (5, min(batch_size, 5))


def test_texts_have_features() -> None:
    """Any sequence will do."""
    found = features_of(("a", "bcd"), lambda texts: torch.tensor([[float(len(text))] for text in texts]))
    assert found.tolist() == [[1.0], [3.0]]


def test_no_gradients_are_kept() -> None:
    """The extractor's graph would hold every image."""
    weight = torch.ones(12, 2, requires_grad=True)
    found = features_of(torch.ones(2, 3, 2, 2), lambda batch: batch.flatten(1) @ weight)
    assert not found.requires_grad


def test_a_wrong_extractor_is_named() -> None:
    """Another number of rows, another length, no rows, whole numbers, NaN."""
    images = torch.ones(3, 3, 2, 2)
    with pytest.raises(ShapeMismatch, match="1 rows of features for 3 items"):
        features_of(images, lambda batch: batch.flatten(1)[:1])
    with pytest.raises(ShapeMismatch, match="length 2, then 1"):
        features_of(images, lambda batch: torch.ones(len(batch), len(batch)), batch_size=2)
    with pytest.raises(ShapeMismatch, match="got the shape"):
        features_of(images, lambda batch: batch)
    with pytest.raises(InvalidArgument, match="floating point"):
        features_of(images, lambda batch: batch.flatten(1).long())
    with pytest.raises(InvalidArgument, match="NaN"):
        features_of(images, lambda batch: batch.flatten(1) / 0)


def test_something_is_needed() -> None:
    """No items and batches of none are refused."""
    with pytest.raises(InvalidArgument, match="at least one item"):
        features_of(torch.ones(0, 3, 2, 2), lambda batch: batch.flatten(1))
    with pytest.raises(InvalidArgument, match="a batch has at least one item"):
        features_of([1, 2], lambda items: torch.ones(len(items), 1), batch_size=0)


def test_rows_that_do_not_fit_are_told_apart() -> None:
    """The errors that scores raise give what was expected and what was found."""
    with pytest.raises(ShapeMismatch, match="got the shape"):
        num_rows(torch.ones(3), "features")
    with pytest.raises(ShapeMismatch, match="got the shape"):
        num_rows(torch.ones(3, 0), "features")
    with pytest.raises(ShapeMismatch, match="3 images need as many texts, got 2"):
        same_number(torch.ones(3, 1), torch.ones(2, 1), ("images", "texts"))
    with pytest.raises(ShapeMismatch, match="images of length 1 need texts of that length, got 2"):
        same_length(torch.ones(3, 1), torch.ones(3, 2), ("images", "texts"))
