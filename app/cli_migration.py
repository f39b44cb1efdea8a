"""`sparke redis`: what an operator does to the Redis of a service as a whole."""

import typer
from redis.asyncio import Redis

from app.audit.log import OpenAct
from app.cli_redis import DataDir, deed_of, read_settings, run_act
from app.errors import ConfigurationError
from app.jobs.workers import WorkerRegistry
from app.memory.migration import DATA_FORMAT, migrate
from app.redis.connection import check_server
from app.redis.replicas import Replicas

redis = typer.Typer(no_args_is_help=True, help="The Redis of a service as a whole.")


@redis.callback()
def about_redis() -> None:
    """The Redis of a service as a whole."""


@redis.command("migrate")
def migrate_data(data_dir: DataDir = None) -> None:
    """Bring what an older release has stored to the form of this one. Stop every other process first, and make a backup.

    It may be ended at any time and called again: it goes on from where it was.
    """
    settings = read_settings(data_dir=data_dir)

    async def run(client: Redis, _: Replicas, act: OpenAct) -> int:
        await check_server(client)
        registry = WorkerRegistry(client, ttl_s=settings.heartbeat_ttl_s)
        if workers := await registry.list_workers():
            names = ", ".join(worker.worker_id for worker in workers)
            raise ConfigurationError(
                f"there are workers that live, or did within the last {settings.heartbeat_ttl_s:g} s: {names}; stop every"
                " worker and every API process first"
            )
        num_logs = await migrate(client)
        act.note(num_logs=num_logs)
        return num_logs

    num_logs = run_act(settings, deed_of("data.migrate"), run, of_any_format=True)
    typer.echo(f"The data have the format {DATA_FORMAT}; {num_logs} logs were written anew.", err=True)
