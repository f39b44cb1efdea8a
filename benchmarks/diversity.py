"""The main claim on the demo model: what diversity guidance gains, and what it costs, against lower guidance scales.

    python benchmarks/diversity.py --out runs/diversity scale=4,strength=0 scale=4,strength=0.5 scale=2,strength=0

Every arm makes the same prompts with the same seeds; the first arm is the one that the others are compared with.
Intervals are 95 % by bootstrap over prompts, in pairs. A run that was cut short goes on where it stood.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from demo_arms import ArmRunner, demo_engine
from demo_prompts import SPLITS, open_prompts
from figures import Figures, conditional_rke, data_outcome, difference, figures, mean_of, ratio

from sparke_engine.demo.export import load_judge


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
        lost = difference(own.accuracy, reference.accuracy)
        gain = ratio(own.vendi, reference.vendi)
        accuracy, absolute = mean_of(own.accuracy), mean_of(own.vendi)
        bits = float(np.nanmean(own.colour_bits)), float(np.nanmean(own.background_bits))
        push = own.push.mean().item()
        rows.append(
            {
                "arm": name,
                "accuracy": asdict(accuracy),
                "accuracy_change": asdict(lost),
                "vendi": asdict(absolute),
                "vendi_ratio": asdict(gain),
                "vendi_of_data": absolute.value / data.vendi.mean().item(),
                "colour_bits": bits[0],
                "background_bits": bits[1],
                "cond_rke": rke,
                "push": push,
            }
        )
        lines.append(
            f"| {name} | {accuracy.text('.2f', factor=100)} % | {lost.text('+.2f', factor=100)} "
            f"| {absolute.text('.2f')} | {gain.text('.3f')} "
            f"| {bits[0]:.2f} | {bits[1]:.2f} | {rke:.2f} | {push:.3f} |"
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
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (needs a C++ compiler)")
    parser.add_argument("--report-only", action="store_true", help="leave out arms that are not complete")
    asked = parser.parse_args()
    engine = demo_engine(asked.device, compiled=asked.compile)
    judge = load_judge(torch.device(asked.device))
    prompts = open_prompts(asked.prompts, asked.split)
    folder = asked.out / f"{asked.split}-{asked.prompts}x{asked.images}-{asked.steps}"
    runner = ArmRunner(engine, judge, folder, steps=asked.steps)
    preset = engine.preset
    done: dict[str, tuple[Figures, float]] = {}
    embeddings = engine.embed_prompts(prompts.texts)
    data = figures(data_outcome(prompts, asked.images, judge), prompts)
    for text in asked.arms:
        arm = runner.arm(text)
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
