"""The pictures of the documents: `python benchmarks/pictures.py` writes docs/images/collapse.png and held-out.png."""

from pathlib import Path

import torch
from demo_arms import as_pictures, demo_engine
from PIL import Image
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import sheet
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup

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


def main() -> None:
    """Writes both pictures."""
    engine = demo_engine("cpu", compiled=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [
        remembered(engine, prompt, strength)
        for prompt in ("a star", "a red circle", "a heart on sand")
        for strength in (0.0, 0.5)
    ]
    Image.fromarray(sheet(torch.cat(rows), 16).numpy()).save(FOLDER / "collapse.png")
    table = caption_table()
    chosen = table.held_out[
        torch.randint(len(table.held_out), (64,), generator=torch.Generator().manual_seed(7))
    ]
    groups = [SampleGroup(table.texts[i], "", (place,), 0.0, None) for place, i in enumerate(chosen.tolist())]
    samples = engine.generate(groups, PLAN, lambda _done, _all: None)
    Image.fromarray(sheet(as_pictures([group[0] for group in samples]), 16).numpy()).save(
        FOLDER / "held-out.png"
    )


if __name__ == "__main__":
    main()
