"""From a request and a memory to the engine's neighbours, beside the engine's own exact memory."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples

from app.domain.request import Diversity
from app.worker.memory.host_memory import HostMemory
from app.worker.memory.neighbours import neighbour_query, to_neighbours
from sparke_engine.guidance.presets import preset_named
from sparke_engine.memory_bank import MemoryBank
from tests.host_rows import HostEntry, stacked

FEATURE_DIM, PROMPT_DIM = 6, 5
RULE = preset_named("toy")


def _problem(seed, num_entries, hashes=None):
    """A memory and a bank of the same entries, around two prompts, and a prompt near one of them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2, PROMPT_DIM))
    prompts = centres[rng.integers(2, size=num_entries)] + 0.2 * rng.normal(size=(num_entries, PROMPT_DIM))
    prompts = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).astype(np.float16)
    features = rng.normal(size=(num_entries, FEATURE_DIM)).astype(np.float16)
    hashes = rng.integers(0, 2**63, size=num_entries) if hashes is None else hashes
    memory, bank = HostMemory(FEATURE_DIM, PROMPT_DIM), MemoryBank()
    rows = zip(hashes, features, prompts, strict=True)
    memory.append(stacked([HostEntry(n, int(h), f, p) for n, (h, f, p) in enumerate(rows, start=1)]))
    if num_entries:
        bank.append(torch.from_numpy(features).float(), torch.from_numpy(prompts).float())
    asked = torch.nn.functional.normalize(torch.from_numpy(centres[0]).float(), dim=0)
    return memory, bank, asked


def _neighbours(memory, asked, rule, diversity, version=10**6):
    return to_neighbours(memory.select(neighbour_query(rule, diversity, asked, version=version)))


@examples(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32), num_entries=st.integers(0, 80), bandwidth=st.sampled_from([None, 0.1, 0.6])
)
def test_below_the_cap_both_memories_give_the_same_neighbours(seed, num_entries, bandwidth):
    """Same entries, same order, same values to one rounding of fp32, every weight 1, nothing masked."""
    memory, bank, asked = _problem(seed, num_entries)
    expected = bank.neighbours(asked[None], RULE.with_bandwidths(None, bandwidth))
    actual = _neighbours(memory, asked, RULE, Diversity(0.5, prompt_bandwidth=bandwidth))
    if expected.mask.sum() == 0:
        assert actual is None
        return
    torch.testing.assert_close(actual.features, expected.features, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual.prompt_embeddings, expected.prompt_embeddings, rtol=1e-6, atol=1e-6)
    assert actual.mask.all()
    assert (actual.weights == 1).all()
    assert (actual.features.dtype, actual.weights.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(("rule_cap", "asked_cap"), [(8, None), (8, 50), (50, 8)])
def test_above_the_cap_the_sample_stands_for_all(rule_cap, asked_cap):
    """The smaller of the preset's and the request's cap holds, and the weighted influence adds up to that of all."""
    memory, _, asked = _problem(3, 80)
    num_all = _neighbours(memory, asked, RULE, Diversity(0.5)).mask.sum()
    rule = replace(RULE, max_neighbours=rule_cap)
    sample = _neighbours(memory, asked, rule, Diversity(0.5, num_neighbours=asked_cap))
    assert sample.features.shape == (1, 8, FEATURE_DIM)
    influence = torch.exp(-RULE.power * (1 - sample.prompt_embeddings[0] @ asked) / RULE.prompt_bandwidth**2)
    every = _neighbours(memory, asked, RULE, Diversity(0.5)).prompt_embeddings[0]
    of_all = torch.exp(-RULE.power * (1 - every @ asked) / RULE.prompt_bandwidth**2).sum()
    assert (sample.weights[0] * influence).sum().item() == pytest.approx(of_all.item(), rel=1e-4)
    assert num_all > 8


@pytest.mark.parametrize("min_prompt_kernel", [0.0, 1e-3])
def test_above_the_cap_both_memories_draw_the_same(min_prompt_kernel):
    """For equal ids and versions: the same entries, and weights that are equal to the rounding of fp32 cosines."""
    rule = replace(RULE, max_neighbours=12, min_prompt_kernel=min_prompt_kernel)
    memory, bank, asked = _problem(4, 80, hashes=range(80))
    expected = bank.neighbours(asked[None], rule)
    actual = _neighbours(memory, asked, rule, Diversity(0.5), version=80)
    torch.testing.assert_close(actual.features, expected.features, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual.weights, expected.weights, rtol=1e-4, atol=0)
    other = _neighbours(memory, asked, rule, Diversity(0.5), version=79)
    assert not torch.equal(actual.features, other.features)
