"""Accuracy of the demo model on prompts it never saw, against the guidance scale, without diversity guidance.

    python benchmarks/demo_accuracy.py --images 4096 --scales 1 2 5 9

An image is right where shape, colour and background are all as its caption states. Intervals are Wilson's, 95 %.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from demo_arms import as_pictures, demo_engine
from PIL import Image
from scipy.stats import binomtest

from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import is_right, judge_pictures, sheet
from sparke_engine.demo.export import load_judge
from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup

BATCH = 64
SHEET = 64


def main() -> None:
    """Prints a row a guidance scale and writes a sheet of the first images of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 9.0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (needs a C++ compiler)")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    engine = demo_engine(asked.device, compiled=asked.compile)
    table, judge = caption_table(), load_judge(torch.device("cpu"))
    generator = torch.Generator().manual_seed(asked.seed)
    chosen = table.held_out[torch.randint(len(table.held_out), (asked.images,), generator=generator)]
    print(
        f"{platform.node()}, {asked.device}{', compiled' * asked.compile}; {asked.images} images of held-out captions, {asked.steps} steps"
    )
    print("| guidance scale | all right | shape | colour | background |\n|---|---|---|---|---|", flush=True)
    rows = []
    for scale in asked.scales:
        plan = DenoisingPlan(64, 64, asked.steps, scale)
        parts = []
        for start in range(0, asked.images, BATCH):
            captions = chosen[start : start + BATCH].tolist()
            groups = [
                SampleGroup(table.texts[caption], "", (start + place,), 0.0, None)
                for place, caption in enumerate(captions)
            ]
            samples = engine.generate(groups, plan, lambda _done, _all: None)
            parts.append(as_pictures([group[0] for group in samples]))
        pictures = torch.cat(parts)
        seen, stated = judge_pictures(judge, pictures).attributes, table.stated[chosen]
        right = int(is_right(seen, stated).sum())
        low, high = binomtest(right, asked.images).proportion_ci(method="wilson")
        each = (seen == stated)[:, :3].float().mean(0).tolist()
        rows.append(
            {"scale": scale, "right": right, "images": asked.images, "interval": [low, high], "each": each}
        )
        print(
            f"| {scale:g} | {100 * right / asked.images:.2f} % [{100 * low:.2f}, {100 * high:.2f}] "
            + "".join(f"| {100 * value:.2f} % " for value in each)
            + "|",
            flush=True,
        )
        Image.fromarray(sheet(pictures[:SHEET], 8).numpy()).save(asked.out / f"sheet-{scale:g}.png")
    (asked.out / f"accuracy-{asked.steps}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
