"""Writes docs/schedulers.md from the table of schedulers: `make docs`. A test fails where it is stale."""

from collections.abc import Iterator
from pathlib import Path

from sparke_engine.diffusion.schedulers import KINDS

TARGET = Path(__file__).with_name("schedulers.md")

HEAD = """# Schedulers

Written by `make docs` from `sparke_engine/diffusion/schedulers/registry.py`. Do not edit.

These schedulers of diffusers can be guided, in every configuration but for what is refused here. Others are refused by a
message that names these. Tests compare each with itself: the clean latents that it finds in an output, before a push
and after; a push of zero, to the bit; what is left of a push at the end of a run, against the exact solution.

- **Prediction types**: those that the class knows, `flow` where it knows no other.
- **Calls a step**: how often the model is evaluated for one step. A window of the trajectory, progress and the bound on
  the total push are counted in steps, and pushes are found anew in every call. Modes `paper` and `released` move the
  latents between steps only.
- **Noise**: whether noise is drawn on the way. It comes unchanged from the pipeline's generator.

Steps are counted from the first that a run takes, and end with the last: image-to-image, `denoising_start` and
`denoising_end`, `timesteps` and `sigmas` of one's own. A run that stops with noise left (`denoising_end`) is remembered
by its last predicted clean latents.

| scheduler | prediction types | calls a step | noise | notes |
|---|---|---|---|---|
"""


def rows() -> Iterator[str]:
    """A row for each class."""
    for name, kind in sorted(KINDS.items()):
        types = ", ".join(f"`{prediction_type}`" for prediction_type in kind.prediction_types)
        yield f"| `{name}` | {types} | {kind.calls} | {kind.draws} | {kind.note} |\n"


def render() -> str:
    """The whole page."""
    return HEAD + "".join(rows())


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
