"""Arrays that grow at their end."""

import numpy as np
import pytest

from app.worker.memory.growing import BLOCK_ROWS, RowBlocks, grown


@pytest.mark.parametrize("step", [13, 1000])
def test_rows_stay_and_room_is_found_seldom(step):
    """What was there stays, zeros follow, and an array of 200,000 rows was copied some twenty times, with a quarter to spare."""
    array, num_copies = np.zeros((0, 1), np.float32), 0
    for end in range(step, 200_000, step):
        larger = grown(array, end)
        num_copies += larger is not array
        assert len(larger) >= end
        assert not larger[end - step : end].any()
        array = larger
        array[end - step : end] = end
    assert (array[:end:step, 0] == np.arange(step, end + 1, step)).all()
    assert num_copies <= 25
    assert len(array) <= 1.25 * end + 64


@pytest.mark.parametrize("step", [100, 5000, 3 * BLOCK_ROWS])
def test_blocks_are_one_array(step):
    """Whatever is appended, taken, wiped and kept is what one array would have, over the edges of blocks too."""
    rng, rows, whole = np.random.default_rng(step), RowBlocks(3), np.empty((0, 3), np.float16)
    for number in range(7 if step > 100 else 400):
        more = rng.integers(1, 99, (int(rng.integers(0, step)), 2 if number % 3 == 0 else 3)).astype(
            np.float16
        )
        rows.append(more)
        whole = np.concatenate([whole, np.pad(more, ((0, 0), (0, 3 - more.shape[1])))])
    places = rng.integers(len(whole), size=50)
    assert (rows.take(places) == whole[places]).all()
    gone = np.arange(len(whole) // 3, len(whole) // 3 + 200)
    rows.wipe(gone)
    whole[gone] = 0
    kept = np.flatnonzero(rng.random(len(whole)) < 0.6)
    for found, expected in (
        (rows, whole),
        (rows.kept(kept), whole[kept]),
        (RowBlocks.of(3, rows.parts()), whole),
    ):
        assert (np.concatenate(found.parts()) == expected).all()
        assert all(len(part) == BLOCK_ROWS for part in found.parts()[:-1])
    restored = RowBlocks.of(3, [part.copy() for part in rows.parts()])
    restored.append(whole[:100])
    assert (restored.take(np.arange(len(whole), len(whole) + 100)) == whole[:100]).all()
    assert rows.nbytes <= 2 * whole.nbytes + BLOCK_ROWS * 6


def test_a_part_stays_as_it_was_while_rows_follow():
    """What is written from parts does not change under the hand but by being wiped."""
    rows = RowBlocks(2)
    rows.append(np.ones((100, 2), np.float16))
    parts = rows.parts()
    rows.append(np.full((BLOCK_ROWS, 2), 2, np.float16))
    assert [len(part) for part in parts] == [100]
    assert (parts[0] == 1).all()
