"""Novelty and context on the demo model: how often prompts that state no shape show the shapes and looks of a reference.

    python benchmarks/novelty.py --images 384 --out runs/novelty

The reference holds 64 pictures each of "a star" and "a heart", as the model makes them without diversity guidance. A third
of the prompts states nothing, a third a colour, a third a background; --both adds prompts that state both. Every row has
the same prompts and seeds. The share of the two shapes is among all images; those of the reference's colours and
backgrounds, each in a fifth of its pictures or more, are among images whose prompt leaves them open. An image is right
where what its prompt states is there. Intervals are Wilson's, 95 %; what the reference changes is the difference from the
row without one, in pairs, by bootstrap over prompts. Rows that are there already are read, so a run that
was cut short goes on where it stood.
"""

import argparse
import hashlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import torch
from demo_arms import as_pictures, demo_engine
from figures import Interval, difference
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor

from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import is_right, judge_pictures, sheet
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.scene import OPEN, SHAPES
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.guidance.presets import preset_named
from sparke_engine.guidance.push import Entries, Reference

REFERENCE_SHAPES: Final = (SHAPES.index("star"), SHAPES.index("heart"))
IMAGES_A_SHAPE: Final = 64
IMAGES_A_REQUEST: Final = 4
GROUPS_A_BATCH: Final = 16
WEIGHTS: Final = (1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5, -0.75, -1.0)  # novelty, none, context
PICTURES_A_ROW: Final = 16
HEAD: Final = (
    "| novelty | context | its shapes | changed by, points | its colours | its backgrounds | right | push |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Setting:
    """What all rows share: the plan and the strength of diversity guidance."""

    plan: DenoisingPlan
    strength: float


def open_shape_prompts(number: int, *, both: bool) -> tuple[list[str], Tensor]:
    """Texts that state no shape with what each states, int64 [n,4]: nothing, a colour, a background and so on in turn."""
    table, rows = caption_table(), []
    kinds = 4 if both else 3
    for index in range(number):
        kind, turn = index % kinds, index // kinds
        colour = (3 * turn + 1) % 8 if kind in (1, 3) else OPEN
        background = (5 * turn + turn // 8 + 4) % 8 if kind in (2, 3) else OPEN
        rows.append((OPEN, colour, background, OPEN))
    stated, texts = torch.tensor(rows), []
    for index, row in enumerate(stated):
        phrasings = torch.nonzero((table.stated == row).all(dim=1))[:, 0].tolist()
        named = [table.texts[phrasing] for phrasing in phrasings if table.texts[phrasing]]
        texts.append(named[(index // kinds) % len(named)])
    return texts, stated


def generate(engine: PipelineEngine, groups: list[SampleGroup], plan: DenoisingPlan) -> list[Sample]:
    """The samples of all groups, in order."""
    made: list[list[Sample]] = []
    for start in range(0, len(groups), GROUPS_A_BATCH):
        made += engine.generate(groups[start : start + GROUPS_A_BATCH], plan, lambda _done, _all: None)
    return [sample for group in made for sample in group]


def reference_samples(engine: PipelineEngine, plan: DenoisingPlan) -> list[Sample]:
    """The reference: pictures of both shapes without diversity guidance."""
    groups = [
        SampleGroup(
            f"a {SHAPES[shape]}",
            "",
            tuple(range(start, start + IMAGES_A_REQUEST)),
            strength=0.0,
            neighbours=None,
        )
        for shape in REFERENCE_SHAPES
        for start in range(10**6, 10**6 + IMAGES_A_SHAPE, IMAGES_A_REQUEST)
    ]
    return generate(engine, groups, plan)


def requests(texts: list[str], weight: float, entries: Entries, strength: float) -> list[SampleGroup]:
    """One request of every text, with the reference at a signed weight."""
    references = (Reference(entries, weight),) if weight else ()
    return [
        SampleGroup(
            text,
            "",
            tuple(range(1000 * index, 1000 * index + IMAGES_A_REQUEST)),
            strength,
            None,
            references=references,
        )
        for index, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Row:
    """The figures of one signed weight; a share is (value, low, high)."""

    novelty: float
    context: float
    shapes: tuple[float, float, float]
    change: Interval
    colours: tuple[float, float, float]
    backgrounds: tuple[float, float, float]
    right: tuple[float, float, float]
    push: float

    @classmethod
    def of(
        cls,
        weight: float,
        pair: tuple[dict[str, Tensor], dict[str, Tensor]],
        stated: Tensor,
        looks: list[Tensor],
    ) -> Self:
        """The figures of what was made, beside what was without a reference; `looks`: its frequent values of attributes."""
        made, _ = pair
        seen = made["seen"]
        shapes, colours, backgrounds = (
            share(torch.isin(seen[:, column], values)[stated[:, column] == OPEN])
            for column, values in enumerate(looks)
        )
        change = difference(*(_shapes_a_prompt(one["seen"], looks[0]) for one in pair))
        right = share(is_right(seen, stated))
        push = float(made["pushes"].mean())
        novelty, context = abs(max(weight, 0.0)), abs(min(weight, 0.0))
        return cls(novelty, context, shapes, change, colours, backgrounds, right, push)

    @property
    def line(self) -> str:
        """The row in Markdown."""
        shares = [
            f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            for value, low, high in (self.shapes, self.colours, self.backgrounds, self.right)
        ]
        change = self.change.text("+.1f", factor=100)
        cells = [f"{self.novelty:g}", f"{self.context:g}", shares[0], change, *shares[1:], f"{self.push:.3f}"]
        return f"| {' | '.join(cells)} |"


def _shapes_a_prompt(seen: Tensor, shapes: Tensor) -> Tensor:
    """The share of the reference's shapes among each prompt's images, float64 [p]."""
    return torch.isin(seen[:, 0], shapes).reshape(-1, IMAGES_A_REQUEST).double().mean(1)


def share(hits: Tensor) -> tuple[float, float, float]:
    """The share of hits with Wilson's interval of 95 %: value, low, high."""
    found: Any = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return float(hits.float().mean()), float(found.low), float(found.high)


def _frequent(values: Tensor) -> Tensor:
    """The values that a fifth or more of the reference has."""
    return torch.nonzero(torch.bincount(values) >= len(values) / 5)[:, 0]


class Bench:
    """Makes the rows, each kept in the folder."""

    def __init__(self, engine: PipelineEngine, setting: Setting, folder: Path) -> None:
        self._engine, self._setting, self._folder = engine, setting, folder
        self._judge = load_judge(torch.device("cpu"))
        path = folder / "reference.safetensors"
        if not path.exists():
            samples = reference_samples(engine, setting.plan)
            features = torch.stack([sample.feature for sample in samples])
            seen = judge_pictures(self._judge, as_pictures(samples)).attributes
            save_file({"features": features, "seen": seen}, path)
        reference = load_file(path)
        features = reference["features"]
        self._entries = Entries(features, torch.ones(len(features)))
        self.looks = [_frequent(reference["seen"][:, column]) for column in range(3)]

    def made(self, texts: list[str], weight: float) -> dict[str, Tensor]:
        """What the judge sees, the pushes and the pictures of one weight."""
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
        path = self._folder / f"{digest}-{weight:g}.safetensors"
        if not path.exists():
            groups = requests(texts, weight, self._entries, self._setting.strength)
            samples = generate(self._engine, groups, self._setting.plan)
            pictures = as_pictures(samples)
            seen = judge_pictures(self._judge, pictures).attributes
            pushes = torch.tensor([sample.push for sample in samples])
            save_file({"seen": seen, "pushes": pushes, "pictures": pictures}, path)
        return load_file(path)


def main() -> None:
    """Prints a row a weight, writes table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="negative ones are context")
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--scale", type=float, default=9.0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--both", action="store_true", help="also prompts that state colour and background")
    parser.add_argument("--preset", default="demo-fine", help="which preset of the demo model")
    parser.add_argument(
        "--fields", nargs="*", default=[], help="reference_eta=1.5 and the like, in its place"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser (needs a C++ compiler)")
    parser.add_argument("--out", type=Path, default=Path("runs/novelty"))
    parser.add_argument("--picture", type=Path, help="where the picture goes")
    asked = parser.parse_args()
    engine = demo_engine(asked.device, compiled=asked.compile)
    changes = {name: float(value) for name, value in (part.split("=") for part in asked.fields)}
    engine.preset = replace(preset_named(asked.preset), **changes)  # type: ignore[arg-type]
    setting = Setting(DenoisingPlan(64, 64, asked.steps, asked.scale), asked.strength)
    asked.out.mkdir(parents=True, exist_ok=True)
    _check_setting(asked.out, setting, engine)
    bench = Bench(engine, setting, asked.out)
    texts, stated = open_shape_prompts(asked.images // IMAGES_A_REQUEST, both=asked.both)
    stated = stated.repeat_interleave(IMAGES_A_REQUEST, dim=0)
    place = f"{platform.node()}, {asked.device}{', compiled' * asked.compile}"
    print(f"{place}; {len(stated)} images a row, strength {asked.strength:g}, {asked.steps} steps\n")
    print(HEAD)
    rows: list[Row] = []
    shown: list[Tensor] = []
    without = bench.made(texts, 0.0)
    for weight in asked.weights:
        made = bench.made(texts, weight)
        rows.append(Row.of(weight, (made, without), stated, bench.looks))
        if abs(weight) in {0.0, 1.0}:
            shown.append(made["pictures"][:: max(1, len(stated) // PICTURES_A_ROW)][:PICTURES_A_ROW])
        print(rows[-1].line, flush=True)
    table = "\n".join([HEAD, *(row.line for row in rows)])
    (asked.out / "table.md").write_text(f"{table}\n")
    values = {
        "preset": asdict(engine.preset),
        "strength": asked.strength,
        "rows": [asdict(row) for row in rows],
    }
    (asked.out / "table.json").write_text(json.dumps(values, indent=1))
    if asked.picture is not None:
        Image.fromarray(sheet(torch.cat(shown), PICTURES_A_ROW).numpy()).save(asked.picture)


def _check_setting(folder: Path, setting: Setting, engine: PipelineEngine) -> None:
    own = json.dumps({"setting": asdict(setting), "preset": asdict(engine.preset)}, indent=1)
    path = folder / "setting.json"
    if path.exists() and path.read_text() != own:
        raise SystemExit(f"{folder} was made with another setting: give another --out, or remove it")
    path.write_text(own)


if __name__ == "__main__":
    main()
