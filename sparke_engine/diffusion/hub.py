"""Whether the hub answers, asked once and shortly. Its own client tries for half a minute, and for minutes where nothing comes back."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

ANSWER_S = 3.0


def is_on_hub(source: str) -> bool:
    """Whether a model's source is a hub id: neither built in nor a folder."""
    return not source.startswith("builtin:") and not Path(source).exists()


def hub_answers(within_s: float = ANSWER_S) -> bool:
    """Whether the hub, or what HF_ENDPOINT names, answers within that time, and not that it can do no more.

    True where HF_HUB_OFFLINE is set: its client asks nobody then. In a thread that is left behind where it takes longer, for the
    look-up of a name knows no limit.
    """
    from huggingface_hub import constants, get_session  # noqa: PLC0415 - a second that folders do without

    if constants.HF_HUB_OFFLINE:
        return True
    answers: list[int] = []
    with suppress(Exception):  # as below
        get_session()  # it reads the machine's certificates when it is made, which is no wait for the hub

    def ask() -> None:
        with suppress(Exception):  # of whatever class: nothing answers
            answers.append(get_session().head(constants.ENDPOINT, timeout=within_s).status_code)

    thread = Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(within_s)
    return any(status < 500 and status != 429 for status in answers)


def cached_first(get: Callable[..., Any]) -> Any:
    """What `get` finds in the hub's cache alone; what is not all there it may try to get, for as long as the hub's client does."""
    try:
        return get(local_files_only=True)
    except OSError:
        return get()


def how_to_get(source: str) -> str:
    """What to do about a hub id whose files are not all here, while the hub does not answer."""
    from huggingface_hub import constants  # noqa: PLC0415 - likewise

    return (
        f"The hub, {constants.ENDPOINT}, does not answer. If files of {source} are missing in its cache,"
        f" {constants.HF_HUB_CACHE}: open the way there, name a mirror by HF_ENDPOINT, or run `hf download {source}`"
        " where the hub answers and bring that cache here, by HF_HOME."
    )
