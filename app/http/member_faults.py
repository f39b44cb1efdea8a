"""What pydantic finds wrong with members of a request, in words, under the codes of the OpenAI API."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

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
        return f"{name}: unknown member{_known_instead(name, member)}"
    if kind == "missing":
        return f"{name}: required, but missing"
    got = ""
    if kind == "string_too_long" and isinstance(value, str):
        got = f", got {len(value)}"
    elif "input" in member and _is_short(value):
        got = f", got {_as_json(value)}"
    return f"{name}: {member['msg']}{got}" if name else f"{member['msg']}{got}"


def _known_instead(name: str, member: Mapping[str, Any]) -> str:
    """What may have been meant, where it is told what is known: of the near ones the nearest, else all."""
    if "known" not in member:
        return ""
    where = " of the query" if member["loc"][0] == "query" else ""
    known = member["known"]
    near = get_close_matches(name, known, n=1)
    if near:
        return f"{where}; did you mean {near[0]!r}?"
    return f"{where}; known here: {', '.join(known) or 'none'}"


def _as_json(value: object) -> str:
    """As the client has written it: `null` and `true`. Texts stay in single quotes, as in all messages."""
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _is_short(value: object) -> bool:
    """True where repeating the value is a help: small numbers, booleans, null, short strings."""
    if isinstance(value, str):
        return len(value) <= 40
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20)
