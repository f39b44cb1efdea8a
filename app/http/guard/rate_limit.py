"""How much of its quotas a tenant has left, in the headers that clients of the OpenAI API know."""

from app.domain.quota import Remaining
from app.errors import QueueFull
from app.jobs.types import Accepted

LIMIT = "x-ratelimit-limit-requests"
REMAINING = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"
IMAGES_LIMIT = "x-ratelimit-limit-images"
IMAGES_REMAINING = "x-ratelimit-remaining-images"
IMAGES_RESET = "x-ratelimit-reset-images"


def accepted_headers(accepted: Accepted) -> dict[str, str]:
    """The bound on waiting jobs and what is left of it; of images a day, where they are bounded, the same.

    Without the time of a reset for jobs: how long the oldest has waited says how fast jobs leave only where the queue is
    full of what came after it.
    """
    headers = {LIMIT: str(accepted.max_waiting), REMAINING: str(accepted.num_free)}
    images = accepted.images
    if images is not None:
        headers |= {
            IMAGES_LIMIT: str(images.limit),
            IMAGES_REMAINING: str(images.num_left),
            IMAGES_RESET: write_duration(images.full_in_s),
        }
    return headers


def token_headers(tokens: Remaining) -> dict[str, str]:
    """The requests a minute, what is left of them, and when all of it is there again."""
    return {
        LIMIT: str(tokens.limit),
        REMAINING: str(tokens.num_left),
        RESET: write_duration(tokens.full_in_s),
    }


def refused_headers(error: QueueFull) -> dict[str, str]:
    """The bound, of which nothing is left; nothing where it was not the tenant's bound that was reached."""
    if error.limit is None:
        return {}
    names = [f"x-ratelimit-{part}-{error.counted}" for part in ("limit", "remaining", "reset")]
    left = {names[0]: str(error.limit), names[1]: str(error.num_left)}
    return left if error.reset_after_s is None else left | {names[2]: write_duration(error.reset_after_s)}


def write_duration(duration_s: int) -> str:
    """`12s`, `6m0s`, `1h0m5s`: as the OpenAI API writes it."""
    minutes, seconds = divmod(duration_s, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
