"""What guidance adds to a trajectory of a denoiser of SDXL's size, random weights, at batch 1 with classifier-free guidance.

    python benchmarks/unet_cost.py                              on a GPU; compiling takes some three minutes
    python benchmarks/unet_cost.py --modes eager                without the compiled denoiser

Three clocks, all the host's, from a device at rest to a device at rest: one call of the denoiser; trajectories without a
denoiser (its last output stands for it), where what guidance adds, seam and recording included, cannot hide behind
anything; and whole trajectories. Arms take turns.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.recording import StepRecorder
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.guidance.presets import PRESETS, DiversityPreset
from sparke_engine.guidance.push import Entries

SIDE, CHANNELS = 128, 4  # latents of SDXL at 1024 px
NUM_STEPS, SCALE = 30, 7.5
UNET = {
    "sample_size": SIDE,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


@dataclass(frozen=True)
class Arm:
    """A way to make the trajectory: without guidance, or against a memory of so many entries."""

    name: str
    preset: DiversityPreset | None = None
    num_entries: int = 0


STOCK = Arm("stock")
USUAL = Arm("sdxl: a fifth of the steps", PRESETS["sdxl"], 10_000)
ALL_STEPS = replace(PRESETS["sdxl"], relax=1.0)
MOST = Arm("relaxed in every step", ALL_STEPS, 10_000)
_FORWARDS: dict[str, Callable[[Any], Any]] = {"eager": lambda forward: forward, "compiled": torch.compile}
MODES = tuple(_FORWARDS)
ARMS = (STOCK, USUAL, Arm("relaxed in every step", ALL_STEPS, 100), MOST)


def entries_of(preset: DiversityPreset, num_entries: int, device: str) -> Entries:
    """Random unit features in half precision, as a memory keeps them, and prompt weights."""
    dim = preset.feature_map.dim(CHANNELS, SIDE, SIDE)
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.empty(num_entries, dim, dtype=torch.float16, device=device)
    for part in torch.split(rows, 500):
        drawn = torch.randn(part.shape, generator=generator, device=device)
        part.copy_(drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True))
    weights = torch.rand(num_entries, generator=generator, device=device)
    return Entries(rows, weights).to(torch.device(device))


def main() -> None:
    """Prints each figure as it comes, and writes them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns of whole trajectories; a call has four times as many"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cost"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    where = f"{platform.node()}, {torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(f"{where}\n")
    with torch.device("cuda"):
        unet = diffusers.UNet2DConditionModel(**UNET).half().eval().requires_grad_(requires_grad=False)
    trajectory = _Trajectory(unet)
    added_ms = _without_denoiser(trajectory, 5 * asked.repeats)
    print(
        "| denoiser | a call, ms | guidance | entries | added a step, ms | of the call |\n|---|---|---|---|---|---|",
        flush=True,
    )
    added = [{"arm": arm.name, "entries": arm.num_entries, "added_ms": added_ms[arm]} for arm in ARMS]
    report: dict[str, Any] = {"where": where, "added": added, "modes": []}
    plain = unet.forward
    for mode in asked.modes:
        unet.forward = _FORWARDS[mode](plain)
        report["modes"].append(_mode_row(mode, trajectory, added_ms, asked.repeats))
        (asked.out / "unet-cost.json").write_text(json.dumps(report, indent=1))


def _mode_row(
    mode: str, trajectory: "_Trajectory", added_ms: dict[Arm, float], repeats: int
) -> dict[str, Any]:
    """A call of the denoiser, and whole trajectories, each turn printed as it comes."""
    trajectory.call_ms()  # compiles
    call_ms = statistics.median(trajectory.call_ms() for _ in range(4 * repeats))
    for arm in ARMS[1:]:
        share = 100 * added_ms[arm] / call_ms
        print(
            f"| {mode} | {call_ms:.2f} | {arm.name} | {arm.num_entries:,} | {added_ms[arm]:.3f} | {share:.2f} % |",
            flush=True,
        )
    stock, guided = [], []
    for times in _turns((STOCK, MOST), trajectory.step_ms, repeats):
        stock.append(times[STOCK])
        guided.append(times[MOST])
        print(
            f"| {mode} | a whole step: {stock[-1]:.2f} | {MOST.name} | {MOST.num_entries:,} | "
            f"{guided[-1] - stock[-1]:+.2f} | {100 * (guided[-1] / stock[-1] - 1):+.2f} % |",
            flush=True,
        )
    return {"mode": mode, "call_ms": call_ms, "stock_ms": stock, "guided_ms": guided}


def _without_denoiser(trajectory: "_Trajectory", repeats: int) -> dict[Arm, float]:
    """Milliseconds that a step of each arm takes beyond the stock one, medians of the differences in each turn."""
    turns = list(_turns(ARMS, trajectory.bare_step_ms, repeats))
    return {arm: statistics.median(times[arm] - times[STOCK] for times in turns) for arm in ARMS}


def _turns(arms: tuple[Arm, ...], clock: Callable[[Arm], float], repeats: int) -> Iterator[dict[Arm, float]]:
    """What the clock says of each arm, turn by turn; one turn before them does not count."""
    for turn in range(repeats + 1):
        times = {arm: clock(arm) for arm in arms}
        if turn > 0:
            yield times


class _Trajectory:
    """One image of the denoiser, again and again, as a worker would make it: one recorder for all."""

    def __init__(self, unet: nn.Module) -> None:
        generator = torch.Generator("cuda").manual_seed(1)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, device="cuda", generator=generator).half()

        self._unet, self._recorder = unet, StepRecorder()
        self._latents, self._prompt = drawn(1, CHANNELS, SIDE, SIDE), drawn(2, 77, 2048)
        self._added = {"text_embeds": drawn(2, 1280), "time_ids": torch.ones(2, 6, device="cuda").half()}
        self._timestep = _scheduler().timesteps[0]  # of another dtype it would be compiled for twice
        self._bare = _Said(drawn(2, CHANNELS, SIDE, SIDE))
        self._entries = {
            arm: entries_of(arm.preset, arm.num_entries, "cuda") for arm in ARMS if arm.preset is not None
        }

    def call_ms(self) -> float:
        """One call of the denoiser."""
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        with torch.no_grad():
            self._predicted(self._unet, torch.cat([self._latents] * 2), self._timestep)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start_s)

    def step_ms(self, arm: Arm) -> float:
        """A whole trajectory's time over its steps."""
        return self._trajectory_ms(arm, self._unet)

    def bare_step_ms(self, arm: Arm) -> float:
        """The same without a denoiser."""
        return self._trajectory_ms(arm, self._bare)

    def _trajectory_ms(self, arm: Arm, denoiser: nn.Module) -> float:
        pipe = SimpleNamespace(scheduler=_scheduler(), unet=denoiser)
        guided: AbstractContextManager[object] = nullcontext()
        if arm.preset is not None:
            group = GuidedGroup(slice(0, 1), arm.preset, 1.0, self._entries[arm])
            guided = guided_steps(pipe, GroupGuide([group]), recorder=self._recorder)
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        with guided, torch.no_grad():
            self._denoise(pipe)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start_s) / NUM_STEPS

    def _predicted(self, denoiser: nn.Module, doubled: Tensor, timestep: Tensor) -> Tensor:
        predicted: Tensor = denoiser(
            doubled, timestep, self._prompt, added_cond_kwargs=self._added, return_dict=False
        )[0]
        return predicted

    def _denoise(self, pipe: Any) -> None:
        latents = self._latents * pipe.scheduler.init_noise_sigma
        for timestep in pipe.scheduler.timesteps:
            doubled = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            without, under = self._predicted(pipe.unet, doubled, timestep).chunk(2)
            output = without + SCALE * (under - without)
            latents = pipe.scheduler.step(output, timestep, latents, return_dict=False)[0]


def _scheduler() -> diffusers.EulerDiscreteScheduler:
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(NUM_STEPS, device="cuda")
    return scheduler


class _Said(nn.Module):
    """Stands for a denoiser that has predicted."""

    def __init__(self, predicted: Tensor) -> None:
        super().__init__()
        self.predicted = predicted

    def forward(self, *_given: Any, **_named: Any) -> tuple[Tensor]:
        """The same each time."""
        return (self.predicted,)


if __name__ == "__main__":
    main()
