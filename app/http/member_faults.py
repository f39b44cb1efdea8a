"""What pydantic finds wrong with members of a request, in words, under the codes of the OpenAI API."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from app.domain.result import Failure

MEMBER_CODES: Mapping[str, str] = {
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
    "literal_error": "invalid_value",
    "multipart_invalid": "invalid_multipart",
    "missing": "missing_required_parameter",
    "string_too_long": "string_above_max_length",
    "string_too_short": "string_below_min_length",
}
"""What pydantic says of a member → the OpenAI API's word for it."""

_MAX_MEMBERS_NAMED = 5
MAX_NAME_CHARS = 80


def explain_members(found: Sequence[Mapping[str, Any]]) -> Failure:
    """What pydantic found wrong with members, in words, under the code and the name of the first."""
    named = "; ".join(_describe(member) for member in found[:_MAX_MEMBERS_NAMED])
    more = len(found) - _MAX_MEMBERS_NAMED
    message = named if more <= 0 else f"{named}; and {more} more"
    return Failure(_member_code(found[0]["type"]), message, _member_name(found[0]) or None)


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[dict[str, Any]]:
    """What pydantic found wrong with members of a model; beside one that is not known the names of those that are."""
    return [
        {**fault, "known": _names_at(model, fault["loc"][:-1])}
        if fault["type"] == "extra_forbidden"
        else {**fault}
        for fault in error.errors(include_url=False, include_context=False)
    ]


def member_model(annotation: object) -> type[BaseModel] | None:
    """The model that a member's annotation holds, if it holds one."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(member_model, get_args(annotation))), None)


def _names_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The members of the innermost model that a place leads into; numbers in it are those of lists."""
    for name in place:
        field = model.model_fields.get(str(name))
        model = (member_model(field.annotation) if field else None) or model
    return list(model.model_fields)


def _member_code(kind: str) -> str:
    if kind in MEMBER_CODES:
        return MEMBER_CODES[kind]
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def _member_name(member: Mapping[str, Any]) -> str:
    location = [str(part) for part in member["loc"] if part not in ("body", "query", "path")]
    return ".".join(location)[:MAX_NAME_CHARS]


def _describe(member: Mapping[str, Any]) -> str:
    """One member's fault: expected and, where it is short enough to repeat, actual."""
    name, kind, value = _member_name(member), member["type"], member.get("input")
    if kind == "extra_forbidden":
        return f"{name}: unknown member{_known_instead(member)}"
    if kind == "missing":
        return f"{name}: required, but missing"
    got = ""
    if kind == "string_too_long" and isinstance(value, str):
        got = f", got {len(value)}"
    elif "input" in member and _is_short(value):
        got = f", got {_as_json(value)}"
    return f"{name}: {member['msg']}{got}" if name else f"{member['msg']}{got}"


def _known_instead(member: Mapping[str, Any]) -> str:
    """What may have been meant: the nearest of the names that are known; of a query all, where none is near."""
    known, is_query = member.get("known", ()), member["loc"][0] == "query"
    near = get_close_matches(str(member["loc"][-1])[:MAX_NAME_CHARS], known, n=1)
    where = " of the query" if is_query else ""
    if near:
        return f"{where}; did you mean {near[0]!r}?"
    return f"{where}; known here: {', '.join(known) or 'none'}" if is_query else where


def _as_json(value: object) -> str:
    """As the client has written it: `null` and `true`. Texts stay in single quotes, as in all messages."""
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _is_short(value: object) -> bool:
    """True where repeating the value is a help: small numbers, booleans, null, short strings."""
    if isinstance(value, str):
        return len(value) <= 40
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20)
