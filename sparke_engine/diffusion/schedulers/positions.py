"""Where in `scheduler.timesteps` the coming call of `step` stands, by what the scheduler itself keeps."""

from typing import Any

from torch import Tensor

from sparke_engine.errors import UnsupportedScheduler


def by_timestep(scheduler: Any, timestep: Any, expected: int | None) -> int:
    """By the value, for schedulers that count nothing. Of equal timesteps the expected one, else the first."""
    timesteps = scheduler.timesteps
    if expected is not None and expected < len(timesteps) and _is_same(timesteps[expected], timestep):
        return expected
    places = (timesteps == timestep).nonzero()
    if len(places) == 0:
        raise UnsupportedScheduler(f"timestep {timestep} is not one of the scheduler's {timesteps.tolist()}")
    return int(places[0].item())


def _is_same(known: Tensor, timestep: Any) -> bool:
    """Whether they are equal. Pipelines pass the scheduler's own numbers, which are told by their place, without waiting."""
    if isinstance(timestep, Tensor) and (timestep.data_ptr(), timestep.dtype) == (
        known.data_ptr(),
        known.dtype,
    ):
        return True
    return bool(known == timestep)


def by_counter(scheduler: Any, timestep: Any, expected: int | None) -> int:
    """PNDM counts the calls of a run, wherever it began, and meets timesteps more than once."""
    if scheduler.counter > 0 and expected is not None:
        return expected
    return by_timestep(scheduler, timestep, None)


def by_step_index(scheduler: Any, timestep: Any, expected: int | None) -> int:
    """By the scheduler's own index, else where the pipeline says that it begins, else as it would look itself."""
    del expected
    if scheduler.step_index is not None:
        return int(scheduler.step_index)
    if scheduler.begin_index is not None:
        return int(scheduler.begin_index)
    if isinstance(timestep, Tensor):
        timestep = timestep.to(scheduler.timesteps.device)
    return int(scheduler.index_for_timestep(timestep))
