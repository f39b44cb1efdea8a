"""How many jobs of a tenant may still wait for a model, in the headers that clients of the OpenAI API know."""

from app.errors import QueueFull
from app.jobs.types import Accepted

LIMIT = "x-ratelimit-limit-requests"
REMAINING = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"


def accepted_headers(accepted: Accepted) -> dict[str, str]:
    """The bound and what is left of it.

    Without the time of a reset: how long the oldest has waited says how fast jobs leave only where the queue is full
    of what came after it.
    """
    return {LIMIT: str(accepted.max_waiting), REMAINING: str(accepted.num_free)}


def refused_headers(error: QueueFull) -> dict[str, str]:
    """The bound, of which nothing is left; nothing where it was not the tenant's bound that was reached."""
    if error.limit is None:
        return {}
    reset = {} if error.reset_after_s is None else {RESET: write_duration(error.reset_after_s)}
    return {LIMIT: str(error.limit), REMAINING: "0", **reset}


def write_duration(duration_s: int) -> str:
    """`12s`, `6m0s`, `1h0m5s`: as the OpenAI API writes it."""
    minutes, seconds = divmod(duration_s, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
