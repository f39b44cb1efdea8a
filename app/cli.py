"""The `sparke` command. Results go to standard output, everything else to standard error."""

import signal
import sys
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli_audit import show_audit
from app.cli_doctor import run_doctor
from app.cli_keys import keys
from app.cli_migration import redis
from app.cli_redis import DataDir, read_settings, tell_of_unknown, warn_of_unknown
from app.cli_references import references
from app.cli_shaping import memories
from app.cli_tenants import tenants
from app.cli_webhooks import webhooks
from app.errors import ConfigurationError, ServiceError
from app.serve import EXIT_CONFIGURATION, die_with_parent, known_redis_url, run_serve
from app.settings import let_threads_sleep

if TYPE_CHECKING:
    from app.calibrate import Outcome

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
cli.add_typer(keys, name="keys")
cli.add_typer(tenants, name="tenants")
batch = typer.Typer(no_args_is_help=True, help="Many prompts in one file, through a running service.")
cli.add_typer(batch, name="batch")
cli.add_typer(webhooks, name="webhooks")
cli.add_typer(memories, name="memories")
cli.add_typer(references, name="references")
cli.add_typer(redis, name="redis")
cli.command("audit")(show_audit)
cli.command("doctor")(run_doctor)

Host = Annotated[str | None, typer.Option(help="Address to listen on [SPARKE_HOST, else 127.0.0.1].")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port [SPARKE_PORT, else 8000]; 0: a free one.")
]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:N [SPARKE_DEVICE, else auto].")
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto, cpu, mps, cuda or cuda:N; several, separated by commas, have a worker each [SPARKE_DEVICE, else auto].",
    ),
]
RedisUrl = Annotated[str | None, typer.Option(help="A shared Redis [SPARKE_REDIS_URL].")]

_TELL_THEMSELVES = {"serve", "api", "worker", "doctor"}  # of variables that nothing heeds, in their way


def show_version(is_asked: bool) -> None:  # noqa: FBT001 - as typer calls it
    """Prints the version of the package, and ends."""
    if is_asked:
        typer.echo(f"sparke {version('sparke')}")
        raise typer.Exit


@cli.callback()
def about(
    context: typer.Context,
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Text to image that remembers. Every setting is also a variable SPARKE_*; see docs/configuration.md."""
    if context.invoked_subcommand not in _TELL_THEMSELVES:
        tell_of_unknown()


@cli.command()
def serve(host: Host = None, port: Port = None, data_dir: DataDir = None, device: Devices = None) -> None:
    """Run everything on this machine: Redis, a worker, and the API. Prints its URL when it is ready."""
    settings = read_settings(host=host, port=port, data_dir=data_dir, device=device)
    warn_of_unknown()
    run_serve(settings)


@cli.command()
def api(host: Host = None, port: Port = None, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Run the API alone, against a shared Redis."""
    from app.http.process.main import run_api  # noqa: PLC0415 - each command loads what it needs

    settings = read_settings(host=host, port=port, data_dir=data_dir, redis_url=redis_url)
    warn_of_unknown()
    run_api(settings, known_redis_url(settings))


@cli.command()
def worker(
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    device: Device = None,
    *,
    metrics_port: Annotated[int | None, typer.Option(hidden=True)] = None,
    parent_pid: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run one worker: it loads the models and makes images until SIGINT or SIGTERM."""
    if parent_pid is not None:
        die_with_parent(parent_pid)
    try:
        settings = read_settings(
            data_dir=data_dir, redis_url=redis_url, device=device, worker_metrics_port=metrics_port
        )
        connected = settings.model_copy(update={"redis_url": known_redis_url(settings)})
        if parent_pid is not None and settings.memory_snapshots_dir is None:
            kept = {"memory_snapshots_dir": settings.data_dir / "snapshots"}
            connected = connected.model_copy(update=kept)
        if parent_pid is not None and settings.worker_metrics_port is None:
            connected = connected.model_copy(update={"worker_metrics_port": 0})
        if parent_pid is None:
            warn_of_unknown()
        let_threads_sleep()
        from app.worker.main import run_worker  # noqa: PLC0415 - loads torch, which no other command needs

        run_worker(connected)
    except ConfigurationError as error:
        if parent_pid is None:
            raise
        typer.echo(f"sparke worker: {error.message}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from error


@cli.command("calibrate")
def calibrate_model(  # noqa: PLR0913, PLR0917 - each is an option of the command
    model: Annotated[str, typer.Argument(help="A model of the catalogue [SPARKE_MODELS_FILE].")],
    prompts: Annotated[
        Path,
        typer.Option(help="Prompts, one a line; blank lines divide groups of paraphrases, if there are any."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, writable=True, help="Where to write the preset. Else it is printed."),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Images of each prompt, or group, in each trial.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; if absent, the model's default.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; if absent, the model's default.")
    ] = None,
    keep: Annotated[
        float, typer.Option(help="What images at strength 1 keep of what unguided ones say of their prompts.")
    ] = 0.6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    eta_factor: Annotated[
        list[float], typer.Option(help="Times the preset's eta is tried at; give it several times.")
    ] = [0.25, 0.5, 1.0, 2.0, 4.0],  # noqa: B006 - typer's way to state a default; it is not written to
) -> None:
    """Make a diversity preset for a model from a small sample of its own images. Needs no judge."""
    settings = read_settings()
    if out is not None and not out.parent.is_dir():
        raise ConfigurationError(f"--out: there is no folder {out.parent}")
    let_threads_sleep()
    from app.calibrate import Choices, run_calibration  # noqa: PLC0415 - loads torch, as the worker does

    found = run_calibration(
        settings,
        model,
        prompts,
        Choices(images, steps, guidance_scale, keep, seed, tuple(eta_factor)),
        on_trial=lambda done, total: typer.echo(f"trial {done} of {total}", err=True),
    )
    hand_over(found, out)


def hand_over(found: "Outcome", out: Path | None) -> None:
    """Write and print a calibration, and say where it goes. What cannot be written is printed, then ConfigurationError."""
    if out is None:
        typer.echo(found.commented_toml, nl=False)
        typer.echo(
            "Put this below the model in the catalogue, in place of its `diversity_preset` if it has one.",
            err=True,
        )
        return
    typer.echo(found.table, nl=False)
    try:
        out.write_text(found.commented_toml, encoding="utf-8")
    except OSError as error:
        typer.echo(f"\n{found.toml}", nl=False)
        raise ConfigurationError(
            f"--out: {out} cannot be written: {error.strerror}; the preset is printed instead"
        ) from error
    typer.echo(
        "Written. In the catalogue, as a path from there and in place of what the model has: "
        f'diversity_preset = "{out}"',
        err=True,
    )


@batch.callback()
def about_batches() -> None:
    """Many prompts in one file, through a running service."""


@batch.command("submit")
def submit_batch(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Lines of JSON, one a request.")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar="SPARKE_API_KEY", help="A key of yours.")] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Where answers and errors go.")] = Path(),
    *,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End the batch; what was done is fetched.")
    ] = False,
) -> None:
    """Send a file, wait for its images, and fetch the answers. After Ctrl-C the batch goes on: call again to follow it."""
    from app.submit import run_submit  # noqa: PLC0415 - each command loads what it needs

    raise typer.Exit(run_submit(file, url, api_key, out=out, is_cancelled=cancel))


def main() -> None:
    """The entry point: an error of the service is one message on standard error and an exit code.

    SIGTERM is asked for at once: the first process of a container has none by default, and a worker takes seconds to load torch.
    """
    signal.signal(signal.SIGTERM, _end)
    try:
        cli()
    except ServiceError as error:
        print(f"sparke: {error.message}", file=sys.stderr)  # noqa: T201 - what a command line does
        sys.exit(1)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
