"""Caps of batches that are learned from running out of memory."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.domain.ids import LoraName, ModelId
from app.domain.lora import LoraSelection
from app.worker.loops.batch_caps import FIRST_WAIT_MS, MAX_WAIT_MS, BatchCaps
from app.worker.loops.batcher import Batcher, BatchKey

KEY = BatchKey(ModelId("toy"), 64, 64, 20, 5.0)
HOUR_MS = 60 * 60_000


def test_nothing_is_learned_of_what_fits():
    """Without a batch that was too large the cap is the setting's, and nothing is kept."""
    caps = BatchCaps(max_images=16)
    assert caps.fitted(KEY, 16, 0) == caps.cap_of(KEY) == caps.least_of(KEY.model) == 16
    assert len(caps) == 0


def test_a_batch_that_was_too_large_halves_the_cap():
    """Of b images to b/2, again and again, but never below one; a number that has fitted since is kept to instead."""
    caps = BatchCaps(max_images=16)
    assert [caps.ran_out(KEY, num_images, 0) for num_images in (16, 8, 4, 2, 1)] == [8, 4, 2, 1, 1]
    caps = BatchCaps(max_images=16)
    caps.ran_out(KEY, 16, 0)
    caps.fitted(KEY, 7, 0)
    assert caps.ran_out(KEY, 8, 0) == 7
    assert caps.ran_out(KEY, 7, 0) == 3


def test_a_cap_is_raised_by_a_quarter_when_a_while_has_passed_and_a_batch_fits():
    """Not before, not by time alone, and once a while; a full batch that fits ends it."""
    caps = BatchCaps(max_images=16)
    caps.ran_out(KEY, 16, 1_000)
    now_ms = 1_000 + FIRST_WAIT_MS
    assert caps.fitted(KEY, 2, now_ms - 1) == 8
    assert caps.cap_of(KEY) == 8
    assert [caps.fitted(KEY, 2, now_ms), caps.fitted(KEY, 2, now_ms + FIRST_WAIT_MS - 1)] == [10, 10]
    raised = [caps.fitted(KEY, 2, now_ms + number * FIRST_WAIT_MS) for number in range(1, 6)]
    assert raised == [12, 15, 16, 16, 16]
    assert (caps.fitted(KEY, 16, now_ms), len(caps)) == (16, 0)


def test_the_while_doubles_with_every_batch_that_was_too_large_after_all():
    """A device that stays too small is tried ever less often, up to a bound; in between the cap is what fits."""
    caps = BatchCaps(max_images=16)
    caps.ran_out(KEY, 16, 0)
    caps.fitted(KEY, 8, 0)
    wait_ms, now_ms = FIRST_WAIT_MS, 0
    for _ in range(8):
        assert caps.fitted(KEY, 8, now_ms + wait_ms - 1) == 8
        now_ms += wait_ms
        assert caps.fitted(KEY, 8, now_ms) == 10
        assert caps.ran_out(KEY, 10, now_ms) == 8
        wait_ms = min(2 * wait_ms, MAX_WAIT_MS)
        caps.fitted(KEY, 8, now_ms)
    assert wait_ms == MAX_WAIT_MS


def test_a_job_larger_than_the_cap_runs_alone_and_tells_only_where_it_fits():
    """That there is no room for it was known; that there is, is news."""
    caps = BatchCaps(max_images=16)
    caps.ran_out(KEY, 4, 0)
    assert caps.ran_out(KEY, 10, 0) == 2
    assert caps.fitted(KEY, 2, FIRST_WAIT_MS) == 3
    assert caps.fitted(KEY, 10, FIRST_WAIT_MS) == 10


@pytest.mark.parametrize(
    ("other", "shares"),
    [
        ({"steps": 50}, True),
        ({"guidance_scale": 7.5}, True),
        ({"guidance_scale": 1.0}, False),
        ({"width_px": 128}, False),
        ({"height_px": 128}, False),
        ({"model": ModelId("sdxl")}, False),
        ({"loras": (LoraSelection(LoraName("ink"), 1.0),)}, False),
    ],
    ids=str,
)
def test_what_needs_the_same_memory_shares_a_cap(other, shares):
    """Steps take none, and guidance takes it whatever its scale; model, size and LoRAs have caps of their own."""
    caps = BatchCaps(max_images=16)
    caps.ran_out(KEY, 16, 0)
    members = {name: getattr(KEY, name) for name in KEY.__slots__} | other
    assert caps.cap_of(BatchKey(**members)) == (8 if shares else 16)


def test_scales_of_loras_take_no_memory():
    """The same LoRAs at other scales share a cap."""
    caps = BatchCaps(max_images=16)
    of = [BatchKey("toy", 64, 64, 20, 5.0, (LoraSelection(LoraName("ink"), scale),)) for scale in (1.0, 0.5)]
    caps.ran_out(of[0], 16, 0)
    assert caps.cap_of(of[1]) == 8


def test_the_table_is_bounded():
    """The shapes that were used last are remembered; the least cap of a model is of those."""
    caps = BatchCaps(max_images=16, max_shapes=3)
    keys = [BatchKey(ModelId("toy"), 64 * number, 64, 20, 5.0) for number in range(1, 6)]
    for number, key in enumerate(keys):
        caps.ran_out(key, 16 - 2 * number, 0)
        caps.fitted(keys[0], 1, 0)
    assert len(caps) == 3
    assert [caps.cap_of(key) for key in keys] == [8, 16, 16, 5, 4]
    assert (caps.least_of(ModelId("toy")), caps.least_of(ModelId("sdxl"))) == (4, 16)


@given(
    room=st.integers(1, 40),
    max_images=st.integers(1, 32),
    jobs=st.lists(st.tuples(st.integers(1, 10), st.integers(0, 10 * 60_000)), max_size=200),
)
def test_a_device_with_constant_room_is_found_out_in_a_few_batches(room, max_images, jobs):
    """Whatever comes when, the cap stays in its range, and batches are too large a few times: at first, and once a while."""
    caps = BatchCaps(max_images=max_images)
    now_ms = num_failures = 0
    for num_images, pause_ms in jobs:
        now_ms += pause_ms
        size = max(caps.cap_of(KEY), 1) if num_images % 2 else min(num_images, caps.cap_of(KEY))
        if size > room:
            num_failures += 1
            assert caps.ran_out(KEY, size, now_ms) < size
        else:
            caps.fitted(KEY, size, now_ms)
        assert 1 <= caps.cap_of(KEY) <= max_images
    searches = max_images.bit_length() + 1
    assert num_failures <= searches + 2 * (now_ms / FIRST_WAIT_MS + 1) ** 0.5 * searches


def test_a_batcher_keeps_to_the_caps(hold):
    """A group is full at its cap and no batch is above it, other shapes are as before; a larger job runs alone, whole."""
    caps = BatchCaps(max_images=8)
    batcher = Batcher(max_images=8, window_ms=100, cap_of=caps.cap_of)
    caps.ran_out(BatchKey(ModelId("toy"), 64, 64, 2, 5.0), 4, 0)
    for number in range(3):
        batcher.add(hold(number), now_ms=0)
        batcher.add(hold(10 + number, size_px=128), now_ms=0)
    large = hold(20, num_images=5, created_at_ms=5_000)
    batcher.add(large, now_ms=0)
    assert batcher.ready_at_ms() == 0
    assert [len(batcher.next_batch(0)) for _ in range(3)] == [2, 1, 1]
    assert len(batcher) == 3
    assert [len(batcher.next_batch(100)) for _ in range(2)] == [3, 0]


@pytest.mark.parametrize(
    ("cap", "beside", "after"), [(16, 12, 16), (10, 6, 10), (6, 2, 6), (4, 0, 4), (1, 0, 1)]
)
def test_no_more_is_reserved_than_fills_a_small_batch(hold, cap: int, beside: int, after: int):
    """Beside a job of 4 images what its cap leaves, after its batch a cap's worth; a job of another size has more room."""
    large = hold(1, num_images=4, size_px=512)
    batcher = Batcher(max_images=16, window_ms=10, cap_of=lambda key: cap if key.width_px == 512 else 16)
    assert batcher.room_images == 16
    batcher.add(large, 0)
    assert batcher.room_images == beside
    assert batcher.next_batch(10) == (large,)
    assert batcher.room_images == after
    batcher.add(hold(2, num_images=4), 20)
    assert batcher.room_images == 12


def test_room_is_counted_exactly(hold):
    """Fifths and elevenths make a whole."""
    for cap in (5, 11):
        batcher = Batcher(max_images=16, window_ms=10, cap_of=lambda _key, cap=cap: cap)
        for number in range(cap):
            assert batcher.room_images == (cap - number if number else 16)
            batcher.add(hold(number), 0)
        assert batcher.room_images == 0


def test_a_cap_never_raises_the_setting(hold):
    """What the operator allowed is the most, whatever fits."""
    batcher = Batcher(max_images=2, window_ms=0, cap_of=lambda _key: 100)
    for number in range(3):
        batcher.add(hold(number), now_ms=0)
    assert len(batcher.next_batch(0)) == 2
