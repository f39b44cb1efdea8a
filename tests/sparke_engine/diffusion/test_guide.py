"""The guide of a batch: what each group's rows get, in every mode."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import Tensor

from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.schedulers import adapter_for
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Start, Step
from sparke_engine.errors import InvalidArgument, NonFiniteLatents
from sparke_engine.guidance.presets import PAPER, RELEASED, DiversityPreset
from sparke_engine.guidance.push import Entries, Prompts, Reference
from sparke_engine.guidance.references import references_push
from sparke_engine.guidance.released import Past, ReleasedScore, released_push

PRESET = DiversityPreset(grid=(2, 2), eta=0.5, window=0.5, latent_bandwidth=1.5, max_push=10)


def latents_of(seed: int, n: int = 3) -> Tensor:
    """Random latents."""
    return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def entries_of(preset: DiversityPreset, seed: int = 50) -> Entries:
    """Two entries of weight 1."""
    return Entries(preset.feature_map.feature(latents_of(seed, 2)), torch.ones(2))


def step_at(index: int, clean: Tensor, num_steps: int = 10) -> Step:
    """A step that predicts these clean latents."""
    return Step(index, num_steps, lambda: clean)


def test_groups_have_moves_of_their_own() -> None:
    """Each active group moves its own rows, the same whatever the other groups are; strength 0 has no move."""
    clean = latents_of(0)
    first = GuidedGroup(slice(0, 1), PRESET, 0.7, entries_of(PRESET))
    others = [
        GuidedGroup(slice(1, 3), PRESET, 0.0, None),
        GuidedGroup(slice(1, 3), PRESET, 0.9, entries_of(PRESET, 60)),
    ]
    moves = [GroupGuide([first, other]).before(step_at(0, clean)) for other in others]
    assert [len(found) for found in moves] == [1, 2]
    assert torch.equal(moves[0][0].delta, moves[1][0].delta)
    assert moves[0][0].rows == slice(0, 1)
    assert moves[0][0].delta.norm() > 0


def test_a_run_from_the_middle_is_pushed_by_what_is_open() -> None:
    """From ρ = 1 where a whole run starts at 2, in cells of 4 latents, pushes are (1/√5)/(2/√8) of their size."""
    reference = Reference(entries_of(PRESET, 70), 0.7)
    group = GuidedGroup(slice(0, 3), PRESET, 0.1, entries_of(PRESET), references=(reference,))
    clean = latents_of(0)
    late = Step(0, 10, lambda: clean, start=Start(1.0, 2.0))
    whole, partial = (GroupGuide([group]).before(step) for step in (step_at(0, clean), late))
    share = (1 / 5**0.5) / (2 / 8**0.5)
    for expected, found in zip(whole, partial, strict=True):
        torch.testing.assert_close(found.delta, share * expected.delta)
    sizes = [GroupGuide([group]).ready(step) for step in (step_at(0, clean), late)]
    assert [each.settings for each in sizes[:1]] == [each.settings for each in sizes[1:]]
    assert sizes[1].numbers == pytest.approx([share * number for number in sizes[0].numbers])


def test_the_window_ends() -> None:
    """In mode `denoised` nothing moves after the window, and nothing moves after steps."""
    guide = GroupGuide([GuidedGroup(slice(0, 3), PRESET, 1.0, entries_of(PRESET))])
    assert [bool(guide.before(step_at(index, latents_of(index)))) for index in range(10)] == [True] * 5 + [
        False
    ] * 5
    assert guide.after(step_at(9, latents_of(0)), latents_of(0)) == []


def test_paper_moves_after_every_tenth_step() -> None:
    """In mode `paper` only the noisy latents after the 10th and 20th step move, by η‖z‖."""
    guide = GroupGuide([GuidedGroup(slice(0, 3), PAPER, 1.0, entries_of(PAPER))])
    noisy = latents_of(1)
    moved = [index for index in range(25) if guide.after(step_at(index, noisy, 25), noisy)]
    assert moved == [9, 19]
    assert guide.before(step_at(0, noisy, 25)) == []
    (move,) = guide.after(step_at(9, noisy, 25), noisy)
    torch.testing.assert_close(move.delta.flatten(1).norm(dim=1), 0.03 * noisy.flatten(1).norm(dim=1))


def test_released_moves_before_the_first_of_every_ten_steps() -> None:
    """In mode `released` the noisy latents before the 1st, 11th and 21st step move, as published, by η‖z‖."""
    guide = GroupGuide([GuidedGroup(slice(0, 3), RELEASED, 1.0, entries_of(RELEASED))])
    noisy = latents_of(1)
    moved = [index for index in range(25) if guide.displace(step_at(index, noisy, 25))]
    assert moved == [0, 10, 20]
    assert guide.before(step_at(0, noisy, 25)) == guide.after(step_at(9, noisy, 25), noisy) == []
    (move,) = guide.displace(step_at(10, noisy, 25))
    torch.testing.assert_close(move.delta.flatten(1).norm(dim=1), 0.03 * noisy.flatten(1).norm(dim=1))


@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
@pytest.mark.parametrize("has_memory", [True, False])
@pytest.mark.parametrize("weights", [(0.5,), (-0.5,), (0.5, -1.0), (-1.0, 0.5)])
def test_released_takes_references(weights: tuple[float, ...], kernel: str, *, has_memory: bool) -> None:
    """Each of weight w is the published code's reference with β = −w, of whatever memory; all of them act."""
    preset = replace(RELEASED, kernel=kernel)
    memory = entries_of(preset) if has_memory else None
    references = tuple(Reference(entries_of(preset, 70 + number), w) for number, w in enumerate(weights))
    group = GuidedGroup(slice(0, 3), preset, 1.0, memory, references=references)
    noisy, one = latents_of(1), torch.ones(1)
    (move,) = GroupGuide([group]).displace(step_at(0, noisy, 25))
    expected = released_push(
        noisy,
        one,
        Past.of(memory if memory is not None else Entries(torch.zeros(0, 64), torch.zeros(0)), one),
        ReleasedScore.of(preset),
        eta=preset.eta,
        references=[(Past.of(entries, one), -w) for entries, w in references],
    )
    assert torch.equal(move.delta, expected.delta)
    assert expected.relative.tolist() == pytest.approx([preset.eta] * 3)


def test_released_without_memory_and_references_moves_nothing() -> None:
    """A first image has nothing to differ from."""
    guide = GroupGuide([GuidedGroup(slice(0, 3), RELEASED, 1.0, None)])
    assert guide.displace(step_at(0, latents_of(1))) == []


def test_released_knows_no_entry_that_attracts() -> None:
    """A negative weight, which the published score cannot count, is refused with what to do."""
    entries = replace(entries_of(RELEASED), weights=torch.tensor([1.0, -1.0]))
    guide = GroupGuide([GuidedGroup(slice(0, 3), RELEASED, 1.0, entries)])
    with pytest.raises(InvalidArgument, match="as a reference"):
        guide.displace(step_at(0, latents_of(1)))


@pytest.mark.parametrize("strength", [0.0, 0.7])
@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_references_move_besides_the_memory(strength: float, weight: float) -> None:
    """In mode `denoised` the reference's move is its own, the same at every strength, within its own window."""
    preset = replace(PRESET, reference_window=0.3)
    reference = Reference(entries_of(preset, 70), weight)
    memory = None if strength == 0 else entries_of(preset)
    group = GuidedGroup(slice(0, 2), preset, strength, memory, references=(reference,))
    clean = latents_of(0)
    found = GroupGuide([group]).before(step_at(0, clean))
    expected = references_push(
        clean[:2], [reference], preset, eta=preset.reference_eta, limit=torch.full((2,), 100.0)
    )
    assert torch.equal(found[-1].delta, expected.delta)
    assert len(found) == (1 if strength == 0 else 2)
    if strength > 0:
        plain = GroupGuide([replace(group, references=())]).before(step_at(0, clean))
        assert torch.equal(found[0].delta, plain[0].delta)
    at_each = [len(GroupGuide([group]).before(step_at(index, clean))) for index in range(10)]
    within = [index < 3 for index in range(10)]
    assert at_each == [int(active) + (strength > 0) * (index < 5) for index, active in enumerate(within)]


def test_a_reference_of_weight_zero_moves_nothing() -> None:
    """At strength 0 there is no move at all, so the run stays stock to the bit."""
    group = GuidedGroup(slice(0, 3), PRESET, 0.0, None, references=(Reference(entries_of(PRESET), 0.0),))
    assert GroupGuide([group]).before(step_at(0, latents_of(0))) == []


def test_released_takes_a_reference_that_is_blind_to_prompts() -> None:
    """Beside a memory that knows prompts, its entries count as of the prompt that is asked for."""
    asked, blind = torch.tensor([1.0, 0.0]), entries_of(RELEASED, 70)
    entries = replace(entries_of(RELEASED), prompts=Prompts(asked, torch.eye(2)))
    told = replace(blind, prompts=Prompts(asked, asked.expand(2, -1)))
    deltas = []
    for other in (blind, told):
        group = GuidedGroup(slice(0, 3), RELEASED, 1.0, entries, references=(Reference(other, 0.5),))
        (move,) = GroupGuide([group]).displace(step_at(10, latents_of(1), 25))
        deltas.append(move.delta)
    assert torch.equal(*deltas)


def test_the_total_push_is_the_mean_and_is_bounded() -> None:
    """The push of an image is the mean over all steps of ‖δ‖/‖x̂0‖, and never above `max_push`."""
    for bound in (10.0, 0.07):
        preset = replace(PRESET, max_push=bound)
        guide = GroupGuide([GuidedGroup(slice(0, 3), preset, 1.0, entries_of(preset))])
        total = torch.zeros(3)
        for index in range(10):
            clean = latents_of(index)
            for move in guide.before(step_at(index, clean)):
                total[move.rows] += move.delta.flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
        guide.finish(latents_of(9), 10)
        torch.testing.assert_close(guide.runs[0].pushes, total / 10)
        if bound == 10.0:
            assert (guide.runs[0].pushes > 0.07).all()
        else:
            torch.testing.assert_close(guide.runs[0].pushes, torch.full((3,), bound))


def test_a_broken_run_leaves_no_trace() -> None:
    """After a run that was broken off, the next one's total starts at zero."""
    guide = GroupGuide([GuidedGroup(slice(0, 3), PRESET, 1.0, entries_of(PRESET))])
    guide.before(step_at(0, latents_of(0)))
    guide.before(step_at(1, latents_of(1)))
    fresh = GroupGuide(guide.groups)
    for each in (guide, fresh):
        for index in range(10):
            step = step_at(index, latents_of(index))
            each.displace(step)
            each.before(step)
        each.finish(latents_of(9), 10)
    assert torch.equal(guide.runs[0].pushes, fresh.runs[0].pushes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_latents_are_an_error(value: float) -> None:
    """NaN or infinity in the final latents is an error that says what to try."""
    latents = latents_of(0)
    latents[1, 0, 0, 0] = value
    with pytest.raises(NonFiniteLatents, match="float32"):
        GroupGuide([]).finish(latents, 10)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(clip_sample=False),
        diffusers.PNDMScheduler(skip_prk_steps=True),
        diffusers.EulerDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
@pytest.mark.parametrize("preset", [PAPER, RELEASED], ids=["paper", "released"])
def test_moves_of_noisy_latents_last(scheduler: object, preset: DiversityPreset) -> None:
    """In the modes `paper` and `released` a push is still there after the next step: no solver takes it back.

    With noise predictions that do not depend on the sample, the exact solution keeps a difference of z/α, which is
    `of_sample` · z; multistep solvers extrapolate it further.
    """
    preset = replace(preset, interval=3, eta=0.3)
    extra_calls = 1 if isinstance(scheduler, diffusers.PNDMScheduler) else 0  # its first step takes two
    trails, scales = [], []
    for strength in (0.0, 1.0):
        guide = GroupGuide([GuidedGroup(slice(0, 3), preset, strength, entries_of(preset))])
        scheduler.set_timesteps(20)
        adapter = adapter_for(scheduler)
        sample = latents_of(0) * getattr(scheduler, "init_noise_sigma", 1.0)
        trail = []
        with guided_steps(SimpleNamespace(scheduler=scheduler), guide):
            for number, timestep in enumerate(scheduler.timesteps):
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(sample, timestep)
                scales.append(adapter.prediction(adapter.step_index(timestep), timestep).of_sample)
                sample = scheduler.step(0.1 * latents_of(number), timestep, sample, return_dict=False)[0]
                trail.append(sample)
        trails.append(trail)
    difference = [(pushed - stock).flatten() for stock, pushed in zip(*trails, strict=True)]
    first = next(call for call, moved in enumerate(difference) if moved.norm() > 0)
    assert first == (0 if preset.mode == "released" else 2 + extra_calls)
    first += extra_calls if preset.mode == "released" else 0  # where its first step ends
    after, later = difference[first], difference[first + 1]
    assert scales[first + 2] * later.norm() > 0.95 * scales[first + 1] * after.norm()
    assert torch.nn.functional.cosine_similarity(after, later, dim=0) > 0.99


def test_pushes_are_added_up_in_single_precision() -> None:
    """Whatever torch's default dtype is."""
    totals = []
    for dtype in (torch.float32, torch.float16):
        clean, entries = latents_of(0), entries_of(PRESET)
        torch.set_default_dtype(dtype)
        try:
            guide = GroupGuide([GuidedGroup(slice(0, 3), PRESET, 0.7, entries)])
            guide.before(step_at(0, clean))
            guide.finish(clean, 10)
        finally:
            torch.set_default_dtype(torch.float32)
        totals.append(guide.runs[0].pushes)
    assert totals[1].dtype == torch.float32
    assert torch.equal(*totals)
