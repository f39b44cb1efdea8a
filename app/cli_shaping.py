"""`sparke memories create`, `fork`, `rename` and `set`: memories of a running service made and shaped, over HTTP."""

from collections.abc import Mapping
from contextlib import closing
from typing import Annotated, Any

import typer

from app.cli_archives import ApiKey, Url
from app.cli_questions import memories
from app.errors import InvalidValue

__all__ = ["memories"]

MemoryArgument = Annotated[str, typer.Argument(help="The memory's id, or its name where only one has it.")]
MaxEntries = Annotated[int | None, typer.Option(min=0, help="How many it holds at most; 0: no cap.")]
MaxAgeS = Annotated[int | None, typer.Option(min=0, help="How old an entry becomes, in seconds; 0: no cap.")]
KeepPrompts = Annotated[
    bool | None,
    typer.Option(
        "--keep-prompts/--no-keep-prompts", help="Whether prompts are kept; without, those there go."
    ),
]
Frozen = Annotated[bool | None, typer.Option("--frozen/--no-frozen", help="Whether it takes nothing new.")]

_URL = "http://127.0.0.1:8000"


@memories.command("create")
def create_memory(  # noqa: PLR0913 - each is an option of the command
    name: Annotated[str, typer.Argument(help="Its name.")],
    latent_space: Annotated[
        str | None, typer.Option(help="Its latent space; if absent, the model's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model that has the latent space; if absent, the first.")
    ] = None,
    *,
    max_entries: MaxEntries = None,
    max_age_s: MaxAgeS = None,
    keep_prompts: KeepPrompts = None,
    frozen: Frozen = None,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Make a memory that holds nothing, and print its id."""
    place = {"name": name, "latent_space": latent_space, "model": model}
    settings = _settings(max_entries, max_age_s, keep_prompts=keep_prompts, frozen=frozen)
    body = {member: value for member, value in (place | settings).items() if value is not None}
    made = _once("POST", "/v1/memories", body, url=url, api_key=api_key)
    typer.echo(made["id"])


@memories.command("fork")
def fork_memory(
    memory: MemoryArgument,
    name: Annotated[str, typer.Argument(help="The new memory's name.")],
    version: Annotated[int | None, typer.Option(min=0, help="As it was then; if absent, as it is.")] = None,
    *,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Make a memory of what another one holds, and print its id."""
    body = {"name": name} | ({} if version is None else {"version": version})
    made = _once("POST", f"/v1/memories/{_find(memory, url, api_key)}/fork", body, url=url, api_key=api_key)
    typer.echo(made["id"])
    typer.echo(f"{made['num_entries']} entries, version {made['version']}", err=True)


@memories.command("rename")
def rename_memory(
    memory: MemoryArgument,
    name: Annotated[str, typer.Argument(help="Its new name.")],
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Give a memory another name, and print its id."""
    path = f"/v1/memories/{_find(memory, url, api_key)}"
    typer.echo(_once("PATCH", path, {"name": name}, url=url, api_key=api_key)["id"])


@memories.command("set")
def set_memory(
    memory: MemoryArgument,
    *,
    max_entries: MaxEntries = None,
    max_age_s: MaxAgeS = None,
    keep_prompts: KeepPrompts = None,
    frozen: Frozen = None,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Change settings of a memory; those that are not named stay."""
    settings = _settings(max_entries, max_age_s, keep_prompts=keep_prompts, frozen=frozen)
    if not settings:
        raise InvalidValue("give one of --max-entries, --max-age-s, --keep-prompts, --frozen")
    path = f"/v1/memories/{_find(memory, url, api_key)}"
    shaped = _once("PATCH", path, settings, url=url, api_key=api_key)
    for name in ("max_entries", "max_age_s", "keep_prompts", "frozen"):
        typer.echo(f"{name}\t{shaped[name]}")


def _settings(
    max_entries: int | None, max_age_s: int | None, *, keep_prompts: bool | None, frozen: bool | None
) -> dict[str, Any]:
    """Those that were named, as the service takes them."""
    caps = {"max_entries": max_entries, "max_age_s": max_age_s}
    named: dict[str, Any] = {name: value or None for name, value in caps.items() if value is not None}
    flags = {"keep_prompts": keep_prompts, "frozen": frozen}
    return named | {name: value for name, value in flags.items() if value is not None}


def _find(wanted: str, url: str, api_key: str | None) -> str:
    from app.transfers import MemoryClient  # noqa: PLC0415 - each command loads what it needs

    with closing(MemoryClient(url, api_key)) as client:
        return str(client.find(wanted)["id"])


def _once(
    method: str, path: str, body: Mapping[str, Any], *, url: str, api_key: str | None
) -> dict[str, Any]:
    """One request, which is not sent again: it may have been done."""
    from app.transfers import PATIENCE, MemoryClient  # noqa: PLC0415 - likewise

    with closing(MemoryClient(url, api_key)) as client:
        return client.once(method, path, json=dict(body), timeout=PATIENCE)
