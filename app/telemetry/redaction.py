"""What never reaches a log: secrets by their names and by their looks, and prompts."""

import re
from collections.abc import Callable
from typing import Any

from structlog.typing import EventDict, WrappedLogger

from app.telemetry.faults import WITHHELD

REDACTED = "[redacted]"
_SECRET_PARTS = ("authorization", "api_key", "signing_key", "secret", "password", "cookie")
_SECRET_NAMES = frozenset({"key", "token", "signature", "redis_url"})
_LOOKS = (
    (re.compile(r"(sk-sparke-)[\w-]+"), r"\1" + REDACTED),
    (re.compile(r"(?i)(\bbearer\s+)[^\s\"',;]+"), r"\1" + REDACTED),
    (re.compile(r"(?i)(\b\w*(?:signature|password)=)[^\s\"'&,;]+"), r"\1" + REDACTED),
    (re.compile(r"(://[^\s:/@\"']*:)[^\s/@\"']+(?=@)"), r"\1" + REDACTED),
)
_WORKING_ON = ("request_id", "job_id", "run_id")  # bound wherever somebody's prompt may be in hand

Processor = Callable[[WrappedLogger, str, EventDict], EventDict]


def make_redact(*, shows_prompts: bool = False) -> Processor:
    """A processor that replaces secrets at any depth, and prompts unless `shows_prompts`."""
    hidden = _SECRET_PARTS if shows_prompts else ("prompt", *_SECRET_PARTS)

    def is_secret(name: str) -> bool:
        lowered = name.lower().replace("-", "_")
        return lowered in _SECRET_NAMES or any(part in lowered for part in hidden)

    def redact_value(name: str, value: Any) -> Any:
        if is_secret(name):
            return REDACTED
        if isinstance(value, str):
            return without_secrets(value)
        if isinstance(value, dict):
            return {inner: redact_value(str(inner), found) for inner, found in value.items()}
        if isinstance(value, list | tuple):
            return [redact_value("", found) for found in value]
        return value

    def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {name: redact_value(name, value) for name, value in event.items()}

    return redact


def without_secrets(text: str) -> str:
    """The text without what looks like a key, a signature of a URL, or the password in one."""
    for looks, instead in _LOOKS:
        text = looks.sub(instead, text)
    return text


def withhold(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """For lines of other libraries: says where one comes from and not what it says, while somebody's job is worked on.

    A tokenizer that cuts a prompt repeats what it cut, in words of its own. asyncio repeats errors that nobody fetched.
    """
    record = event.get("_record")
    if record is None:
        return event
    if record.name == "asyncio":
        return {**event, "event": str(event["event"]).partition("\n")[0]}
    if any(name in event for name in _WORKING_ON):
        return {**event, "event": WITHHELD, "where": f"{record.filename}:{record.lineno}"}
    return event
