"""Training that stops and goes on."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sparke_engine.demo.checkpoint import TrainingState


def _state() -> TrainingState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    return TrainingState.create("small", model, rate=1e-2, ema_decay=0.9)


def _train(state: TrainingState, last_step: int) -> None:
    while state.step < last_step:
        inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(state.step))
        state.set_rate(1e-2 / (1 + state.step))
        state.update((state.model(inputs) - inputs.sum(1, keepdim=True)).square().mean())


def _tensors(state: TrainingState) -> list[Tensor]:
    moments = [
        state.optimiser.state[parameter][key]
        for parameter in state.model.parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    ]
    return [*state.model.parameters(), *state.average, *moments]


def test_a_run_that_was_cut_is_the_run_that_was_not(tmp_path: Path) -> None:
    """Seven steps at a stretch, and four and three with a file between them: equal to the bit, optimiser and average too."""
    whole, first, second = _state(), _state(), _state()
    _train(whole, 7)
    _train(first, 4)
    first.save(tmp_path / "folder" / "small.safetensors")
    second.load_if_there(tmp_path / "folder" / "small.safetensors")
    assert (second.step, second.is_finished) == (4, False)
    _train(second, 7)
    for expected, found in zip(_tensors(whole), _tensors(second), strict=True):
        assert torch.equal(expected, found)


def test_where_nothing_is_saved_a_run_begins(tmp_path: Path) -> None:
    """A missing file leaves a fresh state as it is; a finished run says so."""
    state = _state()
    state.load_if_there(tmp_path / "none.safetensors")
    assert (state.step, state.is_finished) == (0, False)
    _train(state, 1)
    state.is_finished = True
    state.save(tmp_path / "done.safetensors")
    other = _state()
    other.load_if_there(tmp_path / "done.safetensors")
    assert other.is_finished


def test_the_average_follows_slowly() -> None:
    """With a warm-up, ā ← ā + (1 − d)(w − ā), d = min(decay, (1 + step)/(10 + step))."""
    state = _state()
    average = [parameter.detach().clone() for parameter in state.model.parameters()]
    for step in (1, 2, 3):
        _train(state, step)
        weight = 1 - min(0.9, (1 + step) / (10 + step))
        average = [
            a + weight * (p.detach() - a) for a, p in zip(average, state.model.parameters(), strict=True)
        ]
    torch.testing.assert_close(state.average, average)
    state.copy_average_into(state.model)
    torch.testing.assert_close([p.detach() for p in state.model.parameters()], average)
