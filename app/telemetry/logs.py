"""Structured logs on standard error: one JSON object a line, or columns for a person. Secrets never reach them.

structlog writes through the standard library's loggers, so levels hold by module for ours and for those of libraries.
"""

import logging
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from app.settings import LogFormat, LogLevel, Settings
from app.telemetry.faults import describe_error
from app.telemetry.redaction import make_redact, withhold, without_secrets
from app.telemetry.tracing import trace_ids

OURS = ("app", "sparke_engine")


def configure_logs_of(settings: Settings) -> None:
    """Sets up this process's logs as the settings say."""
    configure_logs(
        settings.log_format,
        settings.log_level,
        levels=settings.log_levels,
        shows_prompts=settings.log_prompts,
    )


def configure_logs(
    log_format: LogFormat = "auto",
    level: LogLevel = "info",
    *,
    levels: Mapping[str, LogLevel] | None = None,
    shows_prompts: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Sets up the logs of this process: ours from `level` on, those of libraries from warnings on, and in the same form.

    `levels` are other levels for modules and what is in them, ours or not. `auto` is columns where the stream is a terminal, else
    JSON. Called once, in a main.
    """
    out = sys.stderr if stream is None else stream
    as_json = log_format == "json" or (log_format == "auto" and not out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        trace_ids,
    ]
    redact = make_redact(shows_prompts=shows_prompts)
    foreign: list[Processor] = [*shared, *([] if shows_prompts else [withhold])]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=foreign,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _fault_renderer(shows_all=shows_prompts),
                redact,
                structlog.processors.JSONRenderer()
                if as_json
                else structlog.dev.ConsoleRenderer(colors=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _level_number(level)))
    logging.captureWarnings(True)
    _set_levels({**dict.fromkeys(OURS, level), **(levels or {})})


def adopt_loggers(names: tuple[str, ...], levels: Mapping[str, LogLevel]) -> None:
    """Has libraries that write to standard error by themselves write into the logs instead; to be called once they are loaded."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    _set_levels(levels)


def _set_levels(levels: Mapping[str, LogLevel]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(_level_number(level))


def _fault_renderer(*, shows_all: bool) -> Processor:
    def format_fault(exc_info: ExcInfo) -> str:
        return without_secrets(describe_error(exc_info[1], shows_all=shows_all))

    render = structlog.processors.ExceptionRenderer(exception_formatter=format_fault)

    def render_fault(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.pop("stack_info", None)
        return render(logger, method, event)

    return render_fault


def _level_number(level: LogLevel) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
