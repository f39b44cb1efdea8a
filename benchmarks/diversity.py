"""The main claim on the demo model: what diversity guidance gains, and what it costs, against lower guidance scales.

    python benchmarks/diversity.py --out runs/diversity scale=4,strength=0 scale=4,strength=0.5 scale=2,strength=0

Every arm makes the same prompts with the same seeds; the first arm is the one that the others are compared with.
Intervals are 95 % by bootstrap over prompts, in pairs. A run that was cut short goes on where it stood.
"""

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from demo_arms import Arm, ArmRunner, Outcome, Prompts, demo_engine, open_prompts
from scipy.stats import bootstrap
from torch import Tensor

from sparke_engine.core.kernels import CosineKernel, GaussianKernel
from sparke_engine.core.scores import cond_rke, vendi
from sparke_engine.demo.evaluate import is_right, judge_pictures, open_entropy_bits
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.render import render
from sparke_engine.demo.scene import sample_scenes


@dataclass(frozen=True)
class Figures:
    """One value a prompt: float64 [p] each; nan where a prompt leaves nothing open."""

    accuracy: Tensor
    vendi: Tensor
    colour_bits: Tensor
    background_bits: Tensor
    push: Tensor


def figures(outcome: Outcome, prompts: Prompts) -> Figures:
    """The figures of an arm, prompt by prompt."""
    rows: list[tuple[float, ...]] = []
    for seen, judged, pushes, stated in zip(
        outcome.attributes, outcome.judged, outcome.pushes, prompts.stated, strict=True
    ):
        said = stated.expand_as(seen)
        rows.append(
            (
                is_right(seen, said).double().mean().item(),
                vendi(judged, CosineKernel()),
                open_entropy_bits(seen, said, 1),
                open_entropy_bits(seen, said, 2),
                pushes.double().mean().item(),
            )
        )
    return Figures(*torch.tensor(rows, dtype=torch.float64).T)


def conditional_rke(outcome: Outcome, embeddings: Tensor) -> float:
    """Cond-RKE of the judge's features given the prompts, over a fixed sample of 16 images a prompt."""
    judged = torch.nn.functional.normalize(outcome.judged[:, :16].flatten(0, 1).double(), dim=1)
    prompts = embeddings.double().repeat_interleave(min(16, outcome.judged.shape[1]), dim=0)
    return cond_rke(judged, prompts, (GaussianKernel(0.5), GaussianKernel(0.3)))


def data_outcome(prompts: Prompts, images_a_prompt: int, judge: torch.nn.Module) -> Outcome:
    """Renders in place of generated images: what the training data itself holds for each prompt."""
    stated = prompts.stated.repeat_interleave(images_a_prompt, dim=0)
    pictures = render(sample_scenes(stated, torch.Generator().manual_seed(3)))
    verdict = judge_pictures(judge, pictures)  # type: ignore[arg-type]
    shape = (len(prompts.texts), images_a_prompt, -1)
    empty = torch.zeros(shape[:2])
    return Outcome(
        verdict.attributes.reshape(shape), verdict.features.reshape(shape), empty[..., None], empty
    )


def interval(values: np.ndarray, against: np.ndarray | None, *, ratio: bool) -> tuple[float, float, float]:
    """Mean (or paired ratio or difference of means) over prompts with its 95 % interval."""

    def statistic(own: np.ndarray, other: np.ndarray | None = None, axis: int = -1) -> np.ndarray:
        if other is None:
            return np.asarray(own.mean(axis))
        gap = own.mean(axis) / other.mean(axis) if ratio else own.mean(axis) - other.mean(axis)
        return np.asarray(gap)

    data = (values,) if against is None else (values, against)
    if np.ptp(values) == 0 and (against is None or np.ptp(against) == 0):
        point = float(statistic(*data))
        return point, point, point
    found = bootstrap(data, partial(statistic), paired=True, n_resamples=2000, rng=0, method="percentile")
    return (
        float(statistic(*data)),
        float(found.confidence_interval.low),
        float(found.confidence_interval.high),
    )


def report(arms: dict[str, tuple[Figures, float]], data: Figures) -> tuple[list[dict[str, object]], str]:
    """Rows for JSON and a Markdown table; the first arm is the reference."""
    reference = next(iter(arms.values()))[0]
    open_bits = np.nanmean(data.colour_bits), np.nanmean(data.background_bits)
    lines = [
        "| arm | accuracy | change, points | Vendi | relative to first | H(colour) | H(background) | Cond-RKE | push |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| data | | | {data.vendi.mean():.2f} | | {open_bits[0]:.2f} | {open_bits[1]:.2f} | | |",
    ]
    rows: list[dict[str, object]] = []
    for name, (own, rke) in arms.items():
        lost = interval(own.accuracy.numpy(), reference.accuracy.numpy(), ratio=False)
        gain = interval(own.vendi.numpy(), reference.vendi.numpy(), ratio=True)
        accuracy = interval(own.accuracy.numpy(), None, ratio=False)
        absolute = interval(own.vendi.numpy(), None, ratio=False)
        bits = float(np.nanmean(own.colour_bits)), float(np.nanmean(own.background_bits))
        push = own.push.mean().item()
        rows.append(
            {
                "arm": name,
                "accuracy": accuracy,
                "accuracy_change": lost,
                "vendi": absolute,
                "vendi_ratio": gain,
                "vendi_of_data": absolute[0] / data.vendi.mean().item(),
                "colour_bits": bits[0],
                "background_bits": bits[1],
                "cond_rke": rke,
                "push": push,
            }
        )
        lines.append(
            f"| {name} | {100 * accuracy[0]:.2f} % [{100 * accuracy[1]:.2f}, {100 * accuracy[2]:.2f}] "
            f"| {100 * lost[0]:+.2f} [{100 * lost[1]:+.2f}, {100 * lost[2]:+.2f}] "
            f"| {absolute[0]:.2f} [{absolute[1]:.2f}, {absolute[2]:.2f}] "
            f"| {gain[0]:.3f} [{gain[1]:.3f}, {gain[2]:.3f}] | {bits[0]:.2f} | {bits[1]:.2f} | {rke:.2f} | {push:.3f} |"
        )
    return rows, "\n".join(lines)


def main() -> None:
    """Runs the arms that are named and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arms", nargs="+", help="scale=4,strength=0.5[,field of the preset=value]...")
    parser.add_argument("--out", type=Path, default=Path("runs/diversity"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (needs a C++ compiler)")
    parser.add_argument("--report-only", action="store_true", help="leave out arms that are not complete")
    asked = parser.parse_args()
    engine = demo_engine(asked.device, compiled=asked.compile)
    judge = load_judge(torch.device("cpu"))
    prompts = open_prompts(asked.prompts)
    folder = asked.out / f"{asked.prompts}x{asked.images}-{asked.steps}"
    runner = ArmRunner(engine, judge, folder, steps=asked.steps)
    preset = engine.preset
    done: dict[str, tuple[Figures, float]] = {}
    embeddings = engine.embed_prompts(prompts.texts)
    data = figures(data_outcome(prompts, asked.images, judge), prompts)
    for text in asked.arms:
        arm = Arm.parse(text, preset)
        if asked.report_only and not runner.is_complete(arm, asked.images):
            continue
        outcome = runner.run(arm, prompts, asked.images)
        done[arm.name] = (figures(outcome, prompts), conditional_rke(outcome, embeddings))
        rows, table = report(done, data)
        (folder / "table.json").write_text(json.dumps({"preset": asdict(preset), "rows": rows}, indent=1))
        (folder / "table.md").write_text(table + "\n")
        print(table.splitlines()[-1], flush=True)
    print(
        f"\n{platform.node()}, {asked.device}{', compiled' * asked.compile}; {asked.prompts} prompts of {asked.images} images, {asked.steps} steps\n{table}"
    )


if __name__ == "__main__":
    main()
