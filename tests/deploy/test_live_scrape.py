"""What dashboards and rules ask for is in a scrape of a running API and a running worker; and that scrape is in order."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import httpx
import promql_parser as promql
import pytest
import yaml
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import Metrics

CATALOGUE = """
[[models]]
model_id = "toy"
source = "builtin:toy"
latent_space = "toy"
default_steps = 3
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 32
max_px = 128
multiple_px = 8
"""
OF_EVERY_TARGET = {"job", "instance", "namespace"}
OF_ALERTS = {label.name for declared in Metrics.declared().values() for label in declared.labels} | {
    "alertname",
    "alertstate",
    "severity",
}
OF_PROMETHEUS = {"up": set(), "ALERTS": OF_ALERTS, "ALERTS_FOR_STATE": OF_ALERTS}
PARTS_OF_DOCS = ("show.js", "swagger-ui.js", "swagger-ui.css")
READY = "SPARKE is ready: "
WORKER = re.compile(r"^# worker \S+: (http://127\.0\.0\.1:\d+/metrics)$", re.MULTILINE)


@dataclass
class Scrape:
    """One answer: its text, and for each series its name and labels."""

    text: str
    series: list = field(default_factory=list)
    families: dict = field(default_factory=dict)

    def __post_init__(self):
        """Parse it."""
        for family in text_string_to_metric_families(self.text):
            self.families[family.name] = family
            self.series += [(sample.name, sample.labels) for sample in family.samples]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A running `sparke serve` with the toy model, after some traffic of every kind."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "models.toml").write_text(CATALOGUE)
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    env |= {"SPARKE_MODELS_FILE": str(folder / "models.toml"), "SPARKE_DEVICE": "cpu"}
    command = [
        sys.executable,
        "-P",
        "-m",
        "app.cli",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(folder / "data"),
    ]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(READY), line
            found = line.removeprefix(READY).strip()
            _mixed_traffic(found)
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _mixed_traffic(url):
    """Images of one prompt and of several, what is refused, files, questions, and paths that nobody has."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for prompt, strength in (("a star", 1.0), ("a star", 1.0), ("a moon", 0.0), ("a star", 0.5)):
            body = {"prompt": prompt, "n": 2, "diversity": {"strength": strength}}
            assert http.post("/v1/images/generations", json=body).status_code == 200
        assert http.post("/v1/images/generations", json={"prompt": ""}).status_code == 400
        assert http.get("/v1/jobs/job_nobody's").status_code in {400, 404}
        assert http.get(f"/{'x' * 30}").status_code == 404
        file = {"file": ("a.jsonl", b"{}\n")}
        assert http.post("/v1/files", files=file, data={"purpose": "batch"}).status_code == 200
        (memory,) = http.get("/v1/memories").json()["data"]
        assert http.get(f"/v1/memories/{memory['id']}/stats").status_code in {200, 404, 405}


@pytest.fixture(scope="module")
def scrapes(url):
    """What the API says, and what the worker says where the API says that it is."""
    api = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    (where,) = WORKER.findall(api)
    return {"api": Scrape(api), "worker": Scrape(httpx.get(where, timeout=PATIENCE_S).text)}


@pytest.fixture(scope="module")
def known(scrapes, root):
    """The labels of every series that there is, of declared ones without a series yet, and of recorded ones."""
    found = dict(OF_PROMETHEUS)
    for declared in Metrics.declared().values():
        assert any(declared.name in scrape.families for scrape in scrapes.values()), declared.name
        labels = {label.name for label in declared.labels}
        is_histogram = declared.buckets
        suffixes = ("_bucket", "_sum", "_count") if is_histogram else ("",)
        for suffix in suffixes:
            more = {"le"} if suffix == "_bucket" else set()
            found[f"{declared.exposed_name}{suffix}"] = labels | more
    for scrape in scrapes.values():
        for name, labels in scrape.series:
            found.setdefault(name, set()).update(labels)
    for rule in _rules(root):
        if "record" in rule:
            found[rule["record"]] = _kept(promql.parse(rule["expr"]), found)
    return found


@pytest.fixture(scope="module")
def possible(url):
    """The values that each label of each metric may have: declared ones, models, templates, statuses; None is of a machine."""
    templates = set(httpx.get(f"{url}/openapi.json", timeout=PATIENCE_S).json()["paths"])
    unlisted = {"unmatched", "/openapi.json", "/docs", *(f"/docs/{name}" for name in PARTS_OF_DOCS)}
    open_sets = {
        "model": {"toy"},
        "route": templates | unlisted,
        "status": {"none", *map(str, range(200, 600))},
    }
    return {
        declared.exposed_name: {
            label.name: set(label.values) or open_sets.get(label.name) for label in declared.labels
        }
        for declared in Metrics.declared().values()
    }


def _rules(root):
    text = (root / "deploy/prometheus/rules.yml").read_text()
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def _nodes(expression):
    found = []
    promql.walk(expression, found.append)
    return found


def _selectors(expression):
    return [node for node in _nodes(expression) if isinstance(node, promql.VectorSelector)]


def _kept(expression, known):
    """The labels of what an expression gives, at most: those of the outermost aggregation, else of all that it reads."""
    outer = next((node for node in _nodes(expression) if isinstance(node, promql.AggregateExpr)), None)
    if outer is not None and outer.modifier is not None and "By" in str(outer.modifier.type):
        return set(outer.modifier.labels) - {"le"}
    if outer is not None and outer.modifier is None:
        return set()
    return set().union(*(known.get(one.name, set()) for one in _selectors(expression)))


def _expressions(root):
    """Every expression of dashboards and rules by where it stands, with Grafana's own variables filled in."""
    found = {f"rule {rule.get('record') or rule['alert']}": rule["expr"] for rule in _rules(root)}
    for path in sorted((root / "deploy/grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for number, target in enumerate(panel.get("targets", ())):
                text = re.sub(r"\$__rate_interval|\$__range|\$__interval", "5m", target["expr"])
                found[f"{path.name}: {panel['title']} {number}"] = re.sub(r"\$\{?\w+\}?", ".*", text)
    return found


def _faults(text, known, possible):
    """The names, labels and values that an expression asks for and that do not exist."""
    expression = promql.parse(text)
    selectors = _selectors(expression)
    faults = [] if selectors else ["asks for nothing"]
    for one in selectors:
        if one.name not in known:
            faults.append(f"unknown metric {one.name}")
            continue
        asked = [matcher for matcher in one.matchers.matchers if matcher.name not in OF_EVERY_TARGET]
        labels = {matcher.name for matcher in asked}
        faults += [f"{one.name} has no label {label}" for label in sorted(labels - known[one.name])]
        if labels <= known[one.name] and not _can_match(one.name, asked, possible):
            faults.append(f"no series can match {one}")
    there = set().union(OF_EVERY_TARGET, {"le"}, *(known.get(one.name, set()) for one in selectors))
    for node in _nodes(expression):
        modifier = getattr(node, "modifier", None)
        grouped = getattr(modifier, "labels", None) or getattr(
            getattr(modifier, "matching", None), "labels", ()
        )
        faults += [f"nothing to group by {label}" for label in sorted(set(grouped) - there)]
    return faults


def _can_match(name, matchers, possible):
    """Whether each asks for a value that its label may have; of recorded series nobody knows more than the labels."""
    values = possible.get(name, possible.get(re.sub(r"_(bucket|sum|count)$", "", name)))
    if values is None:
        return True
    return all(
        one.name == "le" or values[one.name] is None or any(_holds(one, value) for value in values[one.name])
        for one in matchers
    )


def _holds(matcher, value):
    if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
        is_so = value == matcher.value
    else:
        is_so = re.fullmatch(matcher.value, value) is not None
    return is_so == (matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re))


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(sparke_imagez_total[5m]))", "unknown metric sparke_imagez_total"),
        ("rate(sparke_images[5m])", "unknown metric sparke_images"),
        ('sparke_jobs_open{tenant="a"}', "sparke_jobs_open has no label tenant"),
        ("sum by (reason) (sparke_jobs_open)", "nothing to group by reason"),
        ("sparke_jobs_open / on (state) sparke_jobs_running", "nothing to group by state"),
        ("vector(1)", "asks for nothing"),
        (
            'rate(sparke_memory_cache_lookups_total{outcome="mis"}[5m])',
            'no series can match sparke_memory_cache_lookups_total{outcome="mis"}',
        ),
        (
            'rate(sparke_http_requests_total{status=~"9.."}[5m])',
            'no series can match sparke_http_requests_total{status=~"9.."}',
        ),
    ],
)
def test_the_check_finds_what_is_wrong(expression, fault, known, possible):
    """A misspelt name, a counter without _total, and labels and values that do not exist are each found."""
    assert _faults(expression, known, possible) == [fault]


def test_rules_and_dashboards_ask_for_what_a_scrape_has(root, known, possible):
    """Every metric and label in a rule or panel is in a live scrape of the API or the worker, and its values can be."""
    faults = {where: _faults(text, known, possible) for where, text in _expressions(root).items()}
    assert len(faults) > 20
    assert {where: found for where, found in faults.items() if found} == {}


def test_failures_begin_at_zero(scrapes):
    """A counter of what seldom happens is there before it does: its first count is then seen by a rate."""
    series = {
        (name, frozenset(labels.items())) for scrape in scrapes.values() for name, labels in scrape.series
    }
    for name, labels in (
        ("sparke_commit_failures_total", {"model": "toy", "reason": "fence_lost"}),
        ("sparke_job_failures_total", {"model": "toy", "reason": "out_of_memory"}),
        (
            "sparke_http_requests_total",
            {"route": "/v1/images/generations", "method": "POST", "status": "503"},
        ),
        ("sparke_store_errors_total", {"store": "redis"}),
        ("sparke_jobs_redelivered_total", {"model": "toy"}),
    ):
        assert (name, frozenset(labels.items())) in series


def test_labels_are_bounded(scrapes, possible):
    """After traffic of every kind each label has values of its declared set, models of the catalogue, or route templates."""
    for scrape in scrapes.values():
        for name, family in scrape.families.items():
            if not name.startswith("sparke_"):
                assert name.startswith(("process_", "python_info")), name
                continue
            values = possible[name if name in possible else f"{name}_total"]
            for sample in family.samples:
                for label, value in sample.labels.items():
                    if label != "le" and values[label] is not None:
                        assert value in values[label], (name, label, value)


def test_each_process_tells_its_own(scrapes):
    """No name of one is in the other's answer but for what both do, and both say what they are."""
    both = {name for name in scrapes["api"].families if name in scrapes["worker"].families}
    assert {name for name in both if name.startswith("sparke_")} == {
        "sparke_build_info",
        "sparke_job_failures",
        "sparke_jobs_finished",
        "sparke_store_errors",
    }
    assert {"process_resident_memory_bytes", "python_info"} <= both
    for component, scrape in scrapes.items():
        (sample,) = scrape.families["sparke_build_info"].samples
        assert (sample.labels["component"], sample.value) == (component, 1)
        assert bool(sample.labels["torch"]) == (component == "worker")


def test_traffic_is_told(scrapes):
    """What was done is counted, with the times and the copies of memories that belong to it."""
    worker = {
        (sample.name, *sample.labels.values()): sample.value
        for family in scrapes["worker"].families.values()
        for sample in family.samples
    }
    assert worker["sparke_images_total", "toy"] == 8
    assert worker["sparke_guidance_seconds_count", "toy"] == worker["sparke_decode_seconds_count", "toy"] == 4
    assert worker["sparke_prompt_embedding_lookups_total", "toy", "hit"] >= 2
    assert worker["sparke_memory_cache_lookups_total", "tail"] >= 1
    assert worker["sparke_worker_ready", "toy"] == 1
    assert not any(math.isnan(value) for value in worker.values())


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is absent: apt-get install prometheus brings it"
)
@pytest.mark.parametrize("process", ["api", "worker"])
def test_promtool_has_no_complaint(process, scrapes):
    """Prometheus' own check of names, help and types."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=scrapes[process].text,
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in checked.stderr.splitlines() if line.startswith("sparke_")]
    assert (ours, checked.returncode) == ([], 0), checked.stderr
