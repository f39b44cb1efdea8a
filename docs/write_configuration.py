"""Writes docs/configuration.md from the settings and the model catalogue: `make docs`. A test fails where it is stale."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from app.domain.lora import DEFAULT_WEIGHT_NAME, MAX_SCALE, LoraSpec
from app.domain.model import Dtype, ModelSpec, SizeLimits
from app.domain.preset import PresetSpec
from app.settings import Settings
from app.settings.explaining import takes

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

Written by `make docs` from `app/settings` and from `model.py`, `lora.py` and `preset.py` of `app/domain`. Do not edit.

## Settings

Every setting is a variable of the environment, read once when a process starts. Options of the command line
(`--host`, `--port`, `--data-dir`, `--redis-url`) come before it. A wrong value stops the process with a message that
names the variable, what it takes and what was found; one that is empty is as if it were not set, and a name that is no setting is
a line `variable_unknown` in the log, or one on standard error where a command has no log. The API and all workers of one service take the same `SPARKE_REDIS_URL`, image store, model
catalogue and bounds. `sparke serve` is API and worker, and gives both its settings; commands (`sparke keys` and the like) read those of
stores and logs. OpenTelemetry reads variables of its own ([tracing](tracing.md)).
"""

MODELS = """
## Models

`SPARKE_MODELS_FILE` names a TOML file with one `[[models]]` table for each model; the first is the default. Without
it the packaged `app/models.toml` offers `sparke-demo`. Unknown members are refused.
"""

SIZES = """
The table `[models.size]` says which sizes a model takes, in pixels:
"""

PRESETS = """
The table `[models.diversity_preset]` holds members of a preset of the model's own, as
[`sparke calibrate`](calibration.md) writes them; those that are absent are those of `base`. Where it states a `grid`, the
model's memories lie in a latent space of that grid (`demo` becomes `demo-8x8`), since features of two grids cannot be
compared. Where the grid is not that of the model's kind, state it, also where `base` has it: a worker refuses it
unstated, and it refuses a stated grid that would hold anyway.
"""

LORAS = """
Each table `[[models.loras]]` below a model is a LoRA that requests may name (`loras`), for Stable Diffusion, SDXL, SD3, FLUX
and Sana. A worker loads all of a model's beside it, so they take device memory; where a file is missing it does not start,
and where one does not fit the model it says so and fails the jobs that name it. The API and all workers take the same
catalogue; when LoRAs are added, start the workers with it first.
"""

ABOUT_LORAS = {
    "name": "How requests name it: lower-case letters, digits, `_`, `-`.",
    "source": "A file `*.safetensors` or a folder (absolute, or relative to the catalogue and begun with `.`), or a hub id.",
    "weight_name": f"The file within a folder or on the hub; absent: `{DEFAULT_WEIGHT_NAME}`.",
    "revision": "Branch, tag or commit on the hub.",
    "default_scale": f"How strongly it acts where a request does not say, -{MAX_SCALE:g} to {MAX_SCALE:g}; 1 is as it was "
    "trained.",
}

ABOUT_MODELS = {
    "model_id": "How requests name it: letters, digits, `.`, `_`, `-`.",
    "source": "A hub id, a folder in diffusers format (one that begins with `.` is relative to the file), "
    "`builtin:demo` or `builtin:toy`. Only safetensors are read, and no code of the source is run.",
    "latent_space": "Which memories it reads and writes. Models may share one if they have the same VAE, feature map "
    "and prompt encoder.",
    "size": "The table below.",
    "revision": "Branch, tag or commit on the hub.",
    "dtype": "What the weights are loaded as. Guidance runs in float32 whatever it is.",
    "scheduler": "Class name of another scheduler of the same family; absent: the model's own.",
    "default_steps": "Denoising steps where a request names none.",
    "max_steps": "The most that a request may ask for.",
    "default_guidance_scale": "Classifier-free guidance where a request names none.",
    "max_guidance_scale": "The most that a request may ask for.",
    "diversity_preset": "A name (`default` is the preset of the model's kind, `paper` is Algorithm 1; all are in "
    "`sparke_engine/guidance/presets.py`), the table below, or a file `*.toml` with that table, relative to this one. "
    "`paper`, `released` and whatever else has no grid want one size, the model's own.",
    "default_strength": "Diversity strength, 0 to 1, where a request names none.",
    "loras": "LoRAs that requests may name: the tables below.",
    "default_width_px": "Width where a request names no size.",
    "default_height_px": "Height where a request names no size.",
    "min_px": "Least side.",
    "max_px": "Largest side.",
    "multiple_px": "Both sides are multiples of it.",
    "base": "Name of the preset whose members hold where none is given.",
    "mode": "`denoised` acts on predicted clean latents, `paper` is Algorithm 1, `released` the published code's step.",
    "objective": "What pushes raise.",
    "kernel": "Of features and of prompts.",
    "conditional": "Whether entries count by the nearness of their prompts; a preset that is not has "
    "`min_prompt_kernel` 0.",
    "grid": "`[rows, columns]` that latents are averaged to, or `whole`, which only a model of one size can have.",
    "eta": "Size of a push at strength 1, in norms of the latents.",
    "strength_exponent": "η(strength) = eta · strength^exponent.",
    "window": "Share of the steps, from the first, in which `denoised` pushes.",
    "relax": "How far guidance is relaxed at strength 1 where images are near.",
    "interval": "`paper` and `released` act in every step of that many.",
    "kappa": "Mass at which pushes have half their size.",
    "latent_bandwidth": "Width of the kernel of features.",
    "prompt_bandwidth": "Width of the kernel of prompts.",
    "power": "Power of both kernels.",
    "min_prompt_kernel": "Entries whose prompt kernel is below it are no neighbours.",
    "max_neighbours": "Above it a sample, another for every version of the memory, stands for all neighbours.",
    "max_spectral_entries": "The same in `vendi`.",
    "reference_eta": "Size of the push of novelty and context at weight 1.",
    "reference_window": "Share of the steps in which they push.",
    "reference_bandwidth": "Width of the kernel by which a reference's images are near.",
    "max_reference_entries": "Above it a sample stands for all images of a reference.",
    "max_push": "Bound on the total push, the mean over all steps.",
}


def render() -> str:
    """The whole page."""
    return "".join(
        (
            HEAD,
            *_setting_tables(),
            MODELS,
            _members(ModelSpec, ABOUT_MODELS),
            SIZES,
            _members(SizeLimits, ABOUT_MODELS),
            LORAS,
            _members(LoraSpec, ABOUT_LORAS),
            PRESETS,
            _members(PresetSpec, ABOUT_MODELS),
        )
    )


def _setting_tables() -> Iterator[str]:
    """One table for each theme, in the order in which `Settings` names them."""
    for theme in Settings.__bases__:
        if theme is BaseSettings:
            continue
        title = (theme.__doc__ or "").removesuffix(".")
        yield f"\n### {title}\n\n| variable | default | takes | read by | meaning |\n|---|---|---|---|---|\n"
        for name, field in theme.model_fields.items():
            default = "" if field.default is PydanticUndefined else _show(field.default)
            told = (default, takes(name, field), reader_of(theme, name), field.description)
            yield f"| `SPARKE_{name.upper()}` | {' | '.join(str(each) for each in told)} |\n"


def reader_of(theme: type[Any], name: str) -> str:
    """Which processes a setting changes."""
    read_by: str = theme.READ_BY.get(name, theme.READ_BY[""])
    return read_by


def _members(kind: type[ModelSpec | SizeLimits | LoraSpec | PresetSpec], about: Mapping[str, str]) -> str:
    lines = ["\n| member | type | default | meaning |\n|---|---|---|---|\n"]
    hints = get_type_hints(kind)
    for field in fields(kind):
        default = "required" if field.default is MISSING else _show(field.default)
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {default} | {about[field.name]} |\n")
    return "".join(lines)


def _type(hint: Any) -> str:
    if hint == Dtype:
        return ", ".join(f"`{name}`" for name in get_args(Dtype))
    tables = {SizeLimits: "table", str | PresetSpec: "string or table", tuple[LoraSpec, ...]: "tables"}
    if hint in tables:
        return tables[hint]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if get_origin(kinds[0]) is tuple:
        return "two integers, or a string"
    if get_origin(kinds[0]) is Literal:
        return ", ".join(f"`{name}`" for name in get_args(kinds[0]))
    kind = getattr(kinds[0], "__supertype__", kinds[0])
    return {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]


def _show(value: Any) -> str:
    if value is None or value == ():
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
