"""What one guided step costs, against the size of the memory and of a feature: time, floor, temporary bytes.

    python benchmarks/cost.py --device cpu
    python benchmarks/cost.py --device cuda

On a GPU: CUDA events, eager, replayed from a CUDA graph, and compiled before it is captured, beside the bandwidth floor, which is two
readings of the entries at the rate at which this device copies. The rival is what the formula costs by autograd through
the whole Gram matrix. What a step of a denoiser of SDXL's size takes beside it is in `unet_cost.py`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from unet_cost import CHANNELS, SIDE, entries_of

from sparke_engine.guidance.denoised import Extrapolation, denoised_push
from sparke_engine.guidance.presets import PRESETS, DiversityPreset
from sparke_engine.guidance.push import Entries

SIZES = (100, 1_000, 4_000, 10_000)
POOLED = replace(PRESETS["sdxl"], relax=1.0)
FULL = replace(POOLED, grid=None)
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One setting. Times in milliseconds, None where it does not apply or does not fit."""

    features: str
    entries: int
    dim: int
    eager_ms: float
    graph_ms: float | None
    compiled_ms: float | None
    floor_ms: float
    temporary_mib: float | None
    autograd_ms: float | None
    autograd_gib: float | None


class Meter:
    """Times calls on one device, in medians."""

    def __init__(self, device: str, repeats: int) -> None:
        self.is_cuda, self._repeats = device == "cuda", repeats

    def time_ms(self, call: Callable[[], object]) -> float:
        """The median over the repeats, after three calls that do not count."""
        for _ in range(3):
            call()
        return statistics.median(self._once_ms(call) for _ in range(self._repeats))

    def _once_ms(self, call: Callable[[], object]) -> float:
        if not self.is_cuda:
            start_s = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - start_s)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop))

    def temporary_bytes(self, call: Callable[[], object]) -> int | None:
        """The most that a call holds beyond what is there before it."""
        if not self.is_cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("runs/cost"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    meter = Meter(asked.device, asked.repeats)
    name = torch.cuda.get_device_name() if meter.is_cuda else f"{torch.get_num_threads()} CPU threads"
    rate = copy_rate(asked.device, meter)
    print(f"{platform.node()}, {name}, torch {torch.__version__}; copies at {rate / 1e12:.2f} TB/s\n")
    print(
        "| features | entries | d | eager, ms | CUDA graph, ms | compiled too, ms | floor, ms | temporary, MiB "
        "| by autograd, ms | and GiB |\n|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    rows = []
    for preset, title in ((POOLED, "pooled 16×16"), (FULL, "whole latents")):
        for entries in asked.sizes:
            rows.append(step_row(preset, title, entries, meter=meter, rate=rate))
            print(_line(rows[-1]), flush=True)
    report = {"device": name, "copy_rate": rate, "rows": [asdict(row) for row in rows]}
    (asked.out / f"cost-{asked.device}.json").write_text(json.dumps(report, indent=1))


def copy_rate(device: str, meter: Meter) -> float:
    """Bytes read and written a second by a copy of half a GiB."""
    source = torch.empty(GIB // 4, dtype=torch.float16, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / (meter.time_ms(lambda: target.copy_(source)) / 1000)


def step_row(preset: DiversityPreset, title: str, num_entries: int, *, meter: Meter, rate: float) -> Row:
    """One image's push, from its two predictions to δ."""
    device = "cuda" if meter.is_cuda else "cpu"
    entries = entries_of(preset, num_entries, device)
    clean, prompted = (
        torch.randn(1, CHANNELS, SIDE, SIDE, device=device, generator=torch.Generator(device).manual_seed(i))
        for i in (1, 2)
    )
    limit, scale = torch.ones(1, device=device), torch.full((1,), 7.5, device=device)

    def push() -> Tensor:
        extrapolation = Extrapolation(prompted, scale)
        return denoised_push(
            clean, entries, preset, eta=1.0, limit=limit, extrapolation=extrapolation, relax=0.5
        ).delta

    temporary = meter.temporary_bytes(push)
    autograd_ms, autograd_gib = _autograd(clean, entries, preset, meter)
    dim = preset.feature_map.dim(CHANNELS, SIDE, SIDE)
    return Row(
        title,
        num_entries,
        dim,
        meter.time_ms(push),
        meter.time_ms(_graph(push)) if meter.is_cuda else None,
        meter.time_ms(_graph(torch.compile(push, dynamic=False))) if meter.is_cuda else None,
        1000 * 2 * num_entries * dim * 2 / rate,
        None if temporary is None else temporary / 2**20,
        autograd_ms,
        autograd_gib,
    )


def _graph(call: Callable[[], Tensor]) -> Callable[[], None]:
    """The call, captured; each call of what is returned replays it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _autograd(
    clean: Tensor, entries: Entries, preset: DiversityPreset, meter: Meter
) -> tuple[float | None, float | None]:
    """Σ_ij k² over entries and the moving latent, differentiated: the whole Gram matrix, in single precision."""
    kernel = preset.latent_kernel

    def gradient() -> Tensor:
        moving = clean.clone().requires_grad_()
        rows = torch.cat([entries.features.float(), preset.feature_map.feature(moving)])
        (found,) = torch.autograd.grad(kernel.gram(rows, rows).sum(), moving)
        return found

    try:
        held = meter.temporary_bytes(gradient)
        return meter.time_ms(gradient), None if held is None else held / GIB
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, None


def _line(row: Row) -> str:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        f"| {row.features} | {row.entries:,} | {row.dim:,} | {row.eager_ms:.3f} | {shown(row.graph_ms, '.3f')} "
        f"| {shown(row.compiled_ms, '.3f')} | {row.floor_ms:.3f} | {shown(row.temporary_mib, '.1f')} | {shown(row.autograd_ms, '.2f')} "
        f"| {shown(row.autograd_gib, '.2f')} |"
    )


if __name__ == "__main__":
    main()
