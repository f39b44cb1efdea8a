"""`sparke memories`: a memory to a file and back, over HTTP. Both go on where they were left off."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import typer

from app.client import CHUNK_BYTES, OCTETS, ServiceClient, checked, mapped_errors
from app.domain.ids import parse_memory_name
from app.errors import ConfigurationError, InvalidArchive, InvalidRequest, NotFound
from app.memory.archive import ArchiveEnd, ArchiveHeader, ArchiveReader, EndRead, HeadRead, Progress

MAX_FRESH_STARTS = 3
PATIENCE = httpx.Timeout(60.0, read=600.0)  # what is passed over, or checked at the end, takes its time

Show = Callable[[int], None]
"""Told how far something is, of the number that its bar has."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """What a file holds of an archive: up to `progress` all of it is whole. `end` is None where that is not the end."""

    header: ArchiveHeader | None
    progress: Progress
    end: ArchiveEnd | None


def read_archive(path: Path, *, is_part: bool = False) -> ArchiveFile:
    """Reads through an archive. Raises InvalidArchive with where, for one that ends early unless it is a part of one.

    Of a part, only what is whole counts. Raises ConfigurationError where the file cannot be read.
    """
    reader, header, end = ArchiveReader(), None, None
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                for read in reader.feed(chunk):
                    header = read.header if isinstance(read, HeadRead) else header
                    end = read.end if isinstance(read, EndRead) else end
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except InvalidArchive:
        if not is_part:
            raise
    if not is_part:
        reader.finish()
    return ArchiveFile(header, reader.progress, end)


class MemoryClient(ServiceClient):
    """The service's HTTP interface, as far as archives need it."""

    def find(self, wanted: str) -> dict[str, Any]:
        """The memory of an id, or the one of a name. Raises InvalidRequest for none, or several of the name."""
        found, after = [], None
        while True:
            query = "" if after is None else f"&after={after}"
            page = self.ask("GET", f"/v1/memories?limit=100{query}")
            found += [memory for memory in page["data"] if wanted in (memory["id"], memory["name"])]
            after = page["last_id"]
            if not page["has_more"]:
                break
        if len(found) != 1:
            several = ", ".join(memory["id"] for memory in found)
            raise InvalidRequest(
                f"several memories are named {wanted!r}: {several}; give an id"
                if found
                else f"there is no memory {wanted!r}"
            )
        return dict(found[0])

    def maybe(self, path: str) -> dict[str, Any] | None:
        """What is there; None where nothing is."""
        try:
            return self.ask("GET", path)
        except NotFound:
            return None

    def download(self, memory_id: str, part: Path, there: ArchiveFile, show: Show) -> ArchiveEnd:
        """Brings what a part of an archive lacks. Raises Unavailable where that breaks off, and InvalidArchive."""
        params = {"from_byte": there.progress.offset_bytes}
        if there.header is not None:
            params["version"] = there.header.version
        reader, end = ArchiveReader(there.header, there.progress), there.end
        if end is not None:
            return end
        try:
            with (
                self.receiving(f"/v1/memories/{memory_id}/export", params=params, timeout=PATIENCE) as chunks,
                part.open("ab") as file,
            ):
                file.truncate(there.progress.offset_bytes)
                for chunk in chunks:
                    file.write(chunk)
                    end = next((read.end for read in reader.feed(chunk) if isinstance(read, EndRead)), end)
                    show(reader.progress.num_entries)
        except OSError as error:
            raise ConfigurationError(f"{part} cannot be written: {error.strerror}") from error
        reader.finish()
        return end or ArchiveEnd(reader.progress.num_entries, 0)

    def upload(self, path: Path, params: dict[str, str | int], show: Show) -> dict[str, Any]:
        """Sends an archive from a byte on. Raises ServiceError."""
        from_byte = int(params["from_byte"])
        headers = {"content-type": OCTETS, "content-length": str(path.stat().st_size - from_byte)}
        with path.open("rb") as file, mapped_errors():
            file.seek(from_byte)
            return checked(
                self.http.post(
                    "/v1/memories/import",
                    params=params,
                    content=_told(file, from_byte, show),
                    headers=headers,
                    timeout=PATIENCE,
                )
            )


def run_export(wanted: str, out: Path, url: str, api_key: str | None) -> None:
    """Writes a memory's archive to a file, whole or not at all. Raises ServiceError."""
    part = out.with_name(f"{out.name}.part")
    with closing(MemoryClient(url, api_key)) as client:
        memory = client.find(wanted)
        with _Bar(memory["num_entries"], memory["id"]) as show:
            end = bring_archive(client, memory, part, show)
    try:
        part.replace(out)
    except OSError as error:
        raise ConfigurationError(
            f"{out} cannot be written: {error.strerror}; the whole archive is in {part}"
        ) from error
    typer.echo(out)
    typer.echo(f"{memory['id']}: {end.num_entries} entries, {out.stat().st_size} bytes", err=True)


def bring_archive(client: MemoryClient, memory: dict[str, Any], part: Path, show: Show) -> ArchiveEnd:
    """Brings all of an archive, however often that breaks off. Raises ServiceError.

    Where the rest does not fit what has come, as after something was forgotten, it is begun anew, so many times.
    """
    num_fresh = 0

    def bring() -> ArchiveEnd:
        nonlocal num_fresh
        while True:
            there = _read_part(part, memory)
            try:
                return client.download(memory["id"], part, there, show)
            except InvalidRequest as error:
                if (
                    there.header is None or num_fresh == MAX_FRESH_STARTS
                ):  # the first: nothing had come before
                    raise
                typer.echo(f"Beginning anew: {error.message}", err=True)
            num_fresh += 1
            part.unlink()

    return client.patiently(bring)


def _read_part(part: Path, memory: dict[str, Any]) -> ArchiveFile:
    """What is whole of a part, if one is there and it is one of this memory."""
    nothing = ArchiveFile(None, Progress(), None)
    there = read_archive(part, is_part=True) if part.exists() else nothing
    header = there.header
    if header is None:  # not even that is whole
        return nothing
    of, made_at_s = f"{header.latent_space}.{header.name}", header.created_at_ms // 1000
    if (of, made_at_s) == (memory["id"], memory["created_at"]):
        return there
    which = "one of this name that is no more" if of == memory["id"] else of
    typer.echo(f"Beginning anew: {part} is of another memory, {which}", err=True)
    return nothing


def run_import(path: Path, url: str, api_key: str | None, name: str | None) -> None:
    """Makes a memory of an archive that was looked through before. Raises ServiceError.

    The import's id follows from the archive and the name, so a second call goes on with it.
    """
    there = read_archive(path)
    header, size_bytes = there.header, there.progress.offset_bytes
    if header is None:
        raise InvalidArchive(f"{path} has no header")
    target = parse_memory_name(name) if name else header.name
    import_id = f"imp_{hashlib.sha256(f'{there.progress.digest_hex} {target}'.encode()).hexdigest()[:28]}"
    with closing(MemoryClient(url, api_key)) as client, _Bar(size_bytes, target) as show:

        def send() -> dict[str, Any]:
            begun = client.maybe(f"/v1/memories/import/{import_id}")
            if begun is None:
                _refuse_to_mix(client.maybe(f"/v1/memories/{header.latent_space}.{target}"))
            elif begun["status"] == "completed":
                return begun
            from_byte = 0 if begun is None else begun["received_bytes"]
            return client.upload(path, {"name": target, "import_id": import_id, "from_byte": from_byte}, show)

        done = client.patiently(send)
        show(size_bytes)
    for warning in done["warnings"]:
        typer.echo(f"Warning: {warning}", err=True)
    typer.echo(done["memory_id"])
    typer.echo(f"{done['num_entries']} entries, version {done['version']}", err=True)


def describe_archive(path: Path) -> str:
    """What an archive says of itself, once it was read to its end. Raises InvalidArchive and ConfigurationError."""
    there = read_archive(path)
    header, end = there.header, there.end
    if header is None or end is None:
        raise InvalidArchive(f"{path} has no header")
    lines = {
        "memory": f"{header.latent_space}.{header.name}",
        "version": header.version,
        "entries": end.num_entries,
        "dimensions": f"{header.feature_dim} feature, {header.prompt_dim} prompt",
        "created_at_ms": header.created_at_ms,
        "bytes": there.progress.offset_bytes,
        "digest": there.progress.digest_hex,
    }
    return "\n".join(f"{name}\t{value}" for name, value in lines.items())


def _refuse_to_mix(memory: dict[str, Any] | None) -> None:
    if memory is not None and memory["version"] > 0:
        raise InvalidRequest(
            f"memory {memory['id']} has versions already, which those of an archive would get mixed up with; give another"
            " name with --name"
        )


def _told(file: IO[bytes], from_byte: int, show: Show) -> Iterator[bytes]:
    at = from_byte
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        at += len(chunk)
        show(at)


class _Bar:
    """A progress bar on standard error that is told how far it is."""

    def __init__(self, length: int, label: str) -> None:
        self._bar = typer.progressbar(length=max(length, 1), label=label, file=sys.stderr)
        self._shown = 0

    def __enter__(self) -> Show:
        self._bar.__enter__()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__(None, None, None)

    def _show(self, at: int) -> None:
        self._bar.update(at - self._shown)
        self._shown = at
