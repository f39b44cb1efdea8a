"""Clocks that stand until a test moves them."""

from dataclasses import dataclass


@dataclass
class SecondsClock:
    """Tells `now_s`, in seconds."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


@dataclass
class MillisecondsClock:
    """Tells `now_ms`, Unix time in milliseconds."""

    now_ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        """Now."""
        return self.now_ms
