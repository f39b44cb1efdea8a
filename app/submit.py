"""`sparke batch submit`: a file of lines to a service over HTTP, and its answers back. Goes on where it was left off."""

import hashlib
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError

from app.client import POLL_S, ServiceClient, checked, mapped_errors
from app.errors import ConfigurationError, NotFound

_ENDPOINT = "/v1/images/generations"
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class Note:
    """What is kept beside the file: where it was sent, as which file and batch, and a digest of what was sent."""

    url: str
    digest: str
    file_id: str | None = None
    batch_id: str | None = None


_NOTE = TypeAdapter(Note)


class BatchClient(ServiceClient):
    """The service's HTTP interface, as far as a batch needs it. A service that is away for a while is waited for."""

    def upload(self, path: Path) -> str:
        """Sends a file; its id. Raises ServiceError."""
        with path.open("rb") as lines, mapped_errors():
            answer = self.http.post(
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": (path.name, lines, "application/jsonl")},
                timeout=None,  # however long it takes
            )
        return str(checked(answer)["id"])

    def create(self, file_id: str) -> str:
        """Makes a batch of a file, or finds the one that an earlier try has made; its id. Raises ServiceError."""
        body = {"input_file_id": file_id, "endpoint": _ENDPOINT, "completion_window": "24h"}
        made = self.patiently(lambda: self._find(file_id) or self.once("POST", "/v1/batches", json=body))
        return str(made["id"])

    def _find(self, file_id: str) -> dict[str, Any] | None:
        found = self.once("GET", "/v1/batches", params={"limit": 100})["data"]
        return next((batch for batch in found if batch["input_file_id"] == file_id), None)

    def cancel(self, batch_id: str) -> None:
        """Cancels a batch. Raises ServiceError, also where it has ended."""
        self.ask("POST", f"/v1/batches/{batch_id}/cancel")

    def show(self, batch_id: str) -> dict[str, Any]:
        """How a batch stands. Raises ServiceError."""
        return self.ask("GET", f"/v1/batches/{batch_id}")

    def download(self, file_id: str, path: Path) -> None:
        """Writes a file's bytes, whole or not at all. Raises ServiceError, and OSError."""
        part = path.with_name(f"{path.name}.part")
        with self.receiving(f"/v1/files/{file_id}/content") as chunks, part.open("wb") as target:
            for chunk in chunks:
                target.write(chunk)
        part.replace(path)


def note_path_of(path: Path) -> Path:
    """Where the note of a file lies."""
    return path.with_name(f"{path.name}.batch.json")


class Submission:
    """One file on its way through a batch. A note beside it says how far it is, so a second call goes on."""

    def __init__(self, client: BatchClient, path: Path) -> None:
        self._client = client
        self._path = path
        self._note_path = note_path_of(path)

    def start(self) -> str:
        """The batch of the file: the one that the note names, or a new one. Raises ServiceError."""
        note = self._read_note()
        if note.file_id is None:
            typer.echo(f"Sending {self._path} ({self._path.stat().st_size / 1e6:.1f} MB)", err=True)
            note = self._write(replace(note, file_id=self._client.upload(self._path)))
        if note.batch_id is None:
            note = self._write(replace(note, batch_id=self._client.create(note.file_id or "")))
        return str(note.batch_id)

    def cancel(self) -> str:
        """Cancels the batch that the note names; one that has ended stays as it is. Raises ServiceError."""
        batch_id = self._read_note().batch_id
        if batch_id is None:
            raise ConfigurationError(f"there is nothing to cancel: {self._note_path} names no batch")
        if self._client.show(batch_id)["status"] not in _ENDED:
            self._client.cancel(batch_id)
        return batch_id

    def follow(self, batch_id: str, *, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
        """Shows how far the batch is until it has ended. Raises ServiceError."""
        batch = self._client.show(batch_id)
        while batch["status"] == "validating":
            sleep(POLL_S)
            batch = self._client.show(batch_id)
        total, shown = batch["request_counts"]["total"], 0
        with typer.progressbar(length=max(total, 1), label=batch_id, file=sys.stderr) as bar:
            while True:
                counts = batch["request_counts"]
                done = min(counts["completed"] + counts["failed"], total)
                bar.update(done - shown)
                shown = done
                if batch["status"] in _ENDED:
                    return batch
                sleep(POLL_S)
                batch = self._client.show(batch_id)

    def fetch(self, batch: dict[str, Any], folder: Path) -> list[Path]:
        """Brings the files that the batch made. Raises ServiceError, and ConfigurationError where they cannot be kept."""
        fetched = []
        for member, kind in (("output_file_id", "output"), ("error_file_id", "error")):
            if batch[member] is None:
                continue
            path = folder / f"{self._path.stem}.{kind}.jsonl"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._client.download(batch[member], path)
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
            fetched.append(path)
        return fetched

    def _read_note(self) -> Note:
        fresh = Note(self._client.url, _digest(self._path))
        if not self._note_path.exists():
            return fresh
        try:
            note = _NOTE.validate_json(self._note_path.read_bytes())
        except ValidationError as error:
            raise ConfigurationError(f"{self._note_path} is no note of a batch; remove it") from error
        if (note.url, note.digest) != (fresh.url, fresh.digest):
            what = "was sent to another service" if note.url != fresh.url else "has changed since it was sent"
            raise ConfigurationError(
                f"{self._path} {what} ({note.url}, batch {note.batch_id}); remove {self._note_path} to begin anew"
            )
        return note

    def _write(self, note: Note) -> Note:
        part = self._note_path.with_name(f"{self._note_path.name}.part")
        try:
            part.write_bytes(_NOTE.dump_json(note))
            part.replace(self._note_path)
        except OSError as error:
            raise ConfigurationError(f"{self._note_path} cannot be written: {error.strerror}") from error
        return note


def run_submit(path: Path, url: str, api_key: str | None, *, out: Path, is_cancelled: bool) -> int:
    """Submits a file, or goes on with it, or cancels it; the exit code. Raises ServiceError.

    What the note names and the service has no more is not sent anew by itself: whoever sends a file twice has its images twice.
    """
    with closing(BatchClient(url, api_key)) as client:
        try:
            return _submit(client, path, out, is_cancelled=is_cancelled)
        except NotFound as error:
            raise ConfigurationError(
                f"{error.message}. {note_path_of(path)} names it; remove that note to have all images of {path} made anew"
            ) from error


def _submit(client: BatchClient, path: Path, out: Path, *, is_cancelled: bool) -> int:
    submission = Submission(client, path)
    batch_id = submission.cancel() if is_cancelled else submission.start()
    try:
        batch = submission.follow(batch_id)
    except KeyboardInterrupt:
        typer.echo(
            f"\n{batch_id} goes on without you. Call again to follow it, or with --cancel to end it.",
            err=True,
        )
        return 130
    for fault in (batch["errors"] or {"data": []})["data"] if batch["status"] == "failed" else ():
        typer.echo(f"{_place_of(fault)}: {fault['message']}", err=True)
    for fetched in submission.fetch(batch, out):
        typer.echo(fetched)
    counts = batch["request_counts"]
    typer.echo(f"{batch['status']}: {counts['completed']} done, {counts['failed']} failed", err=True)
    is_whole = batch["status"] == "completed" and counts["failed"] == 0
    return 0 if is_whole else 1


def _place_of(fault: dict[str, Any]) -> str:
    return "the file" if fault["line"] is None else f"line {fault['line']}"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as lines:
            return hashlib.file_digest(lines, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
