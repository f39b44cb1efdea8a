"""Spans of OpenTelemetry: what is named in docs/tracing.md. Without an SDK that was set up, each costs tens of microseconds and says nothing.

Attributes are numbers and ids, never prompts. Of an error a span has the class and our code.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict, WrappedLogger

from app.telemetry.faults import name_of

Attribute = str | int | float | bool
Told = Mapping[str, Attribute]

_W3C = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("sparke")


def carried() -> dict[str, str]:
    """The current span as headers of the W3C, for whoever goes on with it elsewhere; empty where there is none."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


def shown() -> dict[str, str]:
    """The current span as the header `traceparent`, for a stranger: only where it is recorded here, and nothing of `tracestate`."""
    if not trace.get_current_span().is_recording():
        return {}
    return {name: value for name, value in carried().items() if name == "traceparent"}


def context_of(headers: Mapping[str, str]) -> Context:
    """The context that headers carry; what cannot be read is none."""
    return _W3C.extract(headers, context=Context())


@contextmanager
def span(
    name: str,
    told: Told | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Context | None = None,
    links: Sequence[Span] = (),
) -> Iterator[Span]:
    """A span as long as the block lasts, the current one within it. An error that leaves the block is its status."""
    linked = [Link(each.get_span_context()) for each in links if each.get_span_context().is_valid]
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=_named(told),
        links=linked,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            note_error(current, error)
            raise


def start_span(
    name: str, told: Told, *, kind: SpanKind = SpanKind.INTERNAL, parent: Context | None = None
) -> Span:
    """A span that its caller ends, and makes the current one where it is."""
    return _tracer.start_span(name, context=parent, kind=kind, attributes=_named(told))


def note(current: Span, told: Told) -> None:
    """Gives a span further attributes."""
    current.set_attributes(_named(told))


def note_error(current: Span, error: BaseException) -> None:
    """Says that a span ended with an error, and not what the error says."""
    current.set_status(StatusCode.ERROR)
    current.set_attribute("error.type", name_of(error))


def past_span(name: str, start_ns: int, end_ns: int, *, parent: Context | None = None) -> None:
    """A span of what is over by now, from and to a time of the wall clock."""
    _tracer.start_span(name, context=parent, start_time=start_ns).end(max(start_ns, end_ns))


def now_ns() -> int:
    """The clock of spans."""
    return time.time_ns()


def trace_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Gives a line of the log the ids of the trace and the span that it belongs to."""
    found = trace.get_current_span().get_span_context()
    if found.is_valid:
        event["trace_id"] = trace.format_trace_id(found.trace_id)
        event["span_id"] = trace.format_span_id(found.span_id)
    return event


def _named(told: Told | None) -> dict[str, Attribute]:
    return {f"sparke.{name}": value for name, value in (told or {}).items()}
