"""What a setting takes, in words: for the page of settings, and for who gave it something else."""

import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes", "_px": "pixels", "_pixels": "pixels"}
_KINDS: Mapping[Any, str] = {bool: "true or false", SecretStr: "a secret text", Path: "a path"}
_FROM_KUBERNETES = "tcp://"


def takes(name: str, field: FieldInfo) -> str:
    """The values that a setting takes: their kind, unit and bounds."""
    kind = _kind_of(field.annotation)
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if kind is int or kind is float:
        return f"{_number(name, kind)}{_bounds(field)}"
    if kind is str:
        return "a URL" if name.endswith("_url") else "a text"
    return _KINDS.get(kind, "a list, separated by commas")


def explain(error: ValidationError, settings: type[BaseModel]) -> list[str]:
    """A line for each thing that is wrong: variable, what it takes, what was found, and what it is for."""
    return [_explain_one(problem, settings) for problem in error.errors(include_url=False)]


def nearest(variable: str, settings: Iterable[str]) -> str:
    """What to say of a variable that is no setting: the one that was meant, if one is near."""
    names = [name.upper() for name in settings]
    found = get_close_matches(variable.removeprefix("SPARKE_"), names, n=1, cutoff=0.75)
    return f"did you mean SPARKE_{found[0]}?" if found else "docs/configuration.md has all"


def _explain_one(problem: Any, settings: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    message, found = problem["msg"].removeprefix("Value error, "), problem["input"]
    if not name:
        return f"the settings together: {message}"
    variable, field = f"SPARKE_{name.upper()}", settings.model_fields.get(name)
    if field is None:
        return f"{variable}: there is no such setting; {nearest(variable, settings.model_fields)}"
    got = "" if _is_secret(name, found) else f" (got {found!r})"
    if isinstance(found, str) and found.startswith(_FROM_KUBERNETES):
        return (
            f"{variable}: Kubernetes sets it, for a Service with the name sparke{got}; set enableServiceLinks: false in the"
            " pod's spec, or give the Service another name"
        )
    if problem["type"] == "value_error":
        return f"{variable}: {message}{got}"
    return f"{variable}: expected {takes(name, field)}{got}. {field.description}"


def _is_secret(name: str, found: object) -> bool:
    """Passwords stand before an @ of a URL, or in its query."""
    return "key" in name or (name.endswith("_url") and any(mark in str(found) for mark in "@?"))


def _kind_of(annotation: Any) -> Any:
    """The type beside None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not types.NoneType)
    return annotation


def _number(name: str, kind: type) -> str:
    unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
    if unit:
        return f"{unit}, " if kind is float else f"whole {unit}, "
    return "a number, " if kind is float else "a whole number, "


def _bounds(field: FieldInfo) -> str:
    bounds = {type(each): each for each in field.metadata}
    least, above, most, below = (bounds.get(kind) for kind in (Ge, Gt, Le, Lt))
    low = f"{least.ge:,} " if least is not None else f"above {above.gt:,} " if above is not None else ""
    high = (
        f"to {most.le:,}" if most is not None else f"below {below.lt:,}" if below is not None else "or more"
    )
    return (
        f"{low}{high}"
        if low and high != "or more"
        else f"{low}or more"
        if least is not None
        else low.strip() or "any"
    )
