"""Every metric is named, documented and bounded."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

import app
from app.domain.job import Lane
from app.telemetry.metrics import Metrics
from app.telemetry.metrics.jobs import LANES

_COUNTED_IN = re.compile(r"_(ms|time|latency|mb|kb|minutes|percent|count|sum|bucket|total)$")


def test_names_units_and_help_are_in_order():
    """All begin with sparke_, say in a sentence what they are, and are in base units, which their names end in."""
    families = list(Metrics().registry.collect())
    assert len(families) >= 60
    for family in families:
        assert family.name.startswith("sparke_")
        assert family.documentation.endswith(".")
        assert not _COUNTED_IN.search(family.name)
        assert ("seconds" in family.name or "bytes" in family.name) == family.name.endswith(
            ("_seconds", "_bytes")
        ), family.name


def test_every_declaration_is_whole():
    """Each says which process tells it, what to compare it with unless it is plain, and which values its labels have."""
    for name, declared in Metrics.declared().items():
        assert declared.name == f"sparke_{name}"
        assert declared.process
        assert declared.meaning.endswith(".")
        assert not declared.compare or declared.compare.endswith("."), name
        for label in declared.labels:
            assert bool(label.values) != bool(label.about), (name, label.name)
        assert not {label.name for label in declared.labels} & {
            "tenant",
            "tenant_id",
            "job_id",
            "prompt",
            "path",
        }


def test_lanes_are_those_of_jobs():
    """The metrics name them without knowing jobs."""
    assert tuple(Lane) == LANES


def test_a_process_exposes_its_own_alone():
    """An API process does not tell that it has made no images, nor a worker that it had no requests."""
    api, worker = (Metrics(CollectorRegistry(), process) for process in ("api", "worker"))
    of_api, of_worker = ({family.name for family in one.registry.collect()} for one in (api, worker))
    assert "sparke_http_requests" in of_api - of_worker
    assert "sparke_images" in of_worker - of_api
    assert of_api & of_worker == {
        "sparke_build_info",
        "sparke_job_failures",
        "sparke_jobs_finished",
        "sparke_store_errors",
    }
    worker.http_requests.labels("/v1/models", "GET", "200").inc()  # counted, and told by nobody
    assert b"# TYPE sparke_http_requests" not in generate_latest(worker.registry)


def test_known_series_are_there_from_the_start():
    """A counter begins at 0 for each value of its labels that is known; a gauge whose 0 would be a lie does not."""
    metrics = Metrics()
    metrics.begin(["toy"])
    metrics.begin_routes([("/v1/models", "GET")])
    text = generate_latest(metrics.registry).decode()
    assert 'sparke_commit_failures_total{model="toy",reason="fence_lost"} 0.0' in text
    assert 'sparke_memory_cache_lookups_total{outcome="snapshot"} 0.0' in text
    assert 'sparke_guidance_seconds_count{model="toy"} 0.0' in text
    assert 'sparke_http_requests_total{method="GET",route="/v1/models",status="500"} 0.0' in text
    assert "sparke_diversity_score{" not in text
    assert "sparke_batch_cap_images{" not in text


def test_an_unknown_failure_is_other():
    """No code makes a series of its own unless it is declared."""
    metrics = Metrics()
    metrics.count_failure("toy", "out_of_memory")
    metrics.count_failure("toy", "moon_phase")
    text = generate_latest(metrics.registry).decode()
    assert 'sparke_job_failures_total{model="toy",reason="out_of_memory"} 1.0' in text
    assert 'sparke_job_failures_total{model="toy",reason="other"} 1.0' in text
    assert "moon" not in text


def test_every_metric_is_reported_somewhere():
    """No metric is only defined: a panel over it would stay empty for ever."""
    root = Path(app.__file__).parent
    source = "".join(path.read_text() for path in sorted(root.rglob("*.py")))
    never = [
        name
        for name in Metrics.declared()
        if not re.search(rf"\b(?:metrics|_metrics|self)\.{name}\b(?! = )", source)
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


def test_slow_devices_are_within_the_buckets():
    """A video's step takes up to a minute, and its batch twenty. Beyond the last bucket every quantile is that bucket's bound."""
    longest_s = {
        "denoise_step_seconds": 60,
        "batch_seconds": 1200,
        "guidance_seconds": 60,
        "decode_seconds": 60,
        "memory_search_seconds": 5,
    }
    declared = Metrics.declared()
    assert {
        name: declared[name].buckets[-1]
        for name, at_least in longest_s.items()
        if declared[name].buckets[-1] < at_least
    } == {}
