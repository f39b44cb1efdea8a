"""`sparke memories search`, `preview` and `stats`: what a running service's models tell of a memory, over HTTP."""

from contextlib import closing
from typing import Any

import httpx
import typer

from app.cli_redis import show_time
from app.transfers import MemoryClient

_PATIENCE = httpx.Timeout(60.0, read=600.0)  # a question waits for the batch that runs


def run_search(wanted: str, body: dict[str, Any], url: str, api_key: str | None) -> None:
    """Prints the entries that are nearest to a prompt. Raises ServiceError."""
    with closing(MemoryClient(url, api_key)) as client:
        answer = _ask(client, "POST", f"{client.find(wanted)['id']}/search", json=body)
    for entry in answer["data"]:
        typer.echo(f"{entry['similarity']:.4f}\t{_describe(entry)}")


def run_preview(wanted: str, body: dict[str, Any], url: str, api_key: str | None) -> None:
    """Prints how many entries would guide a prompt, how far they would push, and the nearest of them. Raises ServiceError."""
    with closing(MemoryClient(url, api_key)) as client:
        answer = _ask(client, "POST", f"{client.find(wanted)['id']}/preview", json=body)
    typer.echo(
        f"{answer['model']}, version {answer['memory_version']}: {answer['num_neighbours']} neighbours of"
        f" {answer['num_qualified']}, expected push {answer['expected_push']:.4f}",
        err=True,
    )
    for entry in answer["neighbours"]:
        numbers = f"{entry['similarity']:.4f}\t{entry['prompt_kernel']:.4f}\t{entry['weight']:.2f}"
        typer.echo(f"{numbers}\t{_describe(entry)}")


def run_stats(wanted: str, params: dict[str, Any], url: str, api_key: str | None) -> None:
    """Prints a memory's size, scores and growth, a number a line. Raises ServiceError."""
    with closing(MemoryClient(url, api_key)) as client:
        answer = _ask(client, "GET", f"{client.find(wanted)['id']}/stats", params=params)
    shown = {name: answer[name] for name in ("id", "version", "num_entries", "bytes")}
    for name, value in (shown | (answer["scores"] or {})).items():
        typer.echo(f"{name}\t{'' if value is None else value}")
    for point in answer["growth"]:
        typer.echo(f"growth\t{show_time(1000 * point['at'])}\t{point['version']}")


def _ask(client: MemoryClient, method: str, question: str, **members: Any) -> dict[str, Any]:
    """The answer, however long the service is away or busy."""
    path = f"/v1/memories/{question}"
    return client.patiently(lambda: client.once(method, path, timeout=_PATIENCE, **members))


def _describe(entry: dict[str, Any]) -> str:
    made_at = show_time(1000 * entry["created_at"])
    return f"{entry['version']}\t{made_at}\t{entry['seed']}\t{entry['image_id']}\t{entry['prompt'] or ''}"
