"""The text fields of a form as the members of a body: bracketed names nest, and texts become what a member takes."""

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from app.http.member_faults import faults_of, member_model

_NAME = re.compile(r"([^\[\]]+)((?:\[\](?=\[)|\[[^\[\]]+\]){0,3})")  # empty ones are not the last
_PART = re.compile(r"\[([^\[\]]*)\]")

Model = TypeVar("Model", bound=BaseModel)


def read_fields(fields: Mapping[str, str], model: type[Model]) -> Model:
    """The body of fields such as `n` or `diversity[memory][name]`, as strict as the same body in JSON.

    Raises RequestValidationError with the members at fault, those that are not known among them.
    """
    given: dict[str, Any] = {}
    for name, text in fields.items():
        _put(given, name, text)
    try:
        return model.model_validate(_typed(given, model))
    except ValidationError as error:
        raise RequestValidationError(faults_of(error, model)) from error


def _put(given: dict[str, Any], name: str, text: str) -> None:
    """Sets a member, within others where its name has brackets; a name that fits nowhere stays whole, and unknown."""
    found = _NAME.fullmatch(name)
    first, rest = (found[1], _PART.findall(found[2])) if found else (name, [])
    *parents, last = (first, *rest)
    place: Any = given
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            given[name] = text
            return
    if last in place:
        given[name] = text
    else:
        place[last] = text


def _typed(given: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for name, value in given.items():
        field = model.model_fields.get(name)
        inner = None if field is None else member_model(field.annotation)
        if isinstance(value, str):
            typed[name] = value if field is None or _takes_text(field.annotation) else _value(value)
        elif field is not None and inner is not None and takes_list(field.annotation):
            typed[name] = _listed(value, inner)
        else:
            typed[name] = value if inner is None else _typed(value, inner)
    return typed


def _listed(given: Mapping[str, Any], model: type[BaseModel]) -> object:
    """`loras[0][name]` in the order of the numbers; `loras[][name]`, as clients write a list, where it has one element."""
    if not all((key == "" or key.isdecimal()) and isinstance(value, dict) for key, value in given.items()):
        return given
    return [_typed(given[key], model) for key in sorted(given, key=lambda key: int(key or 0))]


def takes_list(annotation: object) -> bool:
    """Whether a member holds a list."""
    return get_origin(annotation) is list or any(map(takes_list, get_args(annotation)))


def _takes_text(annotation: object) -> bool:
    if get_origin(annotation) is Literal:
        return True
    return annotation is str or any(map(_takes_text, get_args(annotation)))


def _value(text: str) -> object:
    """A number, a truth value, a list or an object as JSON writes it; any other text stays one, and is of the wrong type."""
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | list | dict) else text
