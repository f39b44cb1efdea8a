"""Every method at every strength on the demo model: accuracy against diversity, as JSON, Markdown and a Pareto plot.

    python benchmarks/sweep.py --plan short                     some minutes on two cores
    python benchmarks/sweep.py --plan full --workers 8          one GPU: arms side by side in processes of their own
    python benchmarks/sweep.py --plan full --report-only        tables and plot from what is there
    python benchmarks/sweep.py --read docs/figures/sweep.json   tables and plot from what was published

Every arm makes the same prompts with the same seeds. A run that was cut short goes on where it stood. Each arm's figures,
prompt by prompt, are kept in `measured.json`, from which all else is made: `sweep.md` has every arm, and every rival against
any arm of ours and against the shipped preset; `short.md` the best arms of each rival. What the tables say is decided by
`benchmarks/pareto.py`: against each rival, at the rival's accuracy, in pairs.
"""

import argparse
import json
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from demo_arms import ArmRunner, Outcome, demo_engine
from demo_prompts import SPLITS, Split, open_prompts
from figures import conditional_vendi, data_outcome, figures, precision_of
from pareto import Measured, comparison_table, comparisons, method_table, plot, short_table
from sweep_arms import PLANS

from sparke_engine.demo.export import load_judge
from sparke_engine.diffusion.engine import PipelineEngine


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
    parser.add_argument(
        "--limit-s", type=float, help="begin to report after so long, of what is complete by then"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--read", type=Path, help="a measured.json to write tables and plot of")
    asked = parser.parse_args()
    if asked.read is not None:
        kept = json.loads(asked.read.read_text())
        asked.out.mkdir(parents=True, exist_ok=True)
        write_report(kept["where"], [Measured.of_saved(one) for one in kept["arms"]], asked.out)
        return
    plan = PLANS[asked.plan]
    prompts, images = asked.prompts or plan.prompts, asked.images or plan.images
    folder = asked.out / f"{asked.split}-{prompts}x{images}-{asked.steps}"
    size = Size(folder, asked.device, prompts, images, asked.steps, asked.split)
    arms = list(dict.fromkeys([*plan.arms, *asked.arms]))
    if not asked.report_only:
        _make(arms, size, asked.workers, asked.limit_s)
    where = (
        f"{platform.node()}, {device_name(asked.device)}, torch {torch.__version__}; {prompts} {asked.split} prompts of "
        f"{images} images, {asked.steps} steps"
    )
    measured = [
        _measured(text, size) for text in ["data", *arms] if text == "data" or _is_complete(text, size)
    ]
    kept = {"where": where, "arms": [one.saved() for one in measured]}
    (size.folder / "measured.json").write_text(json.dumps(kept))
    write_report(where, measured, size.folder)


def write_report(where: str, measured: list[Measured], folder: Path) -> None:
    """Tables, plot and the plot's rows."""
    compared, shipped = comparisons(measured), comparisons(measured, shipped=True)
    tables = (
        f"{where}\n\n{method_table(measured)}\n\n"
        f"Against any of ours:\n\n{comparison_table(compared)}\n\n"
        f"Against the shipped preset alone:\n\n{comparison_table(shipped)}\n"
    )
    (folder / "sweep.md").write_text(tables)
    (folder / "short.md").write_text(f"{where}\n\n{short_table(measured, compared, shipped)}\n")
    rows = [one.row() for one in measured]
    (folder / "sweep.json").write_text(json.dumps(rows, indent=1))
    plot(rows, folder / "pareto.png")
    print(tables)


def device_name(device: str) -> str:
    """The GPU's name, or that there is none."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _make(arms: list[str], size: Size, workers: int, limit_s: float | None) -> None:
    """All arms, or those for which there is time. What is cut off is taken up by the next run."""
    end_s = None if limit_s is None else time.monotonic() + limit_s
    context = multiprocessing.get_context("spawn")
    number = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _take_device, (size.device, number)) as pool:
        made = [pool.submit(_make_arm, arm, size) for arm in arms]
        try:
            for one in made:
                print(one.result(None if end_s is None else max(0.0, end_s - time.monotonic())), flush=True)
        except TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()


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
    runner = _runner(size)
    runner.run(runner.arm(text), open_prompts(size.prompts, size.split), size.images)
    return text


def _is_complete(text: str, size: Size) -> bool:
    runner = _runner(size)
    return runner.is_complete(runner.arm(text), size.images)


def _measured(text: str, size: Size) -> Measured:
    """An arm's figures, or those of `data`: made where they are missing."""
    path = size.folder / text / "measured.json"
    if path.exists():
        return Measured.of_saved(json.loads(path.read_text()))
    prompts, engine = open_prompts(size.prompts, size.split), _engine(size.device)
    data = _data(size)
    if text == "data":
        outcome, precision = data, None
    else:
        runner = _runner(size)
        outcome = runner.run(runner.arm(text), prompts, size.images)
        precision = precision_of(outcome, data)
    cond_vendi = conditional_vendi(outcome, engine.embed_prompts(prompts.texts))
    found = Measured(text, figures(outcome, prompts), cond_vendi, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found.saved()))
    return found


@cache
def _data(size: Size) -> Outcome:
    return data_outcome(
        open_prompts(size.prompts, size.split), size.images, load_judge(torch.device(size.device))
    )


if __name__ == "__main__":
    main()
