"""Who reads which entries of a long memory, and what its windows and newest images are held against."""

import json
from pathlib import Path

import pytest
import torch
from long_memory import Run, Setting, neighbours
from long_memory_report import (
    Made,
    colours,
    effective_cells,
    long_figures,
    long_table,
    nearest_earlier,
    pinned_figures,
    pinned_table,
    ratio_of_means,
    read_report,
    repeats,
    saved_windows,
    windows_of,
    write_report,
)
from memory_cost import timed
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.core.kernels import CosineKernel
from sparke_engine.core.scores import vendi
from sparke_engine.guidance.presets import DiversityPreset

SETTING = Setting("a star", 0.5, 12, "cpu", Path("nowhere"))
PROMPT = torch.nn.functional.normalize(torch.ones(1, 3), dim=1)


def bank_of(size: int) -> MemoryBank:
    """Entries of one prompt that differ."""
    bank = MemoryBank()
    bank.append(torch.randn(size, 5, generator=torch.Generator().manual_seed(size)), PROMPT.expand(size, -1))
    return bank


def made_of(judged: Tensor) -> Made:
    """A run of which only the judge's features matter."""
    nothing = Made.nothing(len(judged), 2)
    return Made(nothing.features, judged, nothing.attributes, nothing.first, nothing.newest)


@pytest.mark.parametrize("images", [64, 100, 2000, 10_000])
def test_rounds_fill_the_memory_and_never_run_far_ahead_of_it(images: int) -> None:
    """Requests that do not see one another are at most a 32nd of what they all see, and end at the number asked for."""
    run, size = Run("long", "all", 1, images, SETTING), 0
    for requests in run.rounds(0):
        assert requests == 1 or 32 * requests <= size / 4
        size += 4 * requests
    assert size == images


def test_pinned_requests_go_alone_and_ask_the_same() -> None:
    """Two that read the same memory with the same seeds would be one image twice."""
    run = Run("pinned", "all", 2, 512, SETTING)
    assert set(run.rounds(0)) == {1}
    assert run.seeds(1, 0) == run.seeds(1, 500) != run.seeds(0, 0)


def test_new_seeds_are_new() -> None:
    """No two requests of a long run share a seed."""
    run = Run("long", "all", 2, 512, SETTING)
    seeds = [seed for tenant in (0, 1) for start in range(0, 512, 4) for seed in run.seeds(tenant, start)]
    assert len(set(seeds)) == len(seeds) == 1024


def test_nearest_is_the_oldest_for_ever() -> None:
    """Among entries of one prompt an index returns those of lowest place, however many follow."""
    bank = bank_of(300)
    found = neighbours("nearest 256", bank, PROMPT, DiversityPreset())
    assert found is not None
    assert torch.equal(found.features[0], bank.features[:256])


@pytest.mark.parametrize("memory", ["all", "sample 64", "anew 64"])
def test_what_is_read_stands_for_all(memory: str) -> None:
    """Weights add up to the memory's size, and every entry that is read is one of the memory, once."""
    bank = bank_of(300)
    found = neighbours(memory, bank, PROMPT, DiversityPreset())
    assert found is not None
    assert found.weights.sum().item() == pytest.approx(300)
    places = (found.features[0][:, None] == bank.features[None]).all(-1).nonzero()[:, 1]
    assert len(set(places.tolist())) == found.features.shape[1]


def test_a_draw_is_new_for_every_size_of_the_memory() -> None:
    """Of 64 out of 300 entries two independent draws share about 14; the fixed sample keeps nearly all."""
    before, after = bank_of(300), MemoryBank()
    after.append(torch.cat([before.features, bank_of(4).features]), PROMPT.expand(304, -1))
    shared = {}
    for memory in ("anew 64", "sample 64"):
        old, new = (neighbours(memory, bank, PROMPT, DiversityPreset()) for bank in (before, after))
        assert old is not None
        assert new is not None
        cosines = old.features[0] @ new.features[0].T  # 1 to rounding where entries are the same
        shared[memory] = int((cosines > 1 - 1e-5).sum())
    assert shared["anew 64"] < 32
    assert shared["sample 64"] > 56


def test_windows_are_counted_from_the_newest() -> None:
    """The newest window is the last 64 images; what does not fill a window is left out at the old end."""
    judged = torch.randn(2, 140, 6, generator=torch.Generator().manual_seed(0))
    scores = made_of(judged).window_scores()
    expected = [[vendi(own[start : start + 64], CosineKernel()) for start in (12, 76)] for own in judged]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


def test_nearest_earlier_image() -> None:
    """As a loop over all pairs finds it: later images do not count, the newest among themselves do."""
    judged = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    judged[25] = 2 * judged[23]
    cosines = torch.nn.functional.cosine_similarity(judged[:, None].double(), judged[None].double(), dim=-1)
    expected = [min(1 - cosines[i, j].item() for j in range(i)) for i in range(20, 30)]
    found = nearest_earlier(judged, 10)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)  # rounding of float64
    assert found[5].item() == pytest.approx(0, abs=1e-12)


def test_repeats_are_images_that_another_repeats() -> None:
    """Of 64 images three are one image: three repeats, for the tenant that has them."""
    judged = torch.randn(2, 80, 128, generator=torch.Generator().manual_seed(2))
    judged[1, [30, 50]] = judged[1, 79].clone()
    judged[1, 3] = judged[1, 78]  # not among the newest 64
    assert repeats(judged).tolist() == [0, 3 / 64]


def test_cells_are_counted_by_their_entropy() -> None:
    """Even shares of four cells are four; the shape is no part of a cell."""
    cells = torch.tensor([[0, 1, 2, 0], [5, 7, 2, 0], [0, 1, 3, 2], [0, 1, 2, 1], [3, 1, 2, 0]])
    assert effective_cells(cells[:4]) == pytest.approx(4)
    assert effective_cells(cells[[0, 4]]) == pytest.approx(1)


def test_a_ratio_of_independent_means_has_its_interval() -> None:
    """Half-width 1.96·√(s₁²/(n₁m₁²) + s₂²/(n₂m₂²)) by the delta method; the bootstrap is within a quarter of it."""
    generator = torch.Generator().manual_seed(3)
    own = 4 + 0.2 * torch.randn(64, generator=generator, dtype=torch.float64)
    other = 3 + 0.3 * torch.randn(48, generator=generator, dtype=torch.float64)
    found = ratio_of_means(own, other)
    parts = [(values.std() / values.mean()).square() / len(values) for values in (own, other)]
    half = 1.96 * found.value * float(sum(parts)) ** 0.5
    assert found.value == pytest.approx(float(own.mean() / other.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.25)


def test_every_memory_has_a_colour_of_its_own() -> None:
    """Draws of 64 and of 256 are two lines that can be told apart, in both panels."""
    windows = {(run, memory): torch.ones(1, 2) for run, memory in (("long", "none"), ("long", "anew 64"))}
    windows |= {("pinned", memory): torch.ones(1, 2) for memory in ("anew 64", "anew 256", "nearest 256")}
    assert len(set(colours(windows).values())) == 4


def test_windows_survive_json() -> None:
    """The picture can be drawn again from what was published."""
    windows = {("pinned", "anew 64"): torch.rand(2, 3, dtype=torch.float64)}
    found = windows_of(json.loads(json.dumps(saved_windows(windows))))
    torch.testing.assert_close(found, windows, rtol=0, atol=0)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Tables and picture of `figures.json` alone are those of the runs themselves."""
    judged = torch.randn(2, 192, 128, generator=torch.Generator().manual_seed(4))
    features, attributes = torch.zeros(2, 192, 3), torch.ones(2, 192, 4, dtype=torch.int64)
    pictures = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    two = Made(features, judged, attributes, pictures, pictures)
    one = Made(features[:1], judged[:1], attributes[:1], pictures, pictures)
    runs = {("long", "none"): one, ("fresh", "none"): two, ("pinned", "all"): two}
    windows, stated = {run: made.window_scores() for run, made in runs.items()}, torch.tensor([3, -1, -1, -1])
    table = long_table(long_figures(runs, windows, stated))
    pinned = pinned_table(pinned_figures(runs, windows, stated))
    assert write_report(runs, "a star", "here", tmp_path) == f"here\n\n{table}\n\n{pinned}\n"
    again = tmp_path / "again"
    again.mkdir()
    read_report(tmp_path / "figures.json", again)
    for name in ("table.md", "long-memory.png"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_sizes_take_turns_and_warming_up_does_not_count() -> None:
    """Each repeat calls every size once, in an order that turns round."""
    called: list[int] = []
    calls = {size: lambda size=size: called.append(size) for size in (100, 10_000)}
    times = timed(calls, 2)
    assert called == [100, 10_000, 10_000, 100, 100, 10_000, 10_000, 100]
    assert [len(own) for own in times.values()] == [2, 2]
