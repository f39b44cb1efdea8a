"""How far the push that is expected of a memory is from the one that images report, on the demo model.

    python benchmarks/expected_push.py --steps 12 --images 16

For each prompt a memory of some images is made without any push; then as many images are made under it, each in a request of
its own. What `expected_push` said before is held against the mean of what they report.
"""

import argparse
from dataclasses import dataclass

import torch

from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, Sample, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.guidance.estimate import expected_push
from sparke_engine.types import Neighbours

PROMPTS = (
    "a red star",
    "a blue square",
    "a green circle on a white background",
    "a striped triangle",
    "two yellow circles",
    "a shape",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and one size of memory: what was expected, and the mean of what was reported."""

    prompt: str
    num_entries: int
    expected: float
    reported: float

    @property
    def ratio(self) -> float:
        """Reported over expected."""
        return self.reported / self.expected


def make(
    engine: ImageEngine, prompt: str, seeds: range, *, steps: int, strength: float, known: Neighbours | None
) -> list[Sample]:
    """Images of a prompt, each a request of its own, which no other pushes."""
    groups = [SampleGroup(prompt, "", (seed,), strength, known) for seed in seeds]
    found = engine.generate(groups, DenoisingPlan(64, 64, steps, 5.0), lambda _done, _num_steps: None)
    return [samples[0] for samples in found]


def measure(
    engine: ImageEngine, prompt: str, sizes: list[int], *, images: int, steps: int, strength: float
) -> list[Row]:
    """A row for each size of memory."""
    past = make(engine, prompt, range(1000, 1000 + max(sizes)), steps=steps, strength=0.0, known=None)
    features = torch.stack([sample.feature for sample in past])
    embedding = engine.embed_prompts([prompt])[0]
    rows = []
    for size in sizes:
        prompts = embedding.expand(1, size, -1)
        known = Neighbours.of(features[None, :size], prompts)
        made = make(engine, prompt, range(images), steps=steps, strength=strength, known=known)
        expected = expected_push(known, embedding, engine.preset, strength=strength, num_steps=steps)
        rows.append(Row(prompt, size, expected, sum(sample.push for sample in made) / len(made)))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--images", type=int, default=16, help="made under each memory")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64], help="entries of the memory")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    given = parser.parse_args()
    engine = load_engine("builtin:demo")
    print("| strength | entries | expected | reported | reported/expected, least to most over prompts |")
    print("|---|---|---|---|---|")
    for strength in given.strengths:
        rows = [
            row
            for prompt in PROMPTS[: given.prompts]
            for row in measure(
                engine, prompt, given.sizes, images=given.images, steps=given.steps, strength=strength
            )
        ]
        for size in given.sizes:
            of_size = [row for row in rows if row.num_entries == size]
            expected, reported = (
                sum(getattr(row, name) for row in of_size) / len(of_size) for name in ("expected", "reported")
            )
            ratios = sorted(row.ratio for row in of_size)
            print(
                f"| {strength:g} | {size} | {expected:.3f} | {reported:.3f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
            )


if __name__ == "__main__":
    main()
