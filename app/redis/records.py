"""Values kept in Redis as JSON. One that does not fit its schema is CorruptRecord."""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from app.errors import CorruptRecord

_T = TypeVar("_T")


def decode(adapter: TypeAdapter[_T], data: bytes, *, where: str) -> _T:
    """The value of some JSON. `where` begins the message of CorruptRecord."""
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise corrupt(error, where=where) from error


def corrupt(error: ValidationError, *, where: str) -> CorruptRecord:
    """What is wrong first, and in which member, without what the record holds."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return CorruptRecord(f"{where}: {place}: {first['msg']}")
