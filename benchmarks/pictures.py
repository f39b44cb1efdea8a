"""The pictures of the documents: collapse.png, held-out.png and full-strength.png in docs/images."""

import argparse
from pathlib import Path

import torch
from demo_arms import as_pictures, demo_engine
from PIL import Image
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.baselines.modes import ReleasedMode
from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import sheet
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.guide import Sparke

PLAN = DenoisingPlan(64, 64, 12, 9.0)
FOLDER = Path(__file__).parent.parent / "docs" / "images"


def remembered(engine: PipelineEngine, prompt: str, strength: float) -> Tensor:
    """Sixteen pictures of one prompt, asked for four at a time by a tenant with a memory."""
    bank, pictures = MemoryBank(), []
    embedding = engine.embed_prompts([prompt])
    for number in range(4):
        known = bank.neighbours(embedding, engine.preset) if len(bank) else None
        group = SampleGroup(prompt, "", tuple(range(4 * number, 4 * number + 4)), strength, known)
        (samples,) = engine.generate([group], PLAN, lambda _done, _all: None)
        bank.append(torch.stack([sample.feature for sample in samples]), embedding.expand(4, -1))
        pictures.append(as_pictures(samples))
    return torch.cat(pictures)


def at_full_strength(engine: PipelineEngine) -> list[Tensor]:
    """Sixteen pictures a row: nothing, strength 1, and the published code's step at η = 0.04 and 0.06 in every step."""
    base, rows = engine.preset, []
    rivals = [ReleasedMode(eta=eta, interval=1) for eta in (0.04, 0.06)]
    for prompt in ("a star", "a heart on sand"):
        rows += [remembered(engine, prompt, strength) for strength in (0.0, 1.0)]
        for rival in rivals:
            engine.preset, engine.method = rival.preset(base), rival
            rows.append(remembered(engine, prompt, 1.0))
        engine.preset, engine.method = base, Sparke()
    return rows


def main() -> None:
    """Writes the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(sorted(PICTURES))}")
    names = parser.parse_args().names or sorted(PICTURES)
    unknown = sorted(set(names) - PICTURES.keys())
    if unknown:
        parser.error(f"no picture {', '.join(unknown)}; there are {', '.join(sorted(PICTURES))}")
    engine = demo_engine("cpu", compiled=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        PICTURES[name](engine)


def collapse(engine: PipelineEngine) -> None:
    """Without and with the default strength."""
    rows = [
        remembered(engine, prompt, strength)
        for prompt in ("a star", "a red circle", "a heart on sand")
        for strength in (0.0, 0.5)
    ]
    Image.fromarray(sheet(torch.cat(rows), 16).numpy()).save(FOLDER / "collapse.png")


def held_out(engine: PipelineEngine) -> None:
    """Captions that training never saw."""
    table = caption_table()
    chosen = table.held_out[
        torch.randint(len(table.held_out), (64,), generator=torch.Generator().manual_seed(7))
    ]
    groups = [SampleGroup(table.texts[i], "", (place,), 0.0, None) for place, i in enumerate(chosen.tolist())]
    samples = engine.generate(groups, PLAN, lambda _done, _all: None)
    Image.fromarray(sheet(as_pictures([group[0] for group in samples]), 16).numpy()).save(
        FOLDER / "held-out.png"
    )


def full_strength(engine: PipelineEngine) -> None:
    """What strong pushes do to pictures."""
    rows = at_full_strength(engine)
    Image.fromarray(sheet(torch.cat(rows), 16).numpy()).save(FOLDER / "full-strength.png")


PICTURES = {"collapse": collapse, "held-out": held_out, "full-strength": full_strength}


if __name__ == "__main__":
    main()
