"""A step's guidance as one launch: recorded in a run as a CUDA graph, once for each kind of step, and replayed.

A push is some hundred small kernels. Launched one by one they take a processor a millisecond or two, which a denoiser at
batch 1 does not hide; as a graph they take what the GPU needs for them, a tenth of that.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, runtime_checkable

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


class Ready(NamedTuple):
    """What a guide needs to be recorded in a step: `settings`, what its kernels are, and `numbers`, which they read."""

    settings: Hashable
    numbers: tuple[float, ...]


class StepRecorder:
    """Does the work of a step: as it comes, or on a CUDA device once in a run recorded, and then replayed.

    Recorded work is fixed but for what its tensors and numbers hold. So whoever asks gives besides these `settings`: all
    else that the work depends on within a run. Work of settings that this recorder has never met is done as it comes, so
    that what the device does once is done before anything is recorded. All three ways give the same bits: they read the
    same tensors by the same kernels. Where recording fails all is done as it comes from then on, with a warning.
    One thread at a time.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        """`recorder` in place of CUDA graphs, on whatever device."""
        self._recorder = recorder
        self._is_given = recorder is not None
        self._tensors: tuple[Tensor, ...] = ()
        self._numbers = torch.empty(0)
        self._met: set[Hashable] = set()
        self._replays: dict[Hashable, Replay] = {}

    def records(self, device: torch.device) -> bool:
        """Whether work on this device is recorded."""
        return self._is_given or device.type == "cuda"

    def forget(self) -> None:
        """A run is over, or another begins: what was recorded is of no use."""
        self._replays.clear()

    def do(
        self, work: Work, settings: Hashable, tensors: Sequence[Tensor], numbers: Sequence[float]
    ) -> Tensor:
        """The work's result for these tensors and numbers. The tensors are copied: O(their numbers)."""
        self._hold(tensors, numbers)
        if settings not in self._met:
            self._met.add(settings)
            return self._now(work)
        if settings not in self._replays:
            self._replays[settings] = self._recorded(work, tensors[0].device)
        return self._replays[settings]().clone()

    def _now(self, work: Work) -> Tensor:
        return work(self._tensors, self._numbers.unbind())

    def _hold(self, tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
        """The tensors and numbers at the places that recordings read."""
        if _forms(tensors) != _forms(self._tensors) or len(numbers) != len(self._numbers):
            self._replays.clear()
            self._met.clear()
            with torch.inference_mode(
                mode=False
            ):  # a later call may come without it, and must write here too
                self._tensors = tuple(
                    torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in tensors
                )
                self._numbers = torch.empty(len(numbers), dtype=torch.float32, device=tensors[0].device)
        for held, tensor in zip(self._tensors, tensors, strict=True):
            held.copy_(tensor)
        given = torch.tensor(numbers, dtype=torch.float32, pin_memory=self._numbers.is_cuda)
        self._numbers.copy_(given, non_blocking=True)

    def _recorded(self, work: Work, device: torch.device) -> Replay:
        try:
            if self._recorder is None:
                self._recorder = _CudaGraphs(device)
            return self._recorder(lambda: self._now(work))
        except RuntimeError as error:
            warnings.warn(f"guidance is launched kernel by kernel: {error}", stacklevel=2)
            self._recorder = _as_it_comes
            return lambda: self._now(work)


def _as_it_comes(work: Callable[[], Tensor]) -> Replay:
    return work


class _CudaGraphs:
    """Records on a stream of its own, into memory that its recordings share, as one replays at a time.

    The memory is the pool of a graph that is kept, so that it outlives the recordings of a run and serves those of the
    next.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(
            self._stream
        ):  # cuBLAS keeps a workspace for each stream: not one out of the pool
            row = torch.ones(1, 16, dtype=torch.float16, device=device)
            torch.mm(row, row.mT, out_dtype=torch.float32)
            torch.mm(row.float(), row.float().mT)
        self._kept = torch.cuda.CUDAGraph()
        self._capture(self._kept, row.clone)

    def __call__(self, work: Callable[[], Tensor]) -> Replay:
        """A graph of the work on the current device."""
        graph = torch.cuda.CUDAGraph()
        result = self._capture(graph, work, pool=self._kept.pool())

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Callable[[], Tensor], **pool: Any) -> Tensor:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(capture_error_mode="thread_local", **pool)
            try:
                result = work()
            except BaseException:
                with suppress(RuntimeError):  # that recording failed is no news then
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return result


def _forms(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
