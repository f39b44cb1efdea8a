"""What every test may use."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from structlog.typing import ExcInfo

# Before anything imports the engine: its annotations' shapes are checked at run time under pytest, and only there.
# An int may stand for a float, as in every type checker. `demo` states no shapes in annotations and stays out: beartype
# knows no `Self` in a method that is decorated alone.
install_import_hook(
    [
        f"sparke_engine.{name}"
        for name in ("baselines", "core", "diffusion", "errors", "guidance", "memory_bank", "scores", "types")
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def _write_error(stream: TextIO, exc_info: ExcInfo) -> None:
    from app.telemetry.faults import describe_error  # noqa: PLC0415 - after the hook, as everything of ours

    stream.write(describe_error(exc_info[1], shows_all=True) + "\n")


# What is logged in this process, by way of the standard library as in the service. structlog's own defaults do two things that no thread beside a
# test may do: rich writes errors with the locals of all frames, down to those of the event loop; and they print without a file, which holds
# no reference to sys.stdout, so that pytest, which puts another in its place, frees it under the thread that is writing: a segmentation fault.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=_write_error),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

# On a busy machine the time of an example says nothing, and neither does that of making one up.
settings.register_profile("shared_cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared_cores")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny randomly initialised pipelines: `sd`, `sdxl`, `sd3`, `flux`, `pixart` and `sana`."""
    tiny = runpy.run_path(str(Path(__file__).with_name("tiny_families.py")))
    return tiny["save_served"](tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def save_lora() -> Callable[..., Path]:
    """Saves a small random LoRA for a pipeline's folder; see `tiny_loras.py`."""
    tiny = runpy.run_path(str(Path(__file__).with_name("tiny_loras.py")))
    save: Callable[..., Path] = tiny["save_lora"]
    return save


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3-compatible server, a process of its own; see `s3_server.py`."""
    scene = runpy.run_path(str(Path(__file__).with_name("s3_server.py")))
    with scene["S3Server"](tmp_path_factory.mktemp("s3")) as server:
        yield server
