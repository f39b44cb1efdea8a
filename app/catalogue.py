"""Reads the catalogue of models (`models.toml`) into `ModelSpec`s.

A model's `diversity_preset` is the name of a preset, a table of its own, or a file with that table (`*.toml`, relative to
the catalogue), as `sparke calibrate` writes it. A table that states a grid has another feature map than the model's
kind, so its memories have another latent space: the grid becomes part of the space's name.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from app.domain.ids import ModelId, parse_latent_space, parse_lora_name, parse_model_id
from app.domain.lora import LoraSpec
from app.domain.model import ModelSpec, SizeLimits
from app.domain.preset import TABLE, PresetSpec, keeps_whole_latents
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
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the model catalogue {path} is not UTF-8: {error}") from error
    return parse_catalogue(
        text, folder=None if path is None else path.parent, name=str(path or "app/models.toml")
    )


def parse_catalogue(text: str, *, folder: Path | None, name: str) -> Catalogue:
    """The models of a catalogue's text. A `source` that begins with "." is resolved against `folder`, a LoRA's too."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{name} is not TOML: {error}") from error
    tables = document.get("models")
    if not isinstance(tables, list) or not tables or set(document) != {"models"}:
        raise ConfigurationError(f"{name}: expected one or more [[models]] tables and nothing else")
    specs: dict[ModelId, ModelSpec] = {}
    for table in tables:
        where = f"{name}: model {table.get('model_id', '(without model_id)')}"
        if "diversity_preset" in table:
            preset = _read_preset(table["diversity_preset"], folder=folder, where=where)
            spec = _in_own_space(_read_model(table | {"diversity_preset": preset}, where=where), where=where)
        else:
            spec = _read_model(table, where=where)
        if spec.model_id in specs:
            raise ConfigurationError(f"{name}: model {spec.model_id} is given twice")
        specs[spec.model_id] = spec if folder is None else _in_folder(spec, folder)
    return MappingProxyType(specs)


def _in_folder(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The model with its own and its LoRAs' sources resolved."""

    def resolved(source: str) -> str:
        return str((folder / source).resolve()) if source.startswith(".") else source

    loras = tuple(replace(lora, source=resolved(lora.source)) for lora in spec.loras)
    return replace(spec, source=resolved(spec.source), loras=loras)


def _read_model(table: dict[str, object], *, where: str) -> ModelSpec:
    size = table.get("size")
    unknown = set(table) - {member.name for member in fields(ModelSpec)}
    if isinstance(size, dict):
        unknown |= {f"size.{key}" for key in set(size) - {member.name for member in fields(SizeLimits)}}
    loras = table.get("loras")
    for number, lora in enumerate(loras if isinstance(loras, list) else ()):
        if isinstance(lora, dict):
            unknown |= {f"loras.{number}.{key}" for key in set(lora) - {one.name for one in fields(LoraSpec)}}
    if unknown:
        raise ConfigurationError(f"{where}: unknown member {', '.join(sorted(unknown))}")
    try:
        spec = TypeAdapter(ModelSpec).validate_python(table)
        parse_model_id(spec.model_id)
        parse_latent_space(spec.latent_space)
        for one in spec.loras:
            parse_lora_name(one.name)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {_problems(error)}") from error
    except InvalidId as error:
        raise ConfigurationError(f"{where}: {error.message}") from error
    fault = _find_contradiction(spec)
    if fault is not None:
        raise ConfigurationError(f"{where}: {fault}")
    return spec


def _read_preset(given: object, *, folder: Path | None, where: str) -> object:
    """A preset's table, from the catalogue or from the file that is named; what else is given is left as it is."""
    if isinstance(given, str) and given.endswith(".toml"):
        path = Path(given) if folder is None else folder / given
        where = f"{where}: {path}"
        given = _table_of(path, where)
    if not isinstance(given, dict):
        return given
    unknown = set(given) - {member.name for member in fields(PresetSpec)}
    if unknown:
        members = ", ".join(sorted(unknown))
        raise ConfigurationError(f"{where}: unknown member of diversity_preset: {members}")
    try:
        return TypeAdapter(PresetSpec).validate_python(given)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: diversity_preset: {_problems(error)}") from error


def _table_of(path: Path, where: str) -> object:
    """The one table of a file, as `sparke calibrate` writes it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where} is not TOML: {error}") from error
    models = document.get("models")
    table = models.get("diversity_preset") if isinstance(models, dict) else None
    if not isinstance(table, dict) or document != {"models": {"diversity_preset": table}}:
        raise ConfigurationError(f"{where}: expected the table {TABLE} and nothing else")
    return table


def _in_own_space(spec: ModelSpec, *, where: str) -> ModelSpec:
    """The model with its grid in the name of its latent space where it states one: features of two grids never mix."""
    preset = spec.diversity_preset
    if isinstance(preset, str) or preset.grid_name is None:
        return spec
    try:
        return replace(spec, latent_space=parse_latent_space(f"{spec.latent_space}-{preset.grid_name}"))
    except InvalidId as error:
        raise ConfigurationError(f"{where}: with its grid, {error.message}") from error


def _problems(error: ValidationError) -> str:
    """What is wrong, member by member."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    )


def _find_contradiction(spec: ModelSpec) -> str | None:
    fault = _find_fault_of_sizes(spec)
    if fault is not None:
        return fault
    if not 1 <= spec.default_steps <= spec.max_steps:
        return f"default_steps {spec.default_steps} is outside 1..{spec.max_steps} (max_steps)"
    if not 0 <= spec.default_guidance_scale <= spec.max_guidance_scale:
        return f"default_guidance_scale {spec.default_guidance_scale} is outside 0..{spec.max_guidance_scale}"
    if not 0 <= spec.default_strength <= 1:
        return f"default_strength {spec.default_strength} is outside 0..1"
    return _find_fault_of_loras(spec)


def _find_fault_of_sizes(spec: ModelSpec) -> str | None:
    size = spec.size
    if not 1 <= size.min_px <= size.max_px or size.multiple_px < 1:
        return f"size needs 1 ≤ min_px ≤ max_px and multiple_px ≥ 1, got {size}"
    for side_px in (size.default_width_px, size.default_height_px):
        if not size.min_px <= side_px <= size.max_px or side_px % size.multiple_px:
            return f"the default size {side_px} is outside the model's own limits"
    if keeps_whole_latents(spec.diversity_preset) and not size.has_one_size:
        return (
            f"its diversity_preset has no grid, so images of two sizes cannot be compared, and it takes sides from"
            f" {size.min_px} to {size.max_px} px: give it min_px = max_px = {size.default_width_px}, or state a grid"
        )
    return None


def _find_fault_of_loras(spec: ModelSpec) -> str | None:
    names = [lora.name for lora in spec.loras]
    for number, lora in enumerate(spec.loras):
        if lora.name in names[:number]:
            return f"the LoRA {lora.name!r} is given twice: each has a name of its own"
        if lora.fault is not None:
            return f"the LoRA {lora.name!r}: {lora.fault}"
    return None
