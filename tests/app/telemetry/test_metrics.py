"""Every metric is named, documented and bounded."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

import app
from app.telemetry.metrics import Metrics

_LABELS = {"model", "state", "reason", "route", "method", "status", "store", "direction", "outcome", "kind"}


def test_names_units_and_help_are_in_order():
    """All begin with sparke_, have a sentence of help; times are in seconds, and no label can grow with use."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    families = list(registry.collect())
    assert len(families) >= 20
    for family in families:
        assert family.name.startswith("sparke_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_time", "_latency"))
    for metric in vars(metrics).values():
        assert set(getattr(metric, "_labelnames", ())) <= _LABELS


def test_every_metric_is_reported_somewhere():
    """No metric is only defined: a panel over it would stay empty for ever."""
    root = Path(app.__file__).parent
    source = "".join(path.read_text() for path in sorted(root.rglob("*.py")))
    never = [
        name
        for name in vars(Metrics())
        if name != "registry" and not re.search(rf"\b(?:metrics|_metrics|self)\.{name}\b(?! = )", source)
    ]
    assert never == []


def test_two_processes_worth_of_metrics_live_side_by_side():
    """No metric is global: two sets in one interpreter count apart."""
    one, other = Metrics(), Metrics()
    one.images.labels("toy").inc(3)
    assert b'sparke_images_total{model="toy"} 3.0' in generate_latest(one.registry)
    assert b"sparke_images_total{" not in generate_latest(other.registry)


def test_a_request_is_counted_by_route_and_an_invented_method_as_other():
    """A client cannot make new series."""
    metrics = Metrics()
    metrics.observe_request("POST", "/v1/images/generations", 200, 0.3)
    metrics.observe_request("BREW", "/v1/images/generations", 405, 0.001)
    text = generate_latest(metrics.registry).decode()
    assert 'sparke_http_requests_total{method="POST",route="/v1/images/generations",status="200"} 1.0' in text
    assert (
        'sparke_http_requests_total{method="other",route="/v1/images/generations",status="405"} 1.0' in text
    )
    assert "BREW" not in text


def test_a_request_without_an_answer_is_counted_as_none():
    """A client that went away is no status code."""
    metrics = Metrics()
    metrics.observe_request("GET", "/v1/models", None, 0.1)
    text = generate_latest(metrics.registry).decode()
    assert 'sparke_http_requests_total{method="GET",route="/v1/models",status="none"} 1.0' in text
