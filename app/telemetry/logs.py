"""Structured logs on standard error: one JSON object a line, or columns for a person. Secrets never reach them."""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.settings import LogFormat, LogLevel

REDACTED = "[redacted]"
_SECRET_PARTS = ("prompt", "authorization", "api_key", "signing_key", "secret", "password", "cookie")
_SECRET_NAMES = frozenset({"key", "token", "signature", "redis_url"})


def configure_logs(
    log_format: LogFormat = "auto", level: LogLevel = "info", *, stream: TextIO | None = None
) -> None:
    """Sets up structlog for this process, and lets the standard library's loggers write warnings in the same form.

    `auto` is columns where the stream is a terminal, else JSON. Called once, in a main.
    """
    out = sys.stderr if stream is None else stream
    as_json = log_format == "json" or (log_format == "auto" and not out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        redact,
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the rich one shows locals, prompts among them
            )
        ]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(_level_number(level)),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _level_number(level)))


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replaces what must not be logged, at any depth, by name: prompts, keys, authorization."""
    return {name: _redact_value(name, value) for name, value in event.items()}


def _redact_value(name: str, value: object) -> object:
    if _is_secret(name):
        return REDACTED
    if isinstance(value, dict):
        return {inner: _redact_value(str(inner), found) for inner, found in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value("", found) for found in value]
    return value


def _is_secret(name: str) -> bool:
    lowered = name.lower().replace("-", "_")
    return lowered in _SECRET_NAMES or any(part in lowered for part in _SECRET_PARTS)


def _level_number(level: LogLevel) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
