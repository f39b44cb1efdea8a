"""`sparke references add`: pictures to a memory, some at a time, over HTTP."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from app.client import ServiceClient
from app.errors import ConfigurationError, InvalidRequest

PICTURES_AT_ONCE = 16
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_READ_S = 600.0  # a batch of images may be before them


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where pictures go, and what they show."""

    name: str
    prompt: str
    model: str | None

    @property
    def fields(self) -> dict[str, str]:
        """The form's fields; what is not given is left out."""
        given = {"name": self.name, "prompt": self.prompt, "model": self.model}
        return {name: value for name, value in given.items() if value}


def run_add(wanted: Wanted, places: Sequence[Path], url: str, api_key: str | None) -> None:
    """Sends the pictures, those of folders by their names. Raises ServiceError and ConfigurationError.

    Each request's key follows from what it sends, so a second call with the same pictures repeats none that has come, for as
    long as the service keeps keys.
    """
    files = list(_pictures(places))
    if not files:
        raise InvalidRequest("no picture there: expected files that end in .png, .jpg, .jpeg or .webp")
    answer: dict[str, Any] = {}
    with (
        closing(ServiceClient(url, api_key)) as client,
        typer.progressbar(length=len(files), label=wanted.name, file=sys.stderr) as bar,
    ):
        for start in range(0, len(files), PICTURES_AT_ONCE):
            some = files[start : start + PICTURES_AT_ONCE]
            answer = _send(client, wanted, some)
            bar.update(len(some))
    typer.echo(answer["id"])
    typer.echo(f"{answer['num_entries']} entries, version {answer['version']}", err=True)


def _send(client: ServiceClient, wanted: Wanted, files: Sequence[Path]) -> dict[str, Any]:
    key = _key_of(wanted, files)

    def send() -> dict[str, Any]:
        with ExitStack() as stack:
            opened = [(path.name, stack.enter_context(path.open("rb"))) for path in files]
            return client.once(
                "POST",
                "/v1/references",
                data=wanted.fields,
                files=[("image[]", file) for file in opened],
                headers={"idempotency-key": key},
                timeout=_READ_S,
            )

    return client.patiently(send)


def _pictures(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES)
        else:
            yield place


def _key_of(wanted: Wanted, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(repr(sorted(wanted.fields.items())).encode())
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    return f"references-{digest.hexdigest()[:40]}"
