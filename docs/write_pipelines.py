"""Writes docs/pipelines.md from the cases that the tests run: `make docs`. A test fails where it is stale."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparke_engine.diffusion.families import FAMILIES, Family
from sparke_engine.diffusion.prompt_embedding import HiddenMean, PooledText

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "pipelines.md"
CASES = ROOT / "tests" / "tiny_families.py"

HEAD = """# Pipelines

Written by `make docs` from `tests/tiny_families.py` and `sparke_engine/diffusion/families.py`. Do not edit.

Each row is a class of diffusers, unchanged, that the tests run with tiny random weights on the CPU, on every scheduler
of its row (`tests/sparke_engine/diffusion/test_families.py`):

- at strength 0, with a memory at hand, its output is the stock one to the bit; at strength 1 the same seeds part from
  it;
- a move δ of the predicted clean latents in the last step is a move of the final latents by δ, in canonical space;
- **guidance** names the argument of classifier-free guidance: x̂0 under the prompt is what a run without guidance
  predicts, the scale is found from the outputs, and fully relaxed images are those of scale 1. "none" says that the
  model predicts once a step, whatever scale is embedded;
- **negative**: with a negative prompt strength 0 is stock, and images are still pushed; "-" where the class takes none,
  or none beside one generator for each image;
- in bfloat16 strength 0 is stock to the bit and strength 1 pushes (on the first scheduler of the row).

**HTTP** says which classes a catalogue may name ("yes"), and which edit pictures with the parts of one ("edits"); the others
are for `guided` alone. Schedulers that are not in a row
are guided as well where the pipeline takes them; each has tests of its own. Presets beside `demo` are not tuned.

| pipeline | preset | latents | prompt embedding | schedulers | guidance | negative | HTTP |
|---|---|---|---|---|---|---|---|
"""

TAIL = """
## What a block sees of its calls

`guided` touches three things of the one pipeline while its block lasts: it wraps its scheduler's `step` and `check_inputs`, by
which pipelines check their own arguments, and hooks its denoiser.

- **Negative prompts**: a call with one that is not empty, or with an embedding of one, keeps its guidance, as relaxing it
  would relax the wish too. Kandinsky takes one and does not show it: there guidance is kept unless you say
  `keeps_guidance=False`. Presets with `relax = 0` relax nothing in any case.
- **Prompts**: a call with prompts or classes that differ is refused, since all its images are remembered under the block's.
  Kandinsky shows no prompts: there it is up to you.
- **Another pipeline** on the same scheduler, such as one made of `pipe.components`, is refused in its first step. So is a
  loop of your own: use `guided_steps` on an object that has the scheduler and the denoiser. PixArt, DiT and the combined
  Kandinsky do not tell when they begin: there it is not noticed.
- A block that made nothing, or whose pipeline got another scheduler, ends with an error; what was made in a run that was
  interrupted is not remembered, and a warning says so.

- **Offloading**: with `enable_model_cpu_offload` and `enable_sequential_cpu_offload` images are what they are without. The
  prompt is embedded on entry, which brings the text encoder to the device once more.

## What is remembered

What the scheduler's last step made. What a pipeline, or a `callback_on_step_end`, does to the latents after a step is seen in
the next step's input; after the last step nobody but the pipeline sees it:

- inpainting with a UNet of 4 channels then puts the given picture's latents back around the mask. The painted part is
  remembered as it is, and the rest as the model left it, next to what it was given: on the demo model the features of
  what is remembered and what is returned have a cosine of 0.998 and more, at 4 to 25 steps and strengths 0 and 1;
- what a callback changes in the last step is not remembered.

Image-to-image and refiners start where some of the image is settled, and are pushed in proportion to what is still open
there ([ADR 21](adr/0021-what-is-open.md)).

## Stages

Where two stages make one image, such as a base and a refiner, or an image and its enlargement, only the last one's is to be
remembered, and it should not be pushed away from its own first stage:

```python
with guided(base, bank, prompt, remember=False):
    draft = base(prompt).images[0]
with guided(refiner, bank, prompt):
    image = refiner(prompt, image=draft).images[0]
```

A pipeline that diffusers makes of another's parts, as `AutoPipelineForImage2Image.from_pipe(pipe)` does, has the preset of its class. The demo
model's `demo` is a mark of its own pipeline, which does not come along: for one that is made of it, say `preset="demo"`.
"""

LATENTS = {
    "LatentLayout": "as they are",
    "PackedLatents": "packed by 2×2",
    "DoubledBatch": "doubled under guidance",
    "FramesAsChannels": "a video is one sample",
}
EMBEDDINGS = {
    "class_label": "one-hot class",
    "image_embedding": "the prior's image embedding, given by the caller",
}


EDITORS = {name for family in FAMILIES.values() for name in (family.edits.image, family.edits.mask)}


def main() -> None:
    """Write the document."""
    TARGET.write_text(render(), encoding="utf-8")


def render() -> str:
    """The document."""
    cases = runpy.run_path(str(CASES))["CASES"]
    return HEAD + "".join(f"| {' | '.join(_cells(case))} |\n" for case in cases) + TAIL


def _cells(case: Any) -> Iterator[str]:
    family = FAMILIES[case.name]
    yield f"`{case.name}`" + (f", {case.variant}" if case.variant else "")
    yield f"`{family.preset}`"
    yield LATENTS[family.layout.__name__]
    yield _embedding(family)
    yield ", ".join(name.removesuffix("Scheduler") for name in case.schedulers)
    yield "none" if case.scale_name is None else f"`{case.scale_name}`"
    yield "yes" if case.negative else "-"
    if family.call is not None and case.scale_name in {"guidance_scale", None}:
        yield "yes"
    else:
        yield "edits" if case.name in EDITORS and not case.variant else "-"


def _embedding(family: Family) -> str:
    embed = family.embed
    if isinstance(embed, PooledText):
        names = ", ".join(f"`{encoder}`" for _, encoder in embed.encoders)
        return f"pooled: {names}" + (", in chunks" if embed.reader is not None else "")
    if isinstance(embed, HiddenMean):
        return "mean hidden state"
    return EMBEDDINGS[embed.__name__]


if __name__ == "__main__":
    main()
