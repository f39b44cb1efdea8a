"""From calls of `step` to inference steps: some schedulers evaluate the model more than once for one step."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sparke_engine.diffusion.schedulers.registry import SchedulerAdapter


class Place(NamedTuple):
    """Where one call of `step` stands: at `position` of `scheduler.timesteps`, the `part`-th of `parts` calls for a step.

    Steps are counted from the first that the run takes: a run that starts in the middle starts at step 0.
    `leaves_noise`: the run stops before the scheduler's last timestep, and another goes on from its latents.
    """

    position: int
    step: int
    num_steps: int
    part: int = 0
    parts: int = 1
    leaves_noise: bool = False

    @property
    def starts_run(self) -> bool:
        """Whether this is the first call of a run."""
        return self.starts_step and self.step == 0

    @property
    def starts_step(self) -> bool:
        """Whether the step starts from the latents of this call."""
        return self.part == 0

    @property
    def ends_step(self) -> bool:
        """Whether the latents after this call are those after the step. Others are only there to be evaluated."""
        return self.part == self.parts - 1

    @property
    def ends_run(self) -> bool:
        """Whether these are the final latents."""
        return self.ends_step and self.step == self.num_steps - 1

    @property
    def share(self) -> float:
        """The call's share of the step."""
        return 1 / self.parts


class StepCounter:
    """Follows the runs of one scheduler, call by call.

    A run ends with the scheduler's last timestep, or after as many calls as `planned` says: pipelines that stop early
    tell the number of their timesteps before the first step. A new one begins after it, where the timesteps were set
    anew, or where a call is not at the place after the last one: so a run that was broken off leaves no trace. Of equal
    timesteps a run starts at the one from which the planned calls lead to the end.
    """

    def __init__(self, adapter: "SchedulerAdapter", planned: Callable[[], int | None]) -> None:
        self._adapter = adapter
        self._planned = planned
        self._timesteps: Any = None
        self._places: list[Place] = []

    def next(self, timestep: Any) -> Place:
        """The place of the coming call. Raises UnsupportedScheduler for a timestep that the scheduler does not have."""
        scheduler = self._adapter.scheduler
        continues = bool(self._places) and self._timesteps is scheduler.timesteps
        expected = self._places[0].position if continues else None
        position = self._adapter.step_index(timestep, expected)
        if position != expected:
            self._timesteps = scheduler.timesteps
            self._places = self._run_from(position, timestep)
        return self._places.pop(0)

    def _run_from(self, start: int, timestep: Any) -> list[Place]:
        adapter, planned = self._adapter, self._planned()
        if planned is not None and not adapter.tells_position:
            latest = adapter.num_calls - planned  # where a run of so many calls to the end starts
            if latest >= 0 and bool(adapter.scheduler.timesteps[latest] == timestep):
                start = latest
        num_calls = max(adapter.num_calls - start, 1)  # a call after the last is the scheduler's to refuse
        stops_early = planned is not None and 0 < planned < num_calls
        if planned is not None and stops_early:
            num_calls = planned
        groups = adapter.calls_of_steps(start, num_calls)
        parts = [(step, part) for step, size in enumerate(groups) for part in range(size)]
        return [
            Place(start + call, step, len(groups), part, groups[step], stops_early)
            for call, (step, part) in enumerate(parts)
        ]


def one_call_a_step(scheduler: Any, start: int, num_calls: int) -> tuple[int, ...]:
    """Most schedulers."""
    del scheduler, start
    return (1,) * num_calls


def two_calls_a_step(scheduler: Any, start: int, num_calls: int) -> tuple[int, ...]:
    """Schedulers of second order: at both ends of a step or in its middle, and once for the step to no noise."""
    del scheduler, start
    return (2,) * (num_calls // 2) + (1,) * (num_calls % 2)


def pndm_calls(scheduler: Any, start: int, num_calls: int) -> tuple[int, ...]:
    """PLMS takes its first step twice, the second time with the mean of both outputs; Runge-Kutta steps have four calls."""
    del start
    if not scheduler.config.skip_prk_steps:
        num_quads = min(len(scheduler.prk_timesteps), num_calls) // 4
        return (4,) * num_quads + (1,) * (num_calls - 4 * num_quads)
    return (2,) + (1,) * (num_calls - 2) if num_calls > 1 else (1,)


def singlestep_calls(scheduler: Any, start: int, num_calls: int) -> tuple[int, ...]:
    """DPM++ single-step goes on from the sample of the last call of order 1, and has then evaluated on the way."""
    orders = [
        min(scheduler.order_list[start + call], call + 1, scheduler.config.solver_order)
        for call in range(num_calls)
    ]
    starts = [call for call, order in enumerate(orders) if order == 1]
    return tuple(stop - begin for begin, stop in zip(starts, [*starts[1:], num_calls], strict=True))
