"""What a memory chooses as neighbours, against a slow and obvious choice."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from app.worker.memory.host_memory import HostMemory, NearestQuery, NeighbourQuery
from app.worker.memory.selection import exact_cosines, min_cosine, unit_rows
from sparke_engine.core.sampling import uniforms
from tests.host_rows import HostEntry, stacked

FEATURE_DIM, PROMPT_DIM = 3, 4


def _entries(rng, num_entries, *, num_prompts=3, spread=0.3):
    """Entries around a few prompts, versions with gaps, hashes with ties."""
    centres = rng.normal(size=(num_prompts, PROMPT_DIM))
    versions = np.cumsum(rng.integers(1, 3, size=num_entries))
    prompts = centres[rng.integers(num_prompts, size=num_entries)]
    prompts = prompts + spread * rng.normal(size=prompts.shape) * rng.integers(0, 2, size=(num_entries, 1))
    return [
        HostEntry(
            int(version),
            int(rng.integers(0, 50)),
            rng.normal(size=FEATURE_DIM).astype(np.float16),
            (prompt / np.linalg.norm(prompt)).astype(np.float16),
        )
        for version, prompt in zip(versions, prompts, strict=True)
    ]


def _memory_of(entries):
    memory = HostMemory(FEATURE_DIM, PROMPT_DIM)
    memory.append(stacked(entries))
    return memory


def _kernel(left, right, bandwidth):
    """k_Y in float64 with its vectors at unit norm, written out."""
    left, right = [float(value) for value in left], [float(value) for value in right]
    left_norm, right_norm = math.hypot(*left), math.hypot(*right)
    distance = math.fsum((a / left_norm - b / right_norm) ** 2 for a, b in zip(left, right, strict=True))
    return math.exp(-distance / (2 * bandwidth**2))


def _query(prompt, version, bandwidth, power, min_weight, cap):
    steepness = power / bandwidth**2 if min_weight > 0 else 0.0
    return NeighbourQuery(prompt, version, min_cosine(bandwidth, power, min_weight), steepness, cap)


_PROBLEM = {
    "seed": st.integers(0, 2**32),
    "num_entries": st.integers(0, 60),
    "bandwidth": st.floats(0.05, 2.0),
    "power": st.sampled_from([1.0, 2.0]),
    "min_weight": st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.9]),
    "cap": st.integers(0, 70),
    "version": st.integers(0, 130),
}


@settings(deadline=None, max_examples=200)
@given(**_PROBLEM)
def test_the_choice_equals_brute_force(seed, num_entries, bandwidth, power, min_weight, cap, version):
    """Every entry up to the version with k_Y^p ≥ ε in order; above the cap those of least u/k_Y^p, weighted to the same sum."""
    rng = np.random.default_rng(seed)
    entries = _entries(rng, num_entries)
    query = rng.normal(size=PROMPT_DIM).astype(np.float32)
    if entries and seed % 2:
        query = entries[0].prompt_embedding.astype(np.float32)
    chosen = _memory_of(entries).select(_query(query, version, bandwidth, power, min_weight, cap))

    weights = {entry.version: _kernel(entry.prompt_embedding, query, bandwidth) ** power for entry in entries}
    doubtful = [
        entry for entry in entries if abs(weights[entry.version] - min_weight) < 1e-6 * power / bandwidth**2
    ]
    if min_weight > 0 and doubtful:
        return  # fp32 storage and the oracle may round such an entry to different sides
    expected = [
        entry for entry in entries if entry.version <= version and weights[entry.version] >= min_weight
    ]
    assert chosen.num_qualified == len(expected)
    if len(expected) > cap:
        influence = {entry.version: weights[entry.version] if min_weight > 0 else 1.0 for entry in expected}
        numbers = uniforms(torch.tensor([entry.id_hash for entry in expected]), version).tolist()
        by_version = {entry.version: u for entry, u in zip(expected, numbers, strict=True)}
        expected.sort(key=lambda entry: (by_version[entry.version] / influence[entry.version], entry.version))
        least = [by_version[entry.version] / influence[entry.version] for entry in expected]
        # fp32 cosines err by 1e-6 at most: such priorities may be taken the other way round
        is_near_tie = cap > 0 and least[cap] - least[cap - 1] < 2e-6 * power / bandwidth**2 * least[cap]
        if min_weight > 0 and is_near_tie:
            return
        expected = sorted(expected[:cap], key=lambda entry: entry.version)
        kept = sum(
            weight * influence[v]
            for v, weight in zip(chosen.versions.tolist(), chosen.weights.tolist(), strict=True)
        )
        assert kept == pytest.approx(sum(influence.values()), rel=1e-5 * power / bandwidth**2) or cap == 0
        assert (chosen.weights >= 1).all()
    else:
        assert (chosen.weights == 1).all()
    assert chosen.versions.tolist() == [entry.version for entry in expected]
    for row, entry in zip(chosen.features, expected, strict=True):
        unit = entry.feature.astype(np.float64) / np.linalg.norm(entry.feature.astype(np.float64))
        np.testing.assert_allclose(row, unit, rtol=1e-6, atol=1e-7)  # one rounding to fp32


@settings(deadline=None, max_examples=100)
@given(**_PROBLEM, later=st.integers(1, 40), pages=st.integers(1, 4))
def test_a_replay_chooses_the_same_bits_whatever_came_later(
    seed, num_entries, bandwidth, power, min_weight, cap, version, later, pages
):
    """Reading as of a version gives the same arrays before and after growth, and however the entries arrived."""
    rng = np.random.default_rng(seed)
    entries = _entries(rng, num_entries + later)
    then, now = _memory_of(entries[:num_entries]), HostMemory(FEATURE_DIM, PROMPT_DIM)
    for page in np.array_split(np.arange(len(entries)), pages):
        now.append(stacked([entries[row] for row in page]))
    version = min(version, entries[num_entries - 1].version if num_entries else 0)
    query = _query(rng.normal(size=PROMPT_DIM).astype(np.float32), version, bandwidth, power, min_weight, cap)
    before, after = then.select(query), now.select(query)
    assert before.features.tobytes() == after.features.tobytes()
    assert before.prompt_embeddings.tobytes() == after.prompt_embeddings.tobytes()
    assert before.versions.tolist() == after.versions.tolist()
    assert before.weights.tobytes() == after.weights.tobytes()


def test_one_prompt_repeated_is_sampled_over_its_whole_past():
    """Of 2,000 equal prompts the sample holds young and old alike, never only the oldest."""
    rng = np.random.default_rng(1)
    prompt = np.eye(PROMPT_DIM, dtype=np.float16)[0]
    hashes = rng.integers(0, 2**63, size=2_000)
    entries = [
        HostEntry(version, int(id_hash), np.ones(FEATURE_DIM, np.float16), prompt)
        for version, id_hash in enumerate(hashes, start=1)
    ]
    memory, drawn = _memory_of(entries), []
    for version in (1_999, 2_000):
        chosen = memory.select(NeighbourQuery(prompt.astype(np.float32), version, 0.9, 22.0, 256))
        assert len(chosen.versions) == 256
        assert (chosen.weights == np.float32(version / 256)).all()
        # A uniform sample of 256 has a mean version of 1000.5 with a standard error of 34.
        assert abs(chosen.versions.mean() - 1000.5) < 4 * 34
        drawn.append(set(chosen.versions.tolist()))
    # Two independent draws of 256 of 2,000 share 33 ± 5.
    assert 13 < len(drawn[0] & drawn[1]) < 53


def test_whether_an_entry_qualifies_does_not_depend_on_how_many_there_are():
    """Norms and cosines of a row have the same bits alone and among 3,000."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(3_000, 97)).astype(np.float16)
    query = unit_rows(rng.normal(size=(1, 97)))[0]
    units = unit_rows(rows)
    cosines = exact_cosines(units, query)
    for row in (0, 1, 1023, 1024, 2_999):
        alone = unit_rows(rows[row : row + 1])
        assert alone.tobytes() == units[row : row + 1].tobytes()
        assert exact_cosines(alone, query)[0] == cosines[row]


@pytest.mark.parametrize(
    ("bandwidth", "power", "min_weight", "expected"),
    [(0.3, 2.0, 1.0, 1.0), (0.3, 2.0, 0.0, -1.0), (10.0, 1.0, 1e-9, -1.0), (math.inf, 2.0, 0.01, -1.0)],
)
def test_the_bound_at_its_ends(bandwidth, power, min_weight, expected):
    """ε = 1 leaves equal prompts only; ε = 0 and kernels without end leave everything."""
    assert min_cosine(bandwidth, power, min_weight) == expected


@given(cosine=st.floats(-0.99, 0.99), bandwidth=st.floats(0.2, 2.0), power=st.sampled_from([1.0, 2.0]))
def test_the_bound_inverts_the_kernel(cosine, bandwidth, power):
    """At a cosine whose k_Y^p is ε the bound is that cosine."""
    min_weight = math.exp(-(2 - 2 * cosine) / (2 * bandwidth**2)) ** power
    assert min_cosine(bandwidth, power, min_weight) == pytest.approx(cosine, abs=1e-9)


def test_what_does_not_fit_is_refused_whole():
    """Other dimensions and versions that do not rise raise, and leave the memory as it was."""
    memory = _memory_of(_entries(np.random.default_rng(0), 3))
    size_bytes = memory.size_bytes
    wide = HostEntry(99, 1, np.ones(FEATURE_DIM + 1, np.float16), np.ones(PROMPT_DIM, np.float16))
    old = HostEntry(1, 1, np.ones(FEATURE_DIM, np.float16), np.ones(PROMPT_DIM, np.float16))
    for entry in (wide, old):
        with pytest.raises(ValueError, match=r"dimensions|rise"):
            memory.append(stacked([entry]))
    assert (len(memory), memory.size_bytes) == (3, size_bytes)


@pytest.mark.parametrize("offset", [-1e-4, -1e-5, 1e-5, 1e-4])
def test_the_bound_is_exact_within_the_rounding_of_the_index(offset):
    """An entry a hair inside qualifies and one a hair outside does not, though halves alone could not tell."""
    cosine = 0.7
    entry_prompt = np.array([cosine, math.sqrt(1 - cosine**2), 0, 0]).astype(np.float16)
    stored = entry_prompt.astype(np.float64) / np.linalg.norm(entry_prompt.astype(np.float64))
    memory = _memory_of([HostEntry(1, 1, np.ones(FEATURE_DIM, np.float16), entry_prompt)])
    query = np.eye(PROMPT_DIM, dtype=np.float32)[0]
    chosen = memory.select(NeighbourQuery(query, 1, float(stored[0]) + offset, 1.0, 10))
    assert len(chosen.versions) == (offset < 0)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    num_entries=st.integers(1, 60),
    share=st.floats(0, 1),
    cap=st.integers(0, 70),
    min_weight=st.sampled_from([0.0, 0.3]),
)
def test_what_is_dropped_was_never_there(seed, num_entries, share, cap, min_weight):
    """The choice is that of a memory which never had the entries, before and after more are appended."""
    rng = np.random.default_rng(seed)
    entries = _entries(rng, num_entries + 10)
    first, more = entries[:num_entries], entries[num_entries:]
    memory, gone = _memory_of(first), rng.random(num_entries) < share
    half = num_entries // 2
    ranges = [(entry.version, entry.version) for entry, is_gone in zip(first, gone, strict=True) if is_gone]
    num_dropped = memory.drop(ranges[half:]) + memory.drop(ranges[:half]) + memory.drop(ranges)
    assert num_dropped == len(ranges)
    left = [entry for entry, is_gone in zip(first, gone, strict=True) if not is_gone]
    query = _query(rng.normal(size=PROMPT_DIM).astype(np.float32), 10**6, 0.7, 2.0, min_weight, cap)
    for grown in ([], more):
        memory.append(stacked(grown))
        left += grown
        found, expected = memory.select(query), _memory_of(left).select(query)
        assert len(memory) == len(left)
        assert found.num_qualified == expected.num_qualified
        for name in ("features", "prompt_embeddings", "versions", "weights"):
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_nothing_of_what_is_dropped_is_kept():
    """Its numbers are in no array, though its neighbours are."""
    rng = np.random.default_rng(0)
    entries = _entries(rng, 40, spread=1.0)
    memory = _memory_of(entries)
    assert memory.drop([(entries[5].version, entries[5].version)]) == 1
    arrays = [*memory._features.parts(), *memory._prompts.parts()]
    held = b"".join(array.tobytes() for array in arrays)
    for entry, is_held in ((entries[5], False), (entries[6], True)):
        for needle in (entry.feature, entry.prompt_embedding):
            assert (needle.tobytes() in held) is is_held


def test_a_range_is_dropped_whole():
    """From its first to its last version, over gaps, beyond both ends of the memory too."""
    entries = _entries(np.random.default_rng(1), 30)
    memory = _memory_of(entries)
    first, last = entries[4].version, entries[11].version
    assert memory.drop([(first, last)]) == 8
    assert memory.drop([(0, first - 1), (10**6, 10**7)]) == 4
    assert memory.drop([(0, 10**9)]) == 18
    assert len(memory) == 0


def test_it_knows_which_versions_it_holds():
    """Not those of gaps, nor before its first and behind its last, nor what was dropped."""
    entries = _entries(np.random.default_rng(2), 30)
    memory, versions = _memory_of(entries), {entry.version for entry in entries}
    memory.drop([(entries[4].version, entries[6].version)])
    versions -= {entry.version for entry in entries[4:7]}
    assert {version for version in range(max(versions) + 3) if version in memory} == versions
    assert 1 not in HostMemory(3, 4)


@given(
    seed=st.integers(0, 2**32),
    num_entries=st.integers(0, 60),
    limit=st.integers(1, 70),
    least=st.sampled_from([-1.0, 0.0, 0.5, 0.99]),
)
@settings(deadline=None)
def test_the_nearest_are_those_of_a_slow_and_obvious_sort(seed, num_entries, limit, least):
    """By cosine in float64, then by version: none that came later, none that was forgotten."""
    rng = np.random.default_rng(seed)
    entries = _entries(rng, num_entries)
    memory = _memory_of(entries)
    prompt = rng.normal(size=PROMPT_DIM).astype(np.float32)
    version = int(rng.integers(0, entries[-1].version + 2)) if entries else 5
    gone = {entry.version for entry in entries if rng.random() < 0.3}
    memory.drop([(one, one) for one in sorted(gone)])
    there = [entry for entry in entries if entry.version <= version and entry.version not in gone]
    cosines = {entry.version: _cosine(entry.prompt_embedding, prompt) for entry in there}
    near = [one for one, cosine in cosines.items() if cosine >= least]
    found = memory.nearest(NearestQuery(prompt, version, limit, least))
    # Rows are rounded to fp32 before the exact sums, so cosines that are closer than that may be told apart or not.
    assert [round(cosine, 5) for _, cosine in found] == pytest.approx(
        sorted((cosines[one] for one in near), reverse=True)[:limit], abs=2e-5
    )
    assert {one for one, _ in found} <= set(near)
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _cosine(left, right):
    left, right = [float(value) for value in left], [float(value) for value in right]
    product = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return product / (math.hypot(*left) * math.hypot(*right))
