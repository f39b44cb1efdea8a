"""Every method at every strength on the demo model: accuracy against diversity, as JSON, Markdown and a Pareto plot.

    python benchmarks/sweep.py --plan short                     some minutes on two cores
    python benchmarks/sweep.py --plan full --workers 8          one GPU: arms side by side in processes of their own
    python benchmarks/sweep.py --plan full --report-only        tables and plot from what is there

Every arm makes the same prompts with the same seeds. A run that was cut short goes on where it stood. What the tables
say is decided by `benchmarks/pareto.py`: against each rival, at the rival's accuracy, in pairs.
"""

import argparse
import json
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from demo_arms import Arm, ArmRunner, demo_engine
from demo_prompts import SPLITS, Split, open_prompts
from figures import conditional_vendi, data_outcome, figures, precision_of
from pareto import Measured, comparison_table, method_table, plot
from sweep_arms import PLANS

from sparke_engine.demo.export import load_judge
from sparke_engine.diffusion.engine import PipelineEngine
from sparke_engine.guidance.presets import DiversityPreset


@dataclass(frozen=True)
class Size:
    """How much every arm makes, and where."""

    folder: Path
    device: str
    prompts: int
    images: int
    steps: int
    split: Split


def main() -> None:
    """Runs the arms that are missing, then writes tables and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", choices=sorted(PLANS), default="short")
    parser.add_argument("--arms", nargs="*", default=[], help="further arms, as in benchmarks/diversity.py")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--images", type=int)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1, help="processes that make arms side by side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    plan = PLANS[asked.plan]
    prompts, images = asked.prompts or plan.prompts, asked.images or plan.images
    folder = asked.out / f"{asked.split}-{prompts}x{images}-{asked.steps}"
    size = Size(folder, asked.device, prompts, images, asked.steps, asked.split)
    arms = list(dict.fromkeys([*plan.arms, *asked.arms]))
    if not asked.report_only:
        _make(arms, size, asked.workers)
    measured = _measure(arms, size)
    where = f"{platform.node()}, {asked.device}; {prompts} {asked.split} prompts of {images} images, {asked.steps} steps"
    tables = f"{where}\n\n{method_table(measured)}\n\n{comparison_table(measured)}\n"
    (size.folder / "sweep.md").write_text(tables)
    rows = [one.row() for one in measured]
    (size.folder / "sweep.json").write_text(json.dumps(rows, indent=1))
    plot(rows, size.folder / "pareto.png")
    print(tables)


def _make(arms: list[str], size: Size, workers: int) -> None:
    if workers <= 1:
        for arm in arms:
            print(_make_arm(arm, size), flush=True)
        return
    context = multiprocessing.get_context("spawn")
    number = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _take_device, (size.device, number)) as pool:
        for done in pool.map(_make_arm, arms, [size] * len(arms)):
            print(done, flush=True)


def _take_device(device: str, number: Any) -> None:
    """Workers take the GPUs of the machine in turn."""
    with number.get_lock():
        mine = number.value
        number.value += 1
    if device == "cuda":
        torch.cuda.set_device(mine % torch.cuda.device_count())


@cache
def _engine(device: str) -> PipelineEngine:
    return demo_engine(device, compiled=False)


@cache
def _runner(size: Size) -> ArmRunner:
    judge = load_judge(torch.device(size.device))
    return ArmRunner(_engine(size.device), judge, size.folder, steps=size.steps)


def _make_arm(text: str, size: Size) -> str:
    torch.set_num_threads(2)
    _runner(size).run(
        Arm.parse(text, _shipped_preset(size.device)), open_prompts(size.prompts, size.split), size.images
    )
    return text


@cache
def _shipped_preset(device: str) -> DiversityPreset:
    return _engine(device).preset


def _measure(arms: list[str], size: Size) -> list[Measured]:
    """The figures of all arms that are complete."""
    prompts, engine, runner = open_prompts(size.prompts, size.split), _engine(size.device), _runner(size)
    embeddings = engine.embed_prompts(prompts.texts)
    judge = load_judge(torch.device(size.device))
    data = data_outcome(prompts, size.images, judge)
    measured = [Measured.of_data(figures(data, prompts), conditional_vendi(data, embeddings))]
    for text in arms:
        arm = Arm.parse(text, _shipped_preset(size.device))
        if not runner.is_complete(arm, size.images):
            continue
        outcome = runner.run(arm, prompts, size.images)
        measured.append(
            Measured(
                arm.name,
                figures(outcome, prompts),
                conditional_vendi(outcome, embeddings),
                precision_of(outcome, data),
            )
        )
    return measured


if __name__ == "__main__":
    main()
