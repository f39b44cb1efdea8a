"""What guidance adds to a trajectory of a denoiser of SDXL's size, random weights, at batch 1 with classifier-free guidance.

Stock and guided trajectories of 30 steps of Euler's, seam, graphs and their recording included, take turns; the clock is the
host's, from a device at rest to a device at rest. Part of `python benchmarks/cost.py --device cuda --unet`.
"""

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
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


ARMS = (
    Arm("stock"),
    Arm("sdxl, a fifth of the steps", PRESETS["sdxl"], 10_000),
    Arm("every step", replace(PRESETS["sdxl"], relax=1.0), 100),
    Arm("every step", replace(PRESETS["sdxl"], relax=1.0), 10_000),
)


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


def unet_rows(repeats: int) -> list[dict[str, Any]]:
    """A row for each arm, eager and compiled: the median time of a step, and what it has beyond the stock one."""
    with torch.device("cuda"):
        unet = diffusers.UNet2DConditionModel(**UNET).half().eval().requires_grad_(requires_grad=False)
    rows: list[dict[str, Any]] = []
    print("\n| mode | guidance | entries | a step, ms | added, ms | added |\n|---|---|---|---|---|---|")
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            unet.forward = torch.compile(unet.forward, mode="default")
        times = _taking_turns(_Trajectory(unet), repeats)
        stock_ms = statistics.median(times[0])
        for arm, taken in zip(ARMS, times, strict=True):
            step_ms = statistics.median(taken)
            added = [later - stock for later, stock in zip(taken, times[0], strict=True)]
            row = {"mode": mode, "arm": arm.name, "entries": arm.num_entries, "step_ms": step_ms}
            rows.append(row | {"added_ms": statistics.median(added), "all_ms": taken})
            print(
                f"| {mode} | {arm.name} | {arm.num_entries:,} | {step_ms:.2f} | {statistics.median(added):.3f} "
                f"| {100 * statistics.median(added) / stock_ms:.2f} % |",
                flush=True,
            )
    return rows


def _taking_turns(trajectory: "_Trajectory", repeats: int) -> list[list[float]]:
    """Milliseconds a step of each arm's trajectories; one of each before them does not count."""
    times: list[list[float]] = [[] for _ in ARMS]
    for turn in range(repeats + 1):
        for arm, taken in zip(ARMS, times, strict=True):
            found_ms = trajectory.step_ms(arm)
            if turn > 0:
                taken.append(found_ms)
    return times


class _Trajectory:
    """One image of the denoiser, again and again, as a worker would make it: one recorder for all."""

    def __init__(self, unet: nn.Module) -> None:
        generator = torch.Generator("cuda").manual_seed(1)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, device="cuda", generator=generator).half()

        self._unet, self._recorder = unet, StepRecorder()
        self._latents, self._prompt = drawn(1, CHANNELS, SIDE, SIDE), drawn(2, 77, 2048)
        self._added = {"text_embeds": drawn(2, 1280), "time_ids": torch.ones(2, 6, device="cuda").half()}
        self._entries = {
            arm: entries_of(arm.preset, arm.num_entries, "cuda") for arm in ARMS if arm.preset is not None
        }

    def step_ms(self, arm: Arm) -> float:
        """The time of a whole trajectory over its steps."""
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.set_timesteps(NUM_STEPS, device="cuda")
        pipe = SimpleNamespace(scheduler=scheduler, unet=self._unet)
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

    def _denoise(self, pipe: Any) -> None:
        latents = self._latents * pipe.scheduler.init_noise_sigma
        for timestep in pipe.scheduler.timesteps:
            doubled = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            predicted = pipe.unet(
                doubled, timestep, self._prompt, added_cond_kwargs=self._added, return_dict=False
            )
            without, under = predicted[0].chunk(2)
            output = without + SCALE * (under - without)
            latents = pipe.scheduler.step(output, timestep, latents, return_dict=False)[0]
