"""`sparke references`: pictures of one's own to a memory of a running service, over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli_archives import ApiKey, Url

references = typer.Typer(
    no_args_is_help=True, help="Pictures of your own, to lead images away from or toward."
)

_URL = "http://127.0.0.1:8000"


@references.command("add")
def add_pictures(
    name: Annotated[str, typer.Argument(help="The memory that they go to; it is made where there is none.")],
    pictures: Annotated[
        list[Path], typer.Argument(exists=True, help="PNG, JPEG and WebP files, and folders of them.")
    ],
    prompt: Annotated[str, typer.Option(help="What they show.")] = "",
    model: Annotated[
        str | None, typer.Option(help="Whose latent space; if absent, the first model's.")
    ] = None,
    *,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Send pictures and print the memory's id.

    After Ctrl-C call again within a day, with the same pictures: what has come is not remembered twice.
    """
    from app.sending import Wanted, run_add  # noqa: PLC0415 - each command loads what it needs

    run_add(Wanted(name, prompt, model), pictures, url, api_key)
