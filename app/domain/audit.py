"""Acts of administration and of forgetting, as they are written down: who did what to whom, and how it ended."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from app.errors import InvalidValue

Outcome = Literal["begun", "done", "refused", "failed"]
Fact = int | str

COMMAND_LINE, NO_KEY = "cli", "none"
RECORD_FORM = r"^[0-9]{1,18}-[0-9]{1,18}$"

_SECRETS = ("sk-", "whsec_")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]{0,139}")


class Journal(StrEnum):
    """Where a record stands. Each has bounds of its own, so that nobody writes another one's records out of it."""

    ADMIN = "admin"
    TENANTS = "tenants"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Deed:
    """An act, before it is done: `key.revoke` and so on, by whom, to what.

    `actor` is the id of an API key, `cli`, or `none` for who showed no key that works. Nothing here has a text of a
    tenant's own: names of tenants and memories and ids, and facts that are numbers or one word each.
    """

    act: str
    actor: str
    actor_tenant: str | None = None
    tenant: str | None = None
    target: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record: a deed that was begun, or how it ended. Both have the same `act_id`."""

    act_id: str
    deed: Deed
    outcome: Outcome
    code: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.facts.items():
            if isinstance(value, str) and _WORD.fullmatch(value) is None:
                raise InvalidValue(f"a fact is a number or a word, got {name}={value[:40]!r}")


def word_of(text: object) -> str:
    """A text from outside as a record takes it: itself where it is an id or a name, else what says that it is none.

    What looks like a secret is none, though somebody put it where its id belongs.
    """
    is_word = isinstance(text, str) and _WORD.fullmatch(text) and not text.startswith(_SECRETS)
    return str(text) if is_word else "malformed"
