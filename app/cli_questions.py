"""`sparke memories search`, `preview` and `stats`: questions to a running service, over HTTP."""

from typing import Annotated, Any

import typer

from app.cli_archives import ApiKey, Url, memories

__all__ = ["memories"]

Memory = Annotated[str, typer.Argument(help="The memory's id, or its name where only one has it.")]
Prompt = Annotated[str, typer.Argument(help="What an image would show.")]
Model = Annotated[str | None, typer.Option(help="Which model tells; if absent, one that a worker has.")]
Version = Annotated[int | None, typer.Option(min=0, help="The memory as it was then; if absent, as it is.")]

_URL = "http://127.0.0.1:8000"


@memories.command("search")
def search_memory(  # noqa: PLR0913 - the options
    memory: Memory,
    prompt: Prompt,
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many entries.")] = 10,
    min_similarity: Annotated[float | None, typer.Option(min=-1, max=1, help="None below it.")] = None,
    version: Version = None,
    model: Model = None,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """List the entries with the prompts nearest to one: similarity, version, when it was made, seed, image, prompt."""
    from app.questions import run_search  # noqa: PLC0415 - each command loads what it needs

    asked = {"limit": limit, "min_similarity": min_similarity, "version": version, "model": model}
    run_search(memory, {"prompt": prompt, **_given(asked)}, url, api_key)


@memories.command("preview")
def preview_memory(  # noqa: PLR0913 - the options
    memory: Memory,
    prompt: Prompt,
    *,
    strength: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How far images would be pushed; if absent, the model's default."),
    ] = None,
    num_neighbours: Annotated[int | None, typer.Option(min=1, help="At most so many take part.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=256, help="At most so many are listed.")] = 20,
    version: Version = None,
    model: Model = None,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """List what would guide images of a prompt: similarity, prompt kernel, weight, and the entry as `search` has it."""
    from app.questions import run_preview  # noqa: PLC0415 - each command loads what it needs

    diversity: dict[str, Any] = _given({"strength": strength, "num_neighbours": num_neighbours})
    if version is not None:
        diversity["memory"] = {"version": version}
    asked = _given({"limit": limit, "model": model})
    run_preview(memory, {"prompt": prompt, "diversity": diversity, **asked}, url, api_key)


@memories.command("stats")
def show_stats(
    memory: Memory,
    *,
    sample: Annotated[int, typer.Option(min=0, max=2000, help="Score at most so many entries.")] = 1000,
    model: Model = None,
    url: Url = _URL,
    api_key: ApiKey = None,
) -> None:
    """Print size, scores and growth, a line each: how many images a memory is worth."""
    from app.questions import run_stats  # noqa: PLC0415 - each command loads what it needs

    run_stats(memory, _given({"sample": sample, "model": model}), url, api_key)


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
