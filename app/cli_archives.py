"""`sparke memories export`, `import` and `check`: a memory to a file and back, of a running service, over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli_memories import memories

__all__ = ["memories"]

Url = Annotated[str, typer.Option(help="The service.")]
ApiKey = Annotated[str | None, typer.Option(envvar="SPARKE_API_KEY", help="A key of yours.")]
Archive = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An archive of a memory.")]

_URL = "http://127.0.0.1:8000"


@memories.command("export")
def export_memory(
    memory: Annotated[str, typer.Argument(help="The memory's id, or its name where only one has it.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where the archive goes.")],
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Write a memory to a file, checked as it comes. After Ctrl-C call again: it goes on from what has come."""
    from app.transfers import run_export  # noqa: PLC0415 - each command loads what it needs

    run_export(memory, out, url, api_key)


@memories.command("import")
def import_memory(
    file: Archive,
    name: Annotated[str | None, typer.Option(help="The memory's name; if absent, the archive's own.")] = None,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Make a memory of an archive and print its id. After Ctrl-C call again: it goes on from what has come."""
    from app.transfers import run_import  # noqa: PLC0415 - each command loads what it needs

    run_import(file, url, api_key, name)


@memories.command("check")
def check_archive(file: Archive) -> None:
    """Read an archive to its end and print what it says of itself; an error, with where, if it is not whole."""
    from app.transfers import describe_archive  # noqa: PLC0415 - each command loads what it needs

    typer.echo(describe_archive(file))
