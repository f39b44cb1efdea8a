"""Which jobs run together, and when."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from app.domain.request import Edit
from app.worker.loops.batcher import Batcher, batch_key


def test_an_empty_batcher_has_nothing_to_give():
    """No job, no batch and no time to wait for."""
    batcher = Batcher(max_images=4, window_ms=20)
    assert batcher.ready_at_ms() is None
    assert batcher.next_batch(10**9) == ()


def test_a_lone_job_waits_for_the_window_and_no_longer(hold):
    """A job with room beside it goes exactly when the window has passed."""
    batcher = Batcher(max_images=4, window_ms=20)
    job = hold(1)
    batcher.add(job, now_ms=100)
    assert batcher.ready_at_ms() == 120
    assert batcher.next_batch(119) == ()
    assert batcher.next_batch(120) == (job,)
    assert len(batcher) == 0


def test_a_full_batch_goes_at_once(hold):
    """Nobody waits for company that would not fit."""
    batcher = Batcher(max_images=4, window_ms=20)
    jobs = [hold(1, num_images=2), hold(2, num_images=2)]
    for job in jobs:
        batcher.add(job, now_ms=100)
    assert batcher.next_batch(100) == tuple(jobs)


def test_a_reproducible_job_goes_at_once_and_alone(hold):
    """Its batch has one fixed shape, whoever else waits."""
    batcher = Batcher(max_images=4, window_ms=20)
    alone, other = hold(1, reproducible=True), hold(2)
    batcher.add(alone, now_ms=100)
    batcher.add(other, now_ms=100)
    assert batcher.next_batch(100) == (alone,)
    assert batcher.next_batch(120) == (other,)


def test_a_job_larger_than_a_batch_runs_alone(hold):
    """It cannot be divided, and it is not left waiting."""
    batcher = Batcher(max_images=4, window_ms=20)
    large, small = hold(1, num_images=10), hold(2)
    batcher.add(large, now_ms=100)
    batcher.add(small, now_ms=100)
    assert batcher.next_batch(100) == (large,)


@pytest.mark.parametrize(
    "other",
    [None, Edit(0.5, "a"), Edit(0.75, "a", "b")],
    ids=["text to image", "another strength", "another kind"],
)
def test_edits_run_with_their_like_alone(hold, other):
    """Kind and strength of an edit are part of what a batch shares; the picture is each job's own."""
    batcher = Batcher(max_images=4, window_ms=10)
    for number, edit in enumerate((Edit(0.75, "a"), Edit(0.75, "c"), other)):
        batcher.add(hold(number, edit=edit), 0)
    batches = [batcher.next_batch(10), batcher.next_batch(10)]
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[1][0].job.request.edit == other


def test_the_tenant_served_least_recently_leads(hold):
    """A tenant with many jobs does not keep another with one from its turn."""
    batcher = Batcher(max_images=1, window_ms=0)
    for number in range(3):
        batcher.add(hold(number, tenant="greedy"), now_ms=0)
    batcher.add(hold(9, tenant="modest", created_at_ms=5_000), now_ms=0)
    tenants = [batcher.next_batch(0)[0].job.tenant_id for _ in range(4)]
    assert tenants == ["greedy", "modest", "greedy", "greedy"]


def test_the_room_in_a_batch_goes_round(hold):
    """Tenants take turns inside a batch too."""
    batcher = Batcher(max_images=4, window_ms=0)
    for number in range(4):
        batcher.add(hold(number, tenant="greedy"), now_ms=0)
    for number in range(4, 6):
        batcher.add(hold(number, tenant="modest", created_at_ms=5_000), now_ms=0)
    batch = batcher.next_batch(0)
    assert Counter(reserved.job.tenant_id for reserved in batch) == {"greedy": 2, "modest": 2}


def test_small_jobs_do_not_starve_their_own_tenants_large_one(hold):
    """A job that fills a gap does not cost its tenant the turn that the large job waits for."""
    batcher = Batcher(max_images=4, window_ms=0)
    large = hold(0, tenant="mixed", num_images=4, created_at_ms=1)
    batcher.add(hold(1, tenant="other", created_at_ms=0), now_ms=0)
    batcher.add(large, now_ms=0)
    batcher.add(hold(2, tenant="mixed", created_at_ms=2), now_ms=0)
    first = batcher.next_batch(0)
    assert [reserved.job.tenant_id for reserved in first] == ["other", "mixed"]
    batcher.add(hold(3, tenant="other", created_at_ms=3), now_ms=0)
    assert batcher.next_batch(0) == (large,)


def test_jobs_share_a_batch_only_with_the_same_loras_at_the_same_scales(hold):
    """They change the weights that all of a batch run with; the same ones are no reason to part."""
    batcher = Batcher(max_images=16, window_ms=0)
    sets = [None, {"ink": 1.0}, {"ink": 0.5}, {"oil": 1.0}, {"ink": 1.0, "oil": 1.0}, {"ink": 1.0}, None]
    jobs = [hold(number, loras=loras) for number, loras in enumerate(sets)]
    for job in jobs:
        batcher.add(job, now_ms=0)
    batches = [batcher.next_batch(0) for _ in range(6)]
    assert sorted(len(batch) for batch in batches) == [0, 1, 1, 1, 2, 2]
    for batch in batches:
        assert len({job.job.request.loras for job in batch}) <= 1


def test_drain_gives_everything_back_oldest_first(hold):
    """What stops takes all that waits with it, and leaves nothing."""
    batcher = Batcher(max_images=4, window_ms=20)
    young, old = hold(1, created_at_ms=2_000), hold(2, created_at_ms=1_000)
    batcher.add(young, now_ms=0)
    batcher.add(old, now_ms=0)
    assert batcher.drain() == (old, young)
    assert batcher.ready_at_ms() is None


_MEMBERS = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(["a", "b", "c"]),
        "num_images": st.integers(1, 6),
        "size_px": st.sampled_from([64, 128]),
        "steps": st.sampled_from([2, 3]),
        "guidance_scale": st.sampled_from([1.0, 5.0]),
        "loras": st.sampled_from([None, {"ink": 1.0}, {"ink": 0.5}]),
        "reproducible": st.booleans(),
        "created_at_ms": st.integers(0, 50),
    }
)


@settings(deadline=None, max_examples=150)
@given(jobs=st.lists(_MEMBERS, max_size=12), max_images=st.integers(1, 8), window_ms=st.integers(0, 30))
def test_every_job_runs_once_in_a_lawful_batch(hold, jobs, max_images, window_ms):
    """Batches are compatible, within the limit unless of one job, alone if reproducible, never late, and lose nothing."""
    batcher = Batcher(max_images=max_images, window_ms=window_ms)
    waiting = {}
    for number, members in enumerate(jobs):
        reserved = hold(number, **members)
        batcher.add(reserved, now_ms=number)
        waiting[reserved.job.job_id] = reserved
    now_ms = len(jobs)
    while (ready_at_ms := batcher.ready_at_ms()) is not None:
        assert ready_at_ms <= len(jobs) + window_ms
        if ready_at_ms > now_ms:
            assert batcher.next_batch(ready_at_ms - 1) == ()
            now_ms = ready_at_ms
        batch = batcher.next_batch(now_ms)
        assert batch
        for reserved in batch:
            assert waiting.pop(reserved.job.job_id) is reserved
        assert len({batch_key(reserved.job) for reserved in batch}) == 1
        assert len(batch) == 1 or sum(reserved.job.request.num_images for reserved in batch) <= max_images
        assert len(batch) == 1 or not any(reserved.job.request.reproducible for reserved in batch)
    assert not waiting


@settings(deadline=None, max_examples=100)
@given(first=_MEMBERS, crowd=st.lists(_MEMBERS, min_size=1, max_size=6), max_images=st.integers(1, 8))
def test_an_endless_stream_of_others_delays_a_tenant_by_a_bounded_number_of_batches(
    hold, first, crowd, max_images
):
    """The oldest job of a tenant runs within as many batches as there are tenants, whatever keeps coming."""
    batcher = Batcher(max_images=max_images, window_ms=0)
    wanted = hold(0, **(first | {"tenant": "patient", "created_at_ms": 10**6}))
    batcher.add(wanted, now_ms=0)
    for turn in range(4):
        for number, members in enumerate(crowd):
            batcher.add(hold(1 + turn * len(crowd) + number, **members), now_ms=turn)
        if wanted in batcher.next_batch(turn):
            return
    raise AssertionError("the patient tenant was not served within four batches of four tenants")
