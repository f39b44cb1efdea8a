"""Downloading a pipeline from the hub before it is loaded, so that somebody can be told how far that is."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

from sparke_engine.diffusion.hub import hub_answers, is_on_hub

OnBytes = Callable[[int, int], None]

_OTHER_WEIGHTS = ("*.fp16*", "*.bf16*", "*.non_ema*")  # of the same parts, in forms that nobody asks for
_KINDS = ("json", "txt", "model", "safetensors")


def fetch_pipeline(source: str, revision: str | None, on_bytes: OnBytes) -> bool:
    """Downloads the parts of a hub id's pipeline into the hub's cache; `on_bytes(done, total)` from threads of its own.

    The total grows while files are found. An InterruptedError of `on_bytes` breaks the download off. A folder, a built-in model and what is in the cache is left alone. What cannot be had
    is no error here: whoever loads the pipeline downloads what is missing, and says what is wrong. False where the hub does not answer, of
    which nothing is asked then.
    """
    if not is_on_hub(source):
        return True
    if not hub_answers():
        return False
    from huggingface_hub import hf_hub_download, snapshot_download  # noqa: PLC0415 - a second that folders do without

    over = Event()
    try:
        with suppress(Exception):  # the hub's client has no class for what a proxy may answer
            index = Path(hf_hub_download(source, "model_index.json", revision=revision)).read_text(
                encoding="utf-8"
            )
            wanted = [f"{part}/*.{kind}" for part in _parts_of(json.loads(index)) for kind in _KINDS]
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=["model_index.json", *wanted],
                ignore_patterns=list(_OTHER_WEIGHTS),
                tqdm_class=_counting(on_bytes, over),
            )
    finally:
        over.set()
    return True


def _parts_of(index: dict[str, Any]) -> Iterator[str]:
    """The folders that a pipeline's index names: `"unet": ["diffusers", "UNet2DConditionModel"]`."""
    for name, value in index.items():
        if (
            not name.startswith("_")
            and isinstance(value, list)
            and all(isinstance(each, str) for each in value)
        ):
            yield name


def _counting(on_bytes: OnBytes, over: Event) -> type[Any]:
    """The hub's bars, drawn nowhere. Of the two that count bytes, the network's and the disk's, the one that is ahead is told."""
    from tqdm.auto import tqdm  # noqa: PLC0415 - with the hub's client

    lock, told = Lock(), [0]

    class Counting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **members: Any) -> None:
            super().__init__(*args, **{**members, "file": io.StringIO(), "leave": False})

        def display(self, *_: Any, **__: Any) -> bool:  # also where the total has grown
            with suppress(InterruptedError):  # a bar that is closed is drawn once more
                self._tell()
            return True

        def update(self, n: float | None = 1) -> bool | None:
            updated: bool | None = super().update(n)
            self._tell()
            return updated

        def _tell(self) -> None:
            if (
                self.unit == "B" and self.total and not over.is_set()
            ):  # bars that are collected draw once more
                with lock:
                    told[0] = max(told[0], int(self.n))
                    on_bytes(told[0], max(told[0], int(self.total)))

    return Counting
