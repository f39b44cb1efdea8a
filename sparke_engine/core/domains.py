"""Which values may be: of a type; positive, not negative, shares, counts. NaN is none of them, and nothing is infinite."""

from collections.abc import Sequence
from numbers import Real

from sparke_engine.errors import InvalidArgument


def check_type(name: str, value: object, kind: type, expected: str) -> None:
    """Raise InvalidArgument for a value of another type, with the type that it has."""
    if not isinstance(value, kind):
        raise InvalidArgument(f"{name} is {expected}, got a {type(value).__name__}")


def check_pair(what: str, value: object, expected: str) -> None:
    """Raise InvalidArgument for what is no sequence of two."""
    if not (isinstance(value, Sequence) and len(value) == 2):
        raise InvalidArgument(f"{what} a pair {expected}, got a {type(value).__name__}")


def check_share(name: str, value: object) -> None:
    """Raise InvalidArgument for what is no number in [0, 1]."""
    if not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise InvalidArgument(f"{name} is in [0, 1], got {value!r}")


def check_positive(owner: str, **values: float) -> None:
    """Raise InvalidArgument for a value that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise InvalidArgument(f"{owner}: {name} is positive and finite, got {value}")


def check_not_negative(owner: str, **values: float) -> None:
    """Raise InvalidArgument for a value that is negative, infinite or no number."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise InvalidArgument(f"{owner}: {name} is finite and not negative, got {value}")


def check_counts(owner: str, **values: float) -> None:
    """Raise InvalidArgument for a value that is no whole number from 1: 2.0 and True are none."""
    for name, value in values.items():
        if not (type(value) is int and value >= 1):
            raise InvalidArgument(f"{owner}: {name} is a whole number from 1, got {value!r}")
