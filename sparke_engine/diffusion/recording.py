"""A step's guidance as one launch: recorded once in a run as a CUDA graph, replayed in every step after.

A push is some hundred small kernels. Launched one by one they take a processor a millisecond or two, which a denoiser at
batch 1 does not hide; as a graph they take what the GPU needs for them, a tenth of that.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Number = float | Tensor  # a plain number, or one on the device that a recording reads anew
Work = Callable[[Sequence[Tensor], Sequence[Number]], Tensor]
Replay = Callable[[], Tensor]


@runtime_checkable
class Recorder(Protocol):
    """What records: it calls the work once, whose operations need not happen, and gives what makes them happen."""

    def __call__(self, work: Callable[[], Tensor]) -> Replay:
        """What does the work's operations on the same tensors and returns its result, which the next call overwrites."""


class StepRecorder:
    """Does the work of a step: as it comes, and on a CUDA device from the second time in a run by replaying it.

    Recorded work is fixed but for the numbers in its tensors. So whoever asks gives, besides tensors and plain numbers,
    `settings`: all else that the work depends on within a run. Work that was done as it comes, recorded, or replayed
    gives the same bits: it reads the same tensors by the same kernels. What cannot be recorded is done as it comes,
    with a warning. One thread at a time.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        """`recorder` in place of CUDA graphs, on whatever device."""
        self._given = recorder
        self._graphs: _CudaGraphs | None = None
        self._tensors: tuple[Tensor, ...] = ()
        self._numbers: tuple[Tensor, ...] = ()
        self._replays: dict[Hashable, Replay | None] = {}

    def records(self, device: torch.device) -> bool:
        """Whether work on this device is recorded."""
        return self._given is not None or device.type == "cuda"

    def forget(self) -> None:
        """A run is over, or another begins: what was recorded is of no use."""
        self._replays.clear()

    def do(
        self, work: Work, settings: Hashable, tensors: Sequence[Tensor], numbers: Sequence[Number]
    ) -> Tensor:
        """The work's result for these tensors and numbers. The tensors are copied: O(their numbers)."""
        self._hold(tensors, numbers)
        if (
            settings not in self._replays
        ):  # also what allocates and copies once is done before anything is recorded
            self._replays[settings] = None
            return self._now(work)
        replay = self._replays[settings] or self._recorded(work, tensors[0].device)
        self._replays[settings] = replay
        return replay().clone()

    def _now(self, work: Work) -> Tensor:
        return work(self._tensors, self._numbers)

    def _hold(self, tensors: Sequence[Tensor], numbers: Sequence[Number]) -> None:
        """The tensors and numbers at the places that recordings read."""
        if _forms(tensors) != _forms(self._tensors) or len(numbers) != len(self._numbers):
            self.forget()
            self._tensors = tuple(
                torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors
            )
            self._numbers = tuple(tensors[0].new_empty((), dtype=torch.float32) for _ in numbers)
        for held, tensor in zip(self._tensors, tensors, strict=True):
            held.copy_(tensor)
        for held, number in zip(self._numbers, numbers, strict=True):
            held.fill_(number)

    def _recorded(self, work: Work, device: torch.device) -> Replay:
        recorder = self._given
        if recorder is None:
            self._graphs = self._graphs or _CudaGraphs(device)
            recorder = self._graphs
        try:
            return recorder(lambda: self._now(work))
        except RuntimeError as error:
            warnings.warn(f"guidance is launched kernel by kernel: {error}", stacklevel=2)
            return lambda: self._now(work)


class _CudaGraphs:
    """Records on a stream of its own, into memory that its recordings share, as one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.MemPool()
        with torch.cuda.stream(
            self._stream
        ):  # cuBLAS keeps a workspace for each stream: not one out of this pool
            row = torch.ones(1, 16, dtype=torch.float16, device=device)
            torch.mm(row, row.mT, out_dtype=torch.float32)
            torch.mm(row.float(), row.float().mT)

    def __call__(self, work: Callable[[], Tensor]) -> Replay:
        """A graph of the work on the current device."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            pool: Any = self._pool.id
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def _forms(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
