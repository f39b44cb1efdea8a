"""Reads the catalogue of models (`models.toml`) into `ModelSpec`s."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from app.domain.ids import ModelId, parse_latent_space, parse_model_id
from app.domain.model import ModelSpec, SizeLimits
from app.errors import ConfigurationError, InvalidId

Catalogue = Mapping[ModelId, ModelSpec]


def load_catalogue(path: Path | None = None) -> Catalogue:
    """The models of a file, in its order; None reads the packaged file.

    Raises ConfigurationError that names the file, the model and the member at fault.
    """
    try:
        text = (files("app") / "models.toml" if path is None else path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"the model catalogue {path} cannot be read: {error.strerror}") from error
    return parse_catalogue(
        text, folder=None if path is None else path.parent, name=str(path or "app/models.toml")
    )


def parse_catalogue(text: str, *, folder: Path | None, name: str) -> Catalogue:
    """The models of a catalogue's text. A `source` that begins with "." is resolved against `folder`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{name} is not TOML: {error}") from error
    tables = document.get("models")
    if not isinstance(tables, list) or not tables or set(document) != {"models"}:
        raise ConfigurationError(f"{name}: expected one or more [[models]] tables and nothing else")
    specs: dict[ModelId, ModelSpec] = {}
    for table in tables:
        spec = _read_model(table, where=f"{name}: model {table.get('model_id', '(without model_id)')}")
        if spec.model_id in specs:
            raise ConfigurationError(f"{name}: model {spec.model_id} is given twice")
        if folder is not None and spec.source.startswith("."):
            spec = replace(spec, source=str((folder / spec.source).resolve()))
        specs[spec.model_id] = spec
    return MappingProxyType(specs)


def _read_model(table: dict[str, object], *, where: str) -> ModelSpec:
    size = table.get("size")
    unknown = set(table) - {member.name for member in fields(ModelSpec)}
    if isinstance(size, dict):
        unknown |= {f"size.{key}" for key in set(size) - {member.name for member in fields(SizeLimits)}}
    if unknown:
        raise ConfigurationError(f"{where}: unknown member {', '.join(sorted(unknown))}")
    try:
        spec = TypeAdapter(ModelSpec).validate_python(table)
        parse_model_id(spec.model_id)
        parse_latent_space(spec.latent_space)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigurationError(f"{where}: {problems}") from error
    except InvalidId as error:
        raise ConfigurationError(f"{where}: {error.message}") from error
    fault = _find_contradiction(spec)
    if fault is not None:
        raise ConfigurationError(f"{where}: {fault}")
    return spec


def _find_contradiction(spec: ModelSpec) -> str | None:
    size = spec.size
    if not 1 <= size.min_px <= size.max_px or size.multiple_px < 1:
        return f"size needs 1 ≤ min_px ≤ max_px and multiple_px ≥ 1, got {size}"
    for side_px in (size.default_width_px, size.default_height_px):
        if not size.min_px <= side_px <= size.max_px or side_px % size.multiple_px:
            return f"the default size {side_px} is outside the model's own limits"
    if not 1 <= spec.default_steps <= spec.max_steps:
        return f"default_steps {spec.default_steps} is outside 1..{spec.max_steps} (max_steps)"
    if not 0 <= spec.default_guidance_scale <= spec.max_guidance_scale:
        return f"default_guidance_scale {spec.default_guidance_scale} is outside 0..{spec.max_guidance_scale}"
    if not 0 <= spec.default_strength <= 1:
        return f"default_strength {spec.default_strength} is outside 0..1"
    return None
