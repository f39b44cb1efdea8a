"""The time of a whole image against the size of the memory: does the ten-thousandth cost what the hundredth did?

    python benchmarks/memory_cost.py --device cuda --unet

A whole image: the neighbours are chosen from the memory, brought to the device, and the image is denoised under
guidance. Sizes take turns, in an order that turns round from one repeat to the next, so that drift and warmth of the
machine meet them all; each is compared with 100 entries within its repeat, and the median of these ratios has a 95 %
interval by bootstrap over repeats.

The demo model makes four images a request, the preset is the shipped one; its image is done in a tenth of a second, so
it shows the most of what a memory costs. `--unet` adds a pipeline with a denoiser of SDXL's size, random weights, four
images of 1024 px a request with classifier-free guidance, which keep a GPU busy where one image waits for its host; its
text encoders and decoder, which cost the same at any size, are left out, which is to its disadvantage. Entries are
random: what they hold does not change the work.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from cost import POOLED
from demo_arms import demo_engine
from figures import Interval
from scipy.stats import bootstrap
from torch import Tensor
from unet_cost import UNET

from sparke_engine import MemoryBank
from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.library import guided

SIZES, UNET_SIZES = (0, 100, 1000, 10_000), (0, 100, 10_000)
AGAINST = 100
RESAMPLES = 4000
PROMPT = "a star"


@dataclass(frozen=True)
class Row:
    """One size: the median time and the ratio to that of 100 entries in the same repeat."""

    model: str
    entries: int
    median_ms: float
    ratio: Interval


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--unet", action="store_true", help="also a denoiser of SDXL's size (needs a GPU)")
    parser.add_argument("--unet-images", type=int, default=4, help="images a request of that denoiser")
    parser.add_argument("--unet-repeats", type=int, default=10)
    parser.add_argument("--unet-steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/memory-cost"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    name = (
        torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    where = f"{platform.node()}, {name}, torch {torch.__version__}"
    print(where, flush=True)
    engine = demo_engine(asked.device, compiled=False)
    rows = rows_of("demo, images: 4", timed(demo_calls(engine, SIZES), asked.repeats))
    if asked.unet:
        with torch.device(asked.device):
            unet = diffusers.UNet2DConditionModel(**UNET)
        pipe = pipeline_of(unet)
        calls = unet_calls(pipe, UNET_SIZES, asked.unet_steps, images=asked.unet_images)
        rows += rows_of(f"SDXL's size, images: {asked.unet_images}", timed(calls, asked.unet_repeats))
    report = {"where": where, "repeats": asked.repeats, "rows": [asdict(row) for row in rows]}
    (asked.out / f"memory-cost-{asked.device}.json").write_text(json.dumps(report, indent=1))


def demo_calls(engine: PipelineEngine, sizes: Iterable[int]) -> dict[int, Callable[[], object]]:
    """For each size one request of four images of the demo model."""
    embedding = engine.embed_prompts([PROMPT])

    def request(bank: MemoryBank) -> object:
        known = bank.neighbours(embedding, engine.preset) if len(bank) else None
        group = SampleGroup(PROMPT, "", (1, 2, 3, 4), 0.5, known)
        return engine.generate([group], DenoisingPlan(64, 64, 12, 9.0), lambda _done, _all: None)

    return {size: partial(request, bank_of(size, engine.feature_dim, embedding)) for size in sizes}


def pipeline_of(unet: diffusers.UNet2DConditionModel) -> diffusers.StableDiffusionXLPipeline:
    """SDXL's pipeline around a denoiser, without encoders and decoder, in bfloat16, which random weights cannot overflow."""
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet.bfloat16().eval().requires_grad_(requires_grad=False),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    pipe.to(unet.device).set_progress_bar_config(disable=True)
    return pipe


def unet_calls(
    pipe: diffusers.StableDiffusionXLPipeline, sizes: Iterable[int], steps: int, *, images: int
) -> dict[int, Callable[[], object]]:
    """For each size one request, memory read and guided; the preset relaxes guidance in every step, the most work there is."""
    config = pipe.unet.config
    pooled_dim = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    generator, like = torch.Generator().manual_seed(0), next(pipe.unet.parameters())
    prompts = torch.randn(2, 1, 77, config.cross_attention_dim, generator=generator).to(like)
    pooled = torch.randn(2, 1, pooled_dim, generator=generator).to(like)
    asked = unit(pooled[0].float().cpu())
    feature_dim = POOLED.feature_map.dim(config.in_channels, config.sample_size, config.sample_size)

    def request(bank: MemoryBank) -> object:
        with guided(pipe, bank, asked[0], preset=POOLED, keeps_guidance=False):  # else an embedding keeps it
            made = pipe(
                prompt_embeds=prompts[0],
                negative_prompt_embeds=prompts[1],
                pooled_prompt_embeds=pooled[0],
                negative_pooled_prompt_embeds=pooled[1],
                num_images_per_prompt=images,
                num_inference_steps=steps,
                guidance_scale=7.5,
                output_type="latent",
                generator=[torch.Generator().manual_seed(seed) for seed in range(images)],
            )
        return made.images.float().cpu()

    return {size: partial(request, bank_of(size, feature_dim, asked)) for size in sizes}


def bank_of(size: int, feature_dim: int, embedding: Tensor) -> MemoryBank:
    """A memory of random features under one prompt [1,p]."""
    bank = MemoryBank()
    if size > 0:
        features = torch.randn(size, feature_dim, generator=torch.Generator().manual_seed(size))
        bank.append(features, embedding.expand(size, -1))
    return bank


def timed(calls: dict[int, Callable[[], object]], repeats: int) -> dict[int, list[float]]:
    """Milliseconds of each call in each repeat, after two repeats that do not count; the calls end on the host.

    Each repeat is told on standard error as it comes, so that a run that is cut short has said something.
    """
    times_ms: dict[int, list[float]] = {size: [] for size in calls}
    for number in range(-2, repeats):
        order = list(calls) if number % 2 == 0 else list(reversed(calls))
        for size in order:
            start_s = time.perf_counter()
            calls[size]()
            elapsed_ms = 1000 * (time.perf_counter() - start_s)
            if number >= 0:
                times_ms[size].append(elapsed_ms)
        told = ", ".join(f"{own[-1]:.1f} ms at {size:,}" for size, own in times_ms.items() if own)
        print(f"repeat {number}: {told or 'does not count'}", file=sys.stderr, flush=True)
    return times_ms


def rows_of(model: str, times_ms: dict[int, list[float]]) -> list[Row]:
    """A row for each size, printed."""
    print(f"\n| model | entries | whole request, ms, median | against {AGAINST} entries |\n|---|---|---|---|")
    rows = []
    for size, own in times_ms.items():
        ratio = median_of(np.array(own) / np.array(times_ms[AGAINST]))
        rows.append(Row(model, size, statistics.median(own), ratio))
        print(f"| {model} | {size:,} | {rows[-1].median_ms:.1f} | {ratio.text('.3f')} |", flush=True)
    return rows


def median_of(values: "np.ndarray[Any, np.dtype[np.float64]]") -> Interval:
    """The median and its 95 % interval by bootstrap."""
    point = float(np.median(values))
    if np.ptp(values) == 0:
        return Interval(point, point, point)
    found = bootstrap((values,), np.median, n_resamples=RESAMPLES, rng=0, method="percentile")
    low, high = found.confidence_interval
    return Interval(point, float(low), float(high))


if __name__ == "__main__":
    main()
