"""Sending spans to a collector: where the environment names one, and the extra `otel` is there. Else nothing is loaded."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog
from opentelemetry import trace

from app.settings import traces_wanted

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_log = structlog.get_logger(__name__)


@contextmanager
def exporting_traces(name: str) -> Iterator[None]:
    """Sends the spans of this process, called `name` unless OTEL_SERVICE_NAME says otherwise, for as long as the block lasts.

    Sampling, batching and where to send is read by OpenTelemetry itself, from its own variables. Whatever is wrong with it is
    logged, and images are made all the same. Once for each process.
    """
    wanted = traces_wanted()
    if wanted.refusal:
        _log.warning("traces_not_exported", reason=wanted.refusal)
    elif wanted.is_wanted and not _is_installed():
        _log.warning("traces_not_exported", reason="install the extra otel: pip install 'sparke[otel]'")
    elif wanted.is_wanted:
        with _exporting(name):
            yield
        return
    yield


def _is_installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ImportError:
        return False


@contextmanager
def _exporting(name: str) -> Iterator[None]:
    provider = None
    try:
        provider = _open_provider(name)
    except ValueError as error:
        _log.warning("traces_not_exported", reason=f"a variable of OpenTelemetry is wrong: {error}")
    if provider is None:
        yield
        return
    trace.set_tracer_provider(provider)
    _log.info("traces_exported", service=name)
    try:
        yield
    finally:
        provider.shutdown()


def _open_provider(name: str) -> "TracerProvider":
    """What sends spans. ValueError for a number of OpenTelemetry's own variables that makes no sense."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - of the extra
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - likewise
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - likewise
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - likewise

    own = {
        "service.name": name,
        "service.version": version("sparke"),
        "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
    }
    provider = TracerProvider(
        resource=Resource.create().merge(Resource(own)).merge(OTELResourceDetector().detect()),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
