"""`sparke doctor`: what is wrong with a set-up, and what to do."""

from typing import Annotated

import typer

from app.cli_redis import DataDir
from app.doctor.examination import LEAST_FREE_BYTES, examine_all
from app.doctor.finding import as_json, as_text, has_problem
from app.telemetry.logs import configure_logs


def run_doctor(
    data_dir: DataDir = None,
    redis_url: Annotated[str | None, typer.Option(help="A shared Redis [SPARKE_REDIS_URL].")] = None,
    least_free_bytes: Annotated[
        int,
        typer.Option(
            min=0, help="Less free space on a disk is a problem; less than four times that a warning."
        ),
    ] = LEAST_FREE_BYTES,
    *,
    as_machines_read: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Check the set-up of this machine and print what to fix. Ends with 1 where there is a problem. Changes nothing.

    It works while the service runs and while it does not. In the object store it writes a probe, which it removes.
    """
    configure_logs("auto", "error")
    findings = examine_all(least_free_bytes=least_free_bytes, data_dir=data_dir, redis_url=redis_url)
    typer.echo(as_json(findings) if as_machines_read else as_text(findings))
    raise typer.Exit(int(has_problem(findings)))
