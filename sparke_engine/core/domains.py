"""Which numbers may be: positive, not negative, counts. NaN is none of them, and nothing is infinite."""

from sparke_engine.errors import InvalidArgument


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
