"""One prompt for ever: how diverse are the newest images of 10,000 against the first, under each way to read a memory?

    python benchmarks/long_memory.py --images 10000 --workers 16        one GPU: every run in a process of its own
    python benchmarks/long_memory.py --report-only                      tables and picture from what is there
    python benchmarks/long_memory.py --read docs/figures/long-memory.json      the tables that were published

Three kinds of runs, all with requests of four images:

- *fresh*: 32 tenants side by side make their first 64 images, one request after another: what the method makes of a
  new memory. Up to 64 entries every way to read a memory is the same, so that one run stands for all.
- *long*: one tenant makes 10,000 images with new seeds. The first 64 are asked for one request at a time, then more
  and more requests go side by side, none of which sees the others.
- *pinned*: eight tenants send the same seeds with every request, so that nothing but the memory makes images differ.

Ways to read a memory: `none`; `all`; `sample K`, a fixed sample that a growing memory hardly changes; `nearest K` by
prompt with equal ones in their order, as an index returns them, which for one prompt are the same oldest K for ever;
`anew K`, a new draw for every request, as the engine's cap takes them. Progress is saved, and a run that was cut short goes on where it stood. What
follows from it is in `long_memory_report.py`, what it costs in `memory_cost.py`.
"""

import argparse
import multiprocessing
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from demo_arms import as_pictures, demo_engine
from long_memory_report import NEWEST, Made, read_report, write_report
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.core.sampling import uniforms
from sparke_engine.demo.evaluate import judge_pictures
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.networks import Judge
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.types import Neighbours

IMAGES_A_REQUEST = 4
MOST_REQUESTS_A_ROUND = 32
ROUNDS_A_SAVE = 20
SEEDS_A_TENANT = 100_000
FRESH_TENANTS, PINNED_TENANTS = 32, 8
FRESH = ("none", "all")
LONG = ("none", "all", "nearest 256", "anew 256", "anew 64")
PINNED = ("all", "nearest 256", "anew 64", "anew 256")


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    prompt: str
    strength: float
    steps: int
    device: str
    folder: Path

    @property
    def plan(self) -> DenoisingPlan:
        """The demo's size and guidance scale."""
        return DenoisingPlan(64, 64, self.steps, 9.0)


@dataclass(frozen=True)
class Run:
    """Tenants that ask for one prompt again and again, side by side, each with a memory of its own."""

    kind: str
    memory: str
    tenants: int
    images: int
    setting: Setting = field(repr=False)

    @property
    def path(self) -> Path:
        """Where the run's progress is."""
        return self.setting.folder / f"{self.kind}-{self.memory.replace(' ', '-')}.safetensors"

    def seeds(self, tenant: int, number: int) -> tuple[int, ...]:
        """The seeds of a tenant's request whose first image is its `number`-th: new ones, or always the same."""
        start = SEEDS_A_TENANT * tenant + (0 if self.kind == "pinned" else number)
        return tuple(range(start, start + IMAGES_A_REQUEST))

    def rounds(self, size: int) -> Iterator[int]:
        """How many requests of a tenant go side by side, from a memory of `size` on.

        One until 64 images are there, then a 32nd of what is, at most 32; with pinned seeds one, for two that read the
        same memory would be one image twice.
        """
        while size < self.images:
            by_size = max(1, size // (32 * IMAGES_A_REQUEST)) if size >= NEWEST else 1
            left = -(-(self.images - size) // IMAGES_A_REQUEST)
            requests = 1 if self.kind == "pinned" else min(MOST_REQUESTS_A_ROUND, by_size, left)
            yield requests
            size += requests * IMAGES_A_REQUEST


def planned(setting: Setting, images: int, pinned_images: int) -> list[Run]:
    """All runs, the longest first."""
    return [
        *(Run("long", memory, 1, images, setting) for memory in LONG),
        *(Run("pinned", memory, PINNED_TENANTS, pinned_images, setting) for memory in PINNED),
        *(Run("fresh", memory, FRESH_TENANTS, NEWEST, setting) for memory in FRESH),
    ]


def main() -> None:
    """Makes the runs that are missing, then writes tables, figures as JSON, and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="a star")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--pinned-images", type=int, default=768)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1, help="processes that make runs side by side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/long-memory"))
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--read", type=Path, help="a figures.json to write tables and picture of")
    asked = parser.parse_args()
    if asked.read is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        print(read_report(asked.read, asked.out))
        return
    folder = asked.out / f"{asked.prompt.replace(' ', '-')}-{asked.strength:g}-{asked.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(asked.prompt, asked.strength, asked.steps, asked.device, folder)
    runs = planned(setting, asked.images, asked.pinned_images)
    if not asked.report_only:
        make_all(runs, asked.workers)
    made = {(run.kind, run.memory): Made(**load_file(run.path)) for run in runs if run.path.exists()}
    where = (
        f"{platform.node()}, {asked.device}; {asked.images} images of {asked.prompt!r}, strength {asked.strength:g}, "
        f"{asked.steps} steps"
    )
    print(write_report(made, asked.prompt, where, folder))


def make_all(runs: list[Run], workers: int) -> None:
    """Makes the runs, `workers` at a time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(runs)), mp_context=context) as pool:
        for done in as_completed([pool.submit(make, run) for run in runs]):
            print(done.result(), flush=True)


def make(run: Run) -> str:
    """All images of a run: what the judge sees of them, their entries, pictures of a tenant's first and newest 64."""
    torch.set_num_threads(1)
    setting = run.setting
    done = f"{run.kind}, {run.memory}: {run.images} images for each of {run.tenants}"
    if run.path.exists() and Made(**load_file(run.path)).judged.shape[1] >= run.images:
        return done
    engine, judge = demo_engine(setting.device, compiled=False), load_judge(torch.device(setting.device))
    embedding = engine.embed_prompts([setting.prompt])
    made = Made(**load_file(run.path)) if run.path.exists() else Made.nothing(run.tenants, engine.feature_dim)
    banks = [MemoryBank() for _ in range(run.tenants)]
    for bank, features in zip(banks, made.features, strict=True):
        bank.append(features, embedding.expand(len(features), -1))
    for number, requests in enumerate(run.rounds(len(banks[0])), start=1):
        made = made.plus(*_round(run, banks, requests, (engine, judge)))
        if number % ROUNDS_A_SAVE == 0:
            _save(made, run.path)
    _save(made, run.path)
    return done


def _round(
    run: Run, banks: list[MemoryBank], requests: int, models: tuple[PipelineEngine, Judge]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """So many requests of every tenant: features [t,i,d], judge's features and attributes, pictures of the first tenant.

    They enter the banks.
    """
    engine, judge = models
    setting = run.setting
    embedding = engine.embed_prompts([setting.prompt])
    groups = []
    for tenant, bank in enumerate(banks):
        known = neighbours(run.memory, bank, embedding, engine.preset)
        for request in range(requests):
            seeds = run.seeds(tenant, len(bank) + request * IMAGES_A_REQUEST)
            groups.append(SampleGroup(setting.prompt, "", seeds, setting.strength, known))
    samples = [
        sample for group in engine.generate(groups, setting.plan, lambda _d, _a: None) for sample in group
    ]
    pictures = as_pictures(samples)
    verdict = judge_pictures(judge, pictures)
    features = torch.stack([sample.feature for sample in samples]).reshape(len(banks), -1, engine.feature_dim)
    for bank, own in zip(banks, features, strict=True):
        bank.append(own, embedding.expand(len(own), -1))
    shape = (*features.shape[:2], -1)
    shown = (pictures[: features.shape[1]] * 255).round().byte()
    return features, verdict.features.reshape(shape), verdict.attributes.reshape(shape), shown


def neighbours(
    memory: str, bank: MemoryBank, embedding: Tensor, preset: DiversityPreset
) -> Neighbours | None:
    """The neighbours that a request gets, by the way its memory is read."""
    way, _, number = memory.partition(" ")
    if len(bank) == 0 or way == "none":
        return None
    if way in {"all", "anew"}:
        return bank.neighbours(embedding, replace(preset, max_neighbours=int(number or len(bank))))
    if way == "nearest":
        return Neighbours.of(bank.features[None, : int(number)], bank.prompt_embeddings[None, : int(number)])
    order = uniforms(torch.arange(len(bank)), salt=0).argsort()[: int(number)]
    found = Neighbours.of(bank.features[order][None], bank.prompt_embeddings[order][None])
    return replace(found, weights=torch.full((1, len(order)), len(bank) / len(order)))


def _save(made: Made, path: Path) -> None:
    """Whole or not at all, so that a run can be cut short at any time."""
    unfinished = path.with_suffix(".unfinished")
    save_file({name: value.contiguous() for name, value in vars(made).items()}, unfinished)
    unfinished.replace(path)


if __name__ == "__main__":
    main()
