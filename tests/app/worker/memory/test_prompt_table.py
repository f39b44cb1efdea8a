"""Which prompts are near one, at any size and after any history, against a slow and obvious search."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from app.worker.memory.prompt_table import PromptTable
from app.worker.memory.selection import exact_cosines, unit_rows


def _prompts(rng, number, dim):
    """Unit rows in halves around a few centres, some of them equal."""
    centres = rng.normal(size=(4, dim))
    rows = centres[rng.integers(4, size=number)]
    rows = rows + rng.choice([0.0, 0.3, 1.0], size=(number, 1)) * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _near(table, prompt, min_cosine):
    numbers, cosines = table.near(prompt, min_cosine)
    return {
        table.take(np.array([number]))[0].tobytes(): cosine
        for number, cosine in zip(numbers, cosines, strict=True)
    }


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    dim=st.sampled_from([1, 3, 4, 31, 97, 512]),
    min_cosine=st.floats(-0.5, 0.99),
    steps=st.integers(1, 6),
)
def test_what_is_near_equals_brute_force_after_any_history(seed, dim, min_cosine, steps):
    """After any additions, releases and closed gaps: the set of a float64 search, and bits that no other row changes."""
    rng = np.random.default_rng(seed)
    table, used = PromptTable(dim), []
    for _ in range(steps):
        added = _prompts(rng, int(rng.integers(0, 40)), dim)
        numbers = table.add(added)
        used += zip(numbers.tolist(), added, strict=True)
        rng.shuffle(used)
        cut = int(rng.integers(0, len(used) + 1)) // 3
        table.release(np.array([number for number, _ in used[:cut]], np.int64))
        used = used[cut:]
        if rng.random() < 0.3:
            renumbered = table.close_gaps()
            used = [(int(renumbered[number]), row) for number, row in used]
    if not used:
        return
    left = np.unique(np.stack([row for _, row in used]), axis=0)
    prompt = unit_rows(rng.normal(size=(1, dim)) + 2 * left[:1])[0]
    exact = exact_cosines(unit_rows(left), prompt)
    found = _near(table, prompt, min_cosine)
    live = {row.tobytes() for row in left}
    assert {row for row in found if row in live} == {
        row.tobytes() for row, cosine in zip(left, exact, strict=True) if cosine >= min_cosine
    }
    alone = PromptTable(dim)
    alone.add(left[:1])
    for row, cosine in _near(alone, prompt, min_cosine).items():
        assert found[row] == cosine
        assert cosine == pytest.approx(exact[0], abs=1e-3)
    assert all((table.take(np.array([number]))[0] == row).all() for number, row in used)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 1e3, 6e4])
def test_rows_of_any_norm_are_found(scale):
    """A prompt that is no unit vector, as an imported archive may have one, counts by its direction."""
    rng = np.random.default_rng(0)
    rows = (_prompts(rng, 50, 8).astype(np.float64) * scale).astype(np.float16)
    table = PromptTable(8)
    table.add(rows)
    prompt = unit_rows(rng.normal(size=(1, 8)))[0]
    for min_cosine in (-0.3, 0.2, 0.7):
        distinct = np.unique(rows.view(np.uint16), axis=0).view(np.float16)
        exact = exact_cosines(unit_rows(distinct), prompt)
        assert len(table.near(prompt, min_cosine)[0]) == int((exact >= min_cosine).sum())


def test_entries_of_one_prompt_are_one_row():
    """Equal rows have one number, within a call and over calls; a row that is used no more is zeros and can come again."""
    rows = _prompts(np.random.default_rng(1), 3, 16)
    table = PromptTable(16)
    assert table.add(rows[[0, 1, 0, 0]]).tolist() == [0, 1, 0, 0]
    assert table.add(rows[[2, 1]]).tolist() == [2, 1]
    table.release(np.array([1]))
    assert (table.take(np.array([1]))[0] == rows[1]).all()
    table.release(np.array([1]))
    assert not table.take(np.array([1])).any()
    assert table.add(rows[1:2]).tolist() == [3]
    assert table.close_gaps().tolist() == [0, -1, 1, 2]
    assert table.add(rows).tolist() == [0, 2, 1]


def test_two_rows_of_one_hash_stay_two():
    """A row whose hash another row has is kept as a row of its own."""
    rows = _prompts(np.random.default_rng(2), 2, 16)
    table = PromptTable(16)
    table.add(rows[:1])
    (row_hash,) = table._numbers
    table._numbers = {hash(rows[1].tobytes()): table._numbers[row_hash]}
    numbers = table.add(rows[[1, 0, 1]])
    assert (table.take(numbers) == rows[[1, 0, 1]]).all()
