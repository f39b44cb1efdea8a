"""What a route would not read of a request is refused: members of a query that it does not declare, and a body."""

from collections import Counter
from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import QueryParams

from app.errors import InvalidRequest


def check_query(request: Request) -> None:
    """Raises RequestValidationError that names what the route does not know, and what was given more than once.

    What nobody reads would else be passed over in silence, and `grace=0`, meant as `grace_s=0`, do the contrary.
    """
    query = request.query_params
    if query:
        known = list(_names(request.scope["route"].dependant))
        faults = list(_faults(query, known))
        if faults:
            raise RequestValidationError(faults)


def check_body(request: Request) -> None:
    """Raises InvalidRequest for a body where the route reads none. An empty object is as good as none."""
    route, headers = request.scope["route"], request.headers
    if request.method == "GET" or "requestBody" in (route.openapi_extra or {}):
        return
    if "transfer-encoding" in headers or headers.get("content-length", "0") not in ("0", str(len("{}"))):
        known = ", ".join(_names(route.dependant))
        where = f"what it takes goes into its query: {known}" if known else "leave it out"
        raise InvalidRequest(f"{request.method} {request.url.path[:80]} reads no body; {where}")


def _names(dependant: Dependant) -> Iterator[str]:
    """The members that a route declares, itself and by what it depends on. None of them takes a list."""
    yield from (member.alias for member in dependant.query_params)
    for each in dependant.dependencies:
        yield from _names(each)


def _faults(query: QueryParams, known: list[str]) -> Iterator[dict[str, object]]:
    for name, number in Counter(name for name, _ in query.multi_items()).items():
        if name not in known:
            yield {"type": "extra_forbidden", "loc": ("query", name), "known": known}
        elif number > 1:
            yield {"type": "repeated", "loc": ("query", name), "msg": f"given {number} times, expected once"}
