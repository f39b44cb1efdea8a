"""One tenant, one prompt, up to 10,000 images: how diverse are the newest 64, and what does a growing memory cost?

    python benchmarks/long_memory.py --images 10000 --workers 4

Arms: no memory; every near entry a neighbour; a hash-stratified sample of 1,024; and the nearest 256 only, which for one
prompt are the same oldest 256 for ever. The first 64 images are asked for four at a time, then more and more requests
go side by side, none of which sees the others. Progress is saved, and a run that was cut short goes on where it stood.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import torch
from demo_arms import as_pictures, demo_engine
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.core.kernels import CosineKernel
from sparke_engine.core.scores import vendi
from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import is_right, judge_pictures, sheet
from sparke_engine.demo.export import load_judge
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.types import Neighbours

mpl.use("Agg")
from matplotlib import pyplot as plt

PLAN = DenoisingPlan(64, 64, 12, 9.0)
IMAGES_A_REQUEST = 4
NEWEST = 64
MOST_REQUESTS_A_ROUND = 32
OLDEST = 256
SAMPLE = 1024
ARMS = ("no memory", "all", "sample of 1024", "nearest 256")
TIMED_SIZES = (0, 100, 1000, 10_000)


@dataclass(frozen=True)
class Run:
    """One arm of the benchmark."""

    arm: str
    prompt: str
    images: int
    strength: float
    device: str
    folder: Path

    @property
    def path(self) -> Path:
        """Where the arm's progress is."""
        return self.folder / f"{self.arm.replace(' ', '-')}.safetensors"


def main() -> None:
    """Makes the arms, then times images against the size of the memory, alone on the device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="a star")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/long-memory"))
    asked = parser.parse_args()
    folder = asked.out / f"{asked.prompt.replace(' ', '-')}-{asked.strength:g}"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [Run(arm, asked.prompt, asked.images, asked.strength, asked.device, folder) for arm in ARMS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.workers, mp_context=context) as pool:
        for done in pool.map(make, runs):
            print(done, flush=True)
    table, curves = report(runs)
    table += "\n\n" + time_table(runs[1], asked.repeats)
    where = f"{platform.node()}, {asked.device}; {asked.images} images of {asked.prompt!r}, strength {asked.strength:g}"
    (folder / "table.md").write_text(f"{where}\n\n{table}\n")
    (folder / "curves.json").write_text(json.dumps(curves, indent=1))
    draw(curves, folder / "long-memory.png")
    print(f"{where}\n\n{table}")


def make(run: Run) -> str:
    """All images of an arm: what the judge sees of them, their entries, and thumbnails of the first and newest 64."""
    torch.set_num_threads(2)
    engine, judge = demo_engine(run.device, compiled=False), load_judge(torch.device(run.device))
    embedding = engine.embed_prompts([run.prompt])
    made = load_file(run.path) if run.path.exists() else _nothing(engine)
    bank = MemoryBank()
    bank.append(made["features"], embedding.expand(len(made["features"]), -1))
    for number, requests in enumerate(rounds(len(bank), run.images)):
        known = neighbours(run.arm, bank, embedding, engine)
        seeds = range(len(bank), len(bank) + requests * IMAGES_A_REQUEST)
        groups = [
            SampleGroup(run.prompt, "", tuple(seeds[i : i + IMAGES_A_REQUEST]), run.strength, known)
            for i in range(0, len(seeds), IMAGES_A_REQUEST)
        ]
        samples = [sample for group in engine.generate(groups, PLAN, lambda _d, _a: None) for sample in group]
        pictures = as_pictures(samples)
        verdict = judge_pictures(judge, pictures)
        features = torch.stack([sample.feature for sample in samples])
        bank.append(features, embedding.expand(len(features), -1))
        latest = torch.cat([made["newest"], (pictures * 255).round().byte()])
        made = {
            "features": torch.cat([made["features"], features]),
            "judged": torch.cat([made["judged"], verdict.features]),
            "attributes": torch.cat([made["attributes"], verdict.attributes]),
            "first": latest[:NEWEST].clone() if len(made["first"]) < NEWEST else made["first"],
            "newest": latest[-NEWEST:].clone(),
        }
        if number % 20 == 0:
            save_file(made, run.path)
    save_file(made, run.path)
    return f"{run.arm}: {len(bank)} images"


def rounds(size: int, images: int) -> Iterator[int]:
    """How many requests go side by side: one until 64 images are there, then a 32nd of what is, at most 32."""
    while size < images:
        by_size = max(1, size // (32 * IMAGES_A_REQUEST)) if size >= NEWEST else 1
        requests = min(MOST_REQUESTS_A_ROUND, by_size, -(-(images - size) // IMAGES_A_REQUEST))
        yield requests
        size += requests * IMAGES_A_REQUEST


def neighbours(arm: str, bank: MemoryBank, embedding: Tensor, engine: PipelineEngine) -> Neighbours | None:
    """The neighbours that the arm gives a request."""
    if len(bank) == 0 or arm == "no memory":
        return None
    if arm == "nearest 256":
        return Neighbours.of(bank.features[None, :OLDEST], bank.prompt_embeddings[None, :OLDEST])
    most = SAMPLE if arm == "sample of 1024" else engine.preset.max_neighbours
    return bank.neighbours(embedding, replace(engine.preset, max_neighbours=most))


def report(runs: list[Run]) -> tuple[str, dict[str, list[tuple[int, float, float]]]]:
    """A row an arm: Vendi of the first and the newest 64; and (size, Vendi, share right) along the way."""
    table = caption_table()
    stated = table.stated[table.texts.index(runs[0].prompt)]
    lines = [
        "| memory | Vendi of the first 64 | of the newest 64 | ratio | right, first 1,000 | right, last 1,000 |",
        "|---|---|---|---|---|---|",
    ]
    curves = {}
    for run in runs:
        made = load_file(run.path)
        judged, seen = made["judged"], made["attributes"]
        right = is_right(seen, stated.expand_as(seen)).double()
        ends = [end for end in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if end < len(judged)] + [
            len(judged)
        ]
        curve = [
            (
                end,
                vendi(judged[end - NEWEST : end], CosineKernel()),
                float(right[max(0, end - 1000) : end].mean()),
            )
            for end in ends
        ]
        curves[run.arm] = curve
        first, newest = curve[0][1], curve[-1][1]
        lines.append(
            f"| {run.arm} | {first:.2f} | {newest:.2f} | {newest / first:.2f} "
            f"| {100 * float(right[:1000].mean()):.1f} % | {100 * float(right[-1000:].mean()):.1f} % |"
        )
        both = torch.cat([made["first"], made["newest"]]).float() / 255
        Image.fromarray(sheet(both, 16).numpy()).save(run.path.with_suffix(".png"))
    return "\n".join(lines), curves


def time_table(run: Run, repeats: int) -> str:
    """Time of one request of four images against the size of the memory, sizes in turns."""
    engine, made = demo_engine(run.device, compiled=False), load_file(run.path)
    embedding = engine.embed_prompts([run.prompt])
    times_ms: dict[int, list[float]] = {size: [] for size in TIMED_SIZES if size <= len(made["features"])}
    banks = {}
    for size in times_ms:
        banks[size] = MemoryBank()
        banks[size].append(made["features"][:size], embedding.expand(size, -1))
    for _ in range(repeats + 2):
        for size, bank in banks.items():
            start_s = time.perf_counter()
            group = SampleGroup(
                run.prompt, "", (1, 2, 3, 4), run.strength, neighbours("all", bank, embedding, engine)
            )
            engine.generate([group], PLAN, lambda _d, _a: None)
            times_ms[size].append(1000 * (time.perf_counter() - start_s))
    lines = ["| entries | one request of 4 images, ms, median | against 100 entries |", "|---|---|---|"]
    medians = {size: statistics.median(times[2:]) for size, times in times_ms.items()}
    lines += [
        f"| {size:,} | {median:.1f} | {median / medians.get(100, median):.3f} |"
        for size, median in medians.items()
    ]
    return "\n".join(lines)


def draw(curves: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Vendi of the newest 64 against the memory's size."""
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130)
    for arm, curve in curves.items():
        axes.plot([size for size, _, _ in curve], [score for _, score, _ in curve], marker="o", label=arm)
    axes.set_xscale("log", base=2)
    axes.set_xticks([64, 256, 1024, 4096, curves[ARMS[0]][-1][0]])
    axes.get_xaxis().set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("images in the memory")
    axes.set_ylabel("Vendi score of the newest 64")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _nothing(engine: PipelineEngine) -> dict[str, Tensor]:
    no_pictures = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    return {
        "features": torch.zeros(0, engine.feature_dim),
        "judged": torch.zeros(0, 128),
        "attributes": torch.zeros(0, 4, dtype=torch.int64),
        "first": no_pictures,
        "newest": no_pictures.clone(),
    }


if __name__ == "__main__":
    main()
