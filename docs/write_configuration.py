"""Writes docs/configuration.md from the settings and the model catalogue: `make docs`. A test fails where it is stale."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic_core import PydanticUndefined

from app.domain.model import Dtype, ModelSpec, SizeLimits
from app.settings import Settings

TARGET = Path(__file__).with_name("configuration.md")
SETTINGS = Path(__file__).resolve().parents[1] / "app" / "settings.py"

HEAD = """# Configuration

Written by `make docs` from `app/settings.py` and `app/domain/model.py`. Do not edit.

## Settings

Every setting is a variable of the environment, read once when a process starts. Options of the command line
(`--host`, `--port`, `--data-dir`, `--redis-url`) come before it. A wrong value stops the process with a message that
names the variable. The API and all workers of one service take the same `SPARKE_REDIS_URL`, image store, model
catalogue and bounds.
"""

MODELS = """
## Models

`SPARKE_MODELS_FILE` names a TOML file with one `[[models]]` table for each model; the first is the default. Without
it the packaged `app/models.toml` offers `sparke-demo`. Unknown members are refused.
"""

SIZES = """
The table `[models.size]` says which sizes a model takes, in pixels:
"""

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
    "diversity_preset": "`default` is the preset of the model's kind; `paper` is Algorithm 1. "
    "All are in `sparke_engine/guidance/presets.py`.",
    "default_strength": "Diversity strength, 0 to 1, where a request names none.",
    "default_width_px": "Width where a request names no size.",
    "default_height_px": "Height where a request names no size.",
    "min_px": "Least side.",
    "max_px": "Largest side.",
    "multiple_px": "Both sides are multiples of it.",
}


def render() -> str:
    """The whole page."""
    return "".join((HEAD, *_setting_tables(), MODELS, _members(ModelSpec), SIZES, _members(SizeLimits)))


def _setting_tables() -> Iterator[str]:
    """One table for each comment that divides the settings in their source."""
    for title, names in _groups():
        yield f"\n### {title}\n\n| variable | default | meaning |\n|---|---|---|\n"
        for name in names:
            field = Settings.model_fields[name]
            default = "" if field.default is PydanticUndefined else _show(field.default)
            yield f"| `SPARKE_{name.upper()}` | {default} | {field.description} |\n"


def _groups() -> list[tuple[str, list[str]]]:
    groups: list[tuple[str, list[str]]] = []
    for line in SETTINGS.read_text(encoding="utf-8").splitlines():
        name = line.strip().partition(":")[0]
        if line.startswith("    # "):
            groups.append((line.strip("# "), []))
        elif name in Settings.model_fields and line.startswith(f"    {name}:"):
            groups[-1][1].append(name)
    found = sorted(name for _, names in groups for name in names)
    if found != sorted(Settings.model_fields):
        raise ValueError("app/settings.py is no longer laid out as groups of fields below comments")
    return groups


def _members(kind: type[ModelSpec] | type[SizeLimits]) -> str:
    lines = ["\n| member | type | default | meaning |\n|---|---|---|---|\n"]
    hints = get_type_hints(kind)
    for field in fields(kind):
        default = "required" if field.default is MISSING else _show(field.default)
        lines.append(
            f"| `{field.name}` | {_type(hints[field.name])} | {default} | {ABOUT_MODELS[field.name]} |\n"
        )
    return "".join(lines)


def _type(hint: Any) -> str:
    if hint == Dtype:
        return ", ".join(f"`{name}`" for name in get_args(Dtype))
    if hint is SizeLimits:
        return "table"
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    kind = getattr(kinds[0], "__supertype__", kinds[0])
    return {str: "string", int: "integer", float: "number"}[kind]


def _show(value: Any) -> str:
    if value is None or value == ():
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
