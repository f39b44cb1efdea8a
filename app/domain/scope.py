"""What an API key may be used for."""

from collections.abc import Iterable
from enum import StrEnum

from app.errors import InvalidValue


class Scope(StrEnum):
    """One of the four kinds of routes; `app.http.guard.scopes` says which route is of which kind."""

    GENERATE = "generate"
    READ = "read"
    MANAGE = "manage"
    ADMIN = "admin"


USUAL_SCOPES = (Scope.GENERATE, Scope.READ, Scope.MANAGE)
"""Those of a key that names none, of keys from before there were scopes, and of a server without keys."""


def parse_scopes(names: Iterable[str]) -> tuple[Scope, ...]:
    """The scopes of some names, in the order above, each once. Raises InvalidValue for another name, and for none."""
    given = set(names)
    known = {scope.value for scope in Scope}
    if not given or given - known:
        found = ", ".join(sorted(given - known)) or "none"
        raise InvalidValue(
            f"scopes are {', '.join(Scope)}, at least one of them; got {found}", param="scopes"
        )
    return tuple(scope for scope in Scope if scope.value in given)
