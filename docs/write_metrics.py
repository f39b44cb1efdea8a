"""Writes docs/metrics.md from the declarations of all metrics: `make docs`. A test fails where it is stale."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from app.telemetry.metrics import GROUPS
from app.telemetry.metrics.declaring import Declared, Label

TARGET = Path(__file__).with_name("metrics.md")

HEAD = """# Metrics

Written by `make docs` from `app/telemetry/metrics`. Do not edit.

Each process exposes its own, in the Prometheus text format. An API process does on `/metrics` of its port, without a key. A worker
does on a port of its own: `SPARKE_WORKER_METRICS_PORT` of `SPARKE_WORKER_METRICS_HOST`, not at all where there is none, but for the
worker of `sparke serve`, which then takes a free port of this machine. Comments at the head of an API process's answer name the
addresses of workers that listen on a loopback address. Any number of API processes and workers may run; each is scraped by
itself (`deploy/prometheus/prometheus.yml`).

Names are in base units. No label has a value that clients can make up, and none is a tenant. Counters begin at 0 where the
values of their labels are known beforehand, so that `rate()` sees the first count; `process_*` and `python_info` are beside them
all, as of every Python client. A counter begins anew with its process, and gauges of the queue are read from Redis when they are
scraped: where it does not answer, they are absent.
"""

TABLE = "| name | type | unit | labels | process | meaning | compare |\n|---|---|---|---|---|---|---|\n"


def render() -> str:
    """The whole page."""
    return "".join((HEAD, *(part for group in GROUPS for part in _section(group))))


def _section(group: type) -> Iterator[str]:
    yield f"\n## {(group.__doc__ or '').rstrip('.')}\n\n{TABLE}"
    for declared in vars(group).values():
        if isinstance(declared, Declared):
            yield _row(declared)


def _row(declared: Declared[Any]) -> str:
    labels = "<br>".join(_label(label) for label in declared.labels)
    cells = (f"`{declared.exposed_name}`", _type(declared), declared.unit, labels)
    return f"| {' | '.join((*cells, ', '.join(declared.process), declared.meaning, declared.compare))} |\n"


def _type(declared: Declared[Any]) -> str:
    kinds = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
    return next(name for kind, name in kinds.items() if issubclass(declared.kind, kind))


def _label(label: Label) -> str:
    return f"`{label.name}`: {label.about or ', '.join(f'`{value}`' for value in label.values)}"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
