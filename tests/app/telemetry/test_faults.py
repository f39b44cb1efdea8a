"""What the description of an error has, and that it always has an end."""

import time

import pytest
import structlog

from app.telemetry.faults import describe_error

_MANY = 100_000  # far beyond what may be nested in calls


def _chained(number):
    """An error with so many causes, of which the first is `0`."""
    error = OSError("0")
    for index in range(1, number + 1):
        cause, error = error, OSError(str(index))
        error.__cause__ = cause
    return error


def _nested(number):
    """A group in a group in a group."""
    error = OSError("inmost")
    for _ in range(number):
        error = ExceptionGroup("a group", [error])
    return error


def test_causes_come_first():
    """With what was raised while another was handled; where that is hidden, it is left out."""
    described = describe_error(_chained(2))
    said = [line for line in described.splitlines() if line.startswith("OSError")]
    assert said == ["OSError: 0", "OSError: 1", "OSError: 2"]
    assert described.count("The above exception was the direct cause") == 2
    error = OSError("shown")
    error.__context__ = OSError("there")
    assert describe_error(error).startswith("OSError: there\n\nDuring handling of the above")
    error.__suppress_context__ = True
    assert describe_error(error) == "OSError: shown"


def test_a_circle_of_causes_ends():
    """Each is told once."""
    one, two = OSError("one"), OSError("two")
    one.__cause__, two.__cause__ = two, one
    assert describe_error(one).splitlines()[-1] == "OSError: one"
    assert describe_error(one).count("OSError: two") == 1


@pytest.mark.parametrize("make", [_chained, _nested])
def test_a_description_is_bounded(make):
    """However many causes there are, or groups within groups: the ends of the chain are told, and quickly."""
    error = make(_MANY)
    begun_s = time.monotonic()
    described = describe_error(error, shows_all=True)
    assert time.monotonic() - begun_s < 10
    assert len(described) < 20_000
    if make is _chained:
        assert "OSError: 0\n" in described
        assert described.endswith(f"OSError: {_MANY}")
        assert f"[{_MANY + 1 - 32} causes left out]" in described
    else:
        assert "left out" in described


class _Local:
    """Notes that somebody looked at it."""

    was_read = False

    def __repr__(self):
        type(self).was_read = True
        return "read"


def test_errors_that_tests_log_have_no_locals_and_are_not_printed(caplog, capsys):
    """As those that the service logs: nobody reads what lies in frames, of any library and any thread, nor writes to a file that goes meanwhile."""
    local = _Local()
    try:
        [].pop()
    except IndexError:
        structlog.get_logger().exception("failed")
    assert "IndexError: pop from empty list" in caplog.text
    assert capsys.readouterr().out == ""
    assert not local.was_read
