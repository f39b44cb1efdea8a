"""What rivals share: strength, isolation, bookkeeping, the way back from features, the registry."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines import RIVALS, Rival, make_rival
from sparke_engine.baselines.rival import RivalGuide, Seen, lift
from sparke_engine.diffusion.guide import GuidedGroup, Method
from sparke_engine.diffusion.schedulers import NoiseLevel
from sparke_engine.diffusion.steps import Step
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.features import FeatureMap
from sparke_engine.guidance.presets import PAPER, DiversityPreset
from sparke_engine.guidance.push import Entries
from sparke_engine.memory_bank import MemoryBank

PRESET = DiversityPreset(grid=(2, 2), latent_bandwidth=1.5)
PUSHING = ["particles", "spell", "vendi", "interval"]
STRONG = {"particles": {"coefficient": 5.0}, "spell": {"radius": 1.5}, "vendi": {}, "interval": {"high": 1.0}}
Latents = Callable[..., Tensor]


def entries_of(seed: int, k: int = 4) -> Entries:
    """Entries of weight 1."""
    latents = torch.randn(k, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Entries(PRESET.feature_map.feature(latents), torch.ones(k))


def step_of(clean: Tensor, index: int = 0, share: float = 1.0) -> Step:
    """A step at σ̃ = 4/3 with classifier-free guidance."""
    return Step(
        index,
        10,
        lambda: clean,
        lambda: 0.7 * clean,
        sample=clean,
        guidance_scale=5.0,
        noise=lambda: NoiseLevel(0.6, 0.8),
        share=share,
    )


def needs_of(name: str) -> dict[str, Any]:
    """What a rival needs beside its knob: nothing that is used here."""
    given: dict[str, Any] = {"decode": lambda latents: latents, "encode": lambda pictures: pictures}
    given["bank"] = MemoryBank()
    return {need: given[need] for need in RIVALS[name].needs}


@dataclass(frozen=True)
class Constant(Rival):
    """Subtracts a tenth of x̂0."""

    def push(self, seen: Seen) -> Tensor:
        """A tenth."""
        return 0.1 * seen.clean


def test_strength_scales_and_the_mean_is_reported(latents_of: Latents) -> None:
    """The rule's push is multiplied by the strength; reported is the mean of ‖δ‖/‖x̂0‖ over the steps of a whole run."""
    clean = latents_of(0)
    groups = [GuidedGroup(slice(0, 1), PRESET, 1.0, None), GuidedGroup(slice(1, 3), PRESET, 0.5, None)]
    guide = Constant().guide(groups)
    guide.displace(step_of(clean))
    guide.before(step_of(clean))  # a run that is broken off here leaves no trace
    for run in range(2):
        for index in range(10):
            step = step_of(clean, index)
            assert guide.displace(step) == []
            moves = guide.before(step) if index < 4 else []
        assert moves == []
        moves = guide.before(step_of(clean, 9))
        torch.testing.assert_close(moves[0].delta, 0.1 * clean[:1])
        torch.testing.assert_close(moves[1].delta, 0.05 * clean[1:])
        guide.finish(clean, 10)
        torch.testing.assert_close(guide.runs[run].pushes, torch.tensor([0.05, 0.025, 0.025]))
    assert Constant().guide([GuidedGroup(slice(0, 3), PRESET, 0.0, None)]).before(step_of(clean)) == []


def test_a_push_in_each_of_two_calls_is_one_push(latents_of: Latents) -> None:
    """Where a scheduler calls twice for a step, each call's push counts half."""
    clean = latents_of(0)
    guide = Constant().guide([GuidedGroup(slice(None), PRESET, 1.0, None)])
    for index in range(10):
        guide.displace(step_of(clean, index, share=0.5))
        for _ in range(2):
            (move,) = guide.before(step_of(clean, index, share=0.5))
            torch.testing.assert_close(move.delta, 0.1 * clean)
    guide.finish(clean, 10)
    torch.testing.assert_close(guide.runs[0].pushes, torch.full((3,), 0.1))


def test_latents_of_zero_report_no_push() -> None:
    """Where x̂0 is zero there is no relative size; it counts as 0."""
    guide = Constant().guide([GuidedGroup(slice(None), PRESET, 1.0, None)])
    guide.before(step_of(torch.zeros(2, 4, 4, 4)))
    guide.finish(torch.zeros(2, 4, 4, 4), 1)
    assert guide.runs[0].pushes.tolist() == [0, 0]


@pytest.mark.parametrize("name", PUSHING)
def test_a_group_sees_no_other(name: str, latents_of: Latents) -> None:
    """A group's push is the same to the bit whatever other groups, their latents and their entries are."""
    rival = make_rival(name, **STRONG[name])
    mine = GuidedGroup(slice(0, 2), PRESET, 0.8, entries_of(5))
    seen = []
    for other in (1, 2):
        clean = torch.cat([latents_of(0, 2), 3 * latents_of(other, 2)])
        theirs = GuidedGroup(slice(2, 4), PRESET, 0.4, entries_of(other, 7))
        move, second = rival.guide([mine, theirs]).before(step_of(clean))
        assert (move.rows, second.rows) == (slice(0, 2), slice(2, 4))
        seen.append(move.delta)
    assert torch.equal(*seen)
    assert seen[0].flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("name", PUSHING)
def test_one_image_without_entries(name: str, latents_of: Latents) -> None:
    """One image and no memory: nothing to repel, so nothing moves (the interval needs no other image)."""
    guide = make_rival(name, **STRONG[name]).guide([GuidedGroup(slice(None), PRESET, 1.0, None)])
    moves = guide.before(step_of(latents_of(0, 1)))
    if name == "interval":
        assert moves[0].delta.any()
    else:
        assert not any(move.delta.any() for move in moves)


@pytest.mark.parametrize("name", PUSHING)
def test_coincident_images_give_finite_pushes(name: str, latents_of: Latents) -> None:
    """Images and entries that all coincide have no direction in which to part: no push, and no NaN."""
    clean = latents_of(0, 1).expand(3, -1, -1, -1).clone()
    entries = Entries(PRESET.feature_map.feature(clean), torch.ones(3))
    guide = make_rival(name, **STRONG[name]).guide([GuidedGroup(slice(None), PRESET, 1.0, entries)])
    for move in guide.before(step_of(clean)):
        assert move.delta.isfinite().all()
        assert name == "interval" or not move.delta.any()


@pytest.mark.parametrize("name", PUSHING)
def test_latents_of_zero_give_finite_pushes(name: str) -> None:
    """Latents of zero, which have no feature, give no NaN."""
    guide = make_rival(name, **STRONG[name]).guide([GuidedGroup(slice(None), PRESET, 1.0, entries_of(1))])
    for move in guide.before(step_of(torch.zeros(2, 4, 4, 4))):
        assert move.delta.isfinite().all()


@pytest.mark.parametrize("grid", [None, (2, 2), (3, 4), (8, 8)])
def test_what_is_lifted_moves_the_feature(grid: tuple[int, int] | None) -> None:
    """φ(δ) is v where cells do not overlap; ⟨φ(δ), v⟩ = ‖v‖² always; v = 0 gives δ = 0."""
    latents = torch.zeros(3, 2, 8, 8, dtype=torch.float64)
    feature_map = FeatureMap(grid)
    vectors = torch.randn(
        3, feature_map.dim(2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    vectors[1] = 0
    mapped = feature_map.apply(lift(vectors, feature_map, latents))
    torch.testing.assert_close((mapped * vectors).sum(1), vectors.square().sum(1))
    if grid != (3, 4):
        torch.testing.assert_close(mapped, vectors)
    assert not mapped[1].any()


def test_every_rival_is_a_method() -> None:
    """Every kind has its knob, makes a Method of every value, and leaves the pipeline alone unless it says otherwise."""
    for name, kind in RIVALS.items():
        for value in kind.values:
            knobs = {kind.knob: value} if kind.knob_of == "rival" else {}
            rival = make_rival(name, **knobs, **needs_of(name))
            assert isinstance(rival, Method)
            assert isinstance(rival, Rival)
            assert kind.knob_of == "plan" or getattr(rival, kind.knob) == value
        for other, values in kind.others.items():
            for value in values:
                assert getattr(make_rival(name, **{other: value}, **needs_of(name)), other) == value
        if name != "cads":
            with rival.around(SimpleNamespace(), [1]) as nothing:
                assert nothing is None
            assert isinstance(rival.around(SimpleNamespace(), [1]), AbstractContextManager)


def test_rivals_keep_the_presets_features() -> None:
    """All but the two modes run under the model's own preset; those two under whole latents and the same prompt kernel."""
    base = DiversityPreset(grid=(4, 4), prompt_bandwidth=0.7)
    for name in RIVALS:
        preset = make_rival(name, **needs_of(name)).preset(base)
        if name in ("paper", "released"):
            assert (preset.mode, preset.grid, preset.prompt_bandwidth) == (name, None, 0.7)
        else:
            assert preset is base
            other = replace(base, objective="vendi")
            assert make_rival(name, **needs_of(name)).preset(other) == base


def test_modes_need_their_preset() -> None:
    """A mode's guide refuses groups under another preset, and takes its own; its numbers reach the preset."""
    rival = make_rival("paper", eta=0.07, interval=3, latent_bandwidth=0.6, conditional=False)
    with pytest.raises(InvalidArgument, match="mode 'paper'"):
        rival.guide([GuidedGroup(slice(None), PRESET, 1.0, None)])
    preset = rival.preset(PRESET)
    assert (preset.eta, preset.interval, preset.latent_bandwidth, preset.conditional) == (0.07, 3, 0.6, False)
    assert make_rival("paper").preset(PAPER) == PAPER
    assert len(rival.guide([GuidedGroup(slice(None), preset, 1.0, None)]).groups) == 1
    released = make_rival("released", eta=0.05, kernel="cosine").preset(PRESET)
    assert (released.eta, released.kernel) == (0.05, "cosine")


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("nobody", {}),
        ("spell", {"radii": 1}),
        ("cfg", {"scale": 1}),
        ("interval", {"low": 3.0, "high": 2.0}),
        ("interval", {"low": -1.0}),
        ("cads", {"noise_scale": -0.1}),
        ("cads", {"tau1": 0.9, "tau2": 0.6}),
        ("cads", {"mixing": 2.0}),
        ("particles", {"coefficient": float("nan")}),
        ("particles", {"with_memory": True}),
        ("particles", {"least_noise": -1.0}),
        ("spell", {"radius": float("inf")}),
        ("spell", {"overcompensation": -1.0}),
        ("vendi", {"eta": -1.0}),
        ("vendi", {"window": 0.0}),
        ("vendi", {"interval": 0}),
        ("vendi", {"max_entries": 0}),
        ("vendi", {"interval": True}),
        ("vendi", {"max_entries": True}),
        ("paper", {"interval": True}),
        ("released", {"interval": True}),
        ("paper", {"eta": 0.0}),
        ("released", {"latent_bandwidth": 0.0}),
    ],
)
def test_nonsense_is_refused(name: str, knobs: dict[str, object]) -> None:
    """An unknown rival or parameter, or a value out of its domain, is InvalidArgument."""
    with pytest.raises(InvalidArgument):
        make_rival(name, **knobs)


def test_parameters_are_frozen_fields() -> None:
    """Rivals are values: equal parameters make equal rivals, and every knob is a field or the plan's."""
    assert make_rival("spell", radius=0.4) == make_rival("spell", radius=0.4)
    for name, kind in RIVALS.items():
        names = {field.name for field in fields(make_rival(name, **needs_of(name)))}
        assert (kind.knob in names) == (kind.knob_of == "rival")
    assert isinstance(make_rival("cfg").guide([]), RivalGuide)
