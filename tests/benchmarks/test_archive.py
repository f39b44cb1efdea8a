"""A memory that was carried to another service leads the same images there."""

import pytest
from archive import carry


@pytest.mark.parametrize(
    ("num_entries", "num_requests"),
    [(2000, 2), pytest.param(100_000, 8, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_the_same_seeds_give_the_same_images(tmp_path, num_entries, num_requests):
    """Pixel for pixel, as of two versions, in spite of gaps; the memory leads them; the API's memory does not follow its size."""
    found = carry(tmp_path, num_entries=num_entries, num_requests=num_requests, steps=6)
    first, second = found.images
    assert first == second
    assert len(first) == 4 * num_requests
    assert len({pixels for pixels, _ in first}) == len(first)
    assert all(figures["num_neighbours"] > 50 for _, figures in first)
    assert all(one[0] != plain[0] for one, plain in zip(first, found.unguided, strict=False))
    for moved in (found.out, found.back):
        assert moved.most_bytes - moved.before_bytes < 24 * 2**20
