"""Rules and dashboards ask for metrics, labels and sources that exist."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import render
from prometheus_client import Counter, Gauge, Histogram
from write_dashboards import BOARDS

from app.telemetry.metrics import Metrics

_OF_EVERY_TARGET = {"job", "instance", "namespace"}
_NAME = re.compile(r"\b((?:\w+:)?(?:sparke_\w+|up|ALERTS|process_\w+)(?::\w+)?)\b(?:\{([^}]*)\})?")

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is absent: apt-get install prometheus brings it"
)


def _series():
    """The labels of every series that the service can expose, by the name that PromQL knows it by."""
    of_alerts = {"alertname", "alertstate", "severity", "model", "store", "reason", "device"}
    found = {"up": set(), "ALERTS": of_alerts, "process_resident_memory_bytes": set()}
    for metric in vars(Metrics()).values():
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        name, labels = metric._name, set(metric._labelnames)
        if isinstance(metric, Counter):
            found[f"{name}_total"] = labels
        elif isinstance(metric, Gauge):
            found[name] = labels
        else:
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
    return found


def _groups(root):
    return yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]


@pytest.fixture(scope="module")
def rules(root):
    """All rules."""
    return [rule for group in _groups(root) for rule in group["rules"]]


@pytest.fixture(scope="module")
def known(rules):
    """The labels of every series that may be asked for: the service's, and the recorded ones."""
    recorded = {
        rule["record"]: set(_grouped(rule["expr"])) for rule in rules if "record" in rule
    }  # what a recording rule groups by is what it keeps
    return _series() | recorded


@pytest.fixture(scope="module")
def dashboards(root):
    """All dashboards by file name."""
    found = {
        path.name: json.loads(path.read_text())
        for path in sorted((root / "deploy/grafana/dashboards").glob("*.json"))
    }
    assert found
    return found


def _grouped(expression):
    """The labels of all `by (...)` and `on (...)`, but for a histogram's own."""
    lists = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    return {label.strip() for labels in lists for label in labels.split(",")} - {"le", ""}


def _faults(expression, known):
    """The names and labels in a PromQL expression that do not exist."""
    used = _NAME.findall(expression)
    if not used:
        return [f"no metric in {expression!r}"]
    faults = [f"unknown metric {name}" for name, _ in used if name not in known]
    labels = set().union(_OF_EVERY_TARGET, *(known.get(name, set()) for name, _ in used))
    for name, matchers in used:
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        faults += [
            f"{name} has no label {label}" for label in asked - _OF_EVERY_TARGET - known.get(name, set())
        ]
    return faults + [f"nothing to group by {label}" for label in _grouped(expression) - labels]


def _panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _filled(expression):
    """A panel's expression as Grafana sends it where all is chosen."""
    return re.sub(r"\$(namespace|model|instance)\b", ".*", expression.replace("$__rate_interval", "1m"))


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(sparke_imagez_total[5m]))", "unknown metric sparke_imagez_total"),
        ("rate(sparke_images[5m])", "unknown metric sparke_images"),
        ('sparke_jobs_open{tenant="a"}', "sparke_jobs_open has no label tenant"),
        ("sum by (reason) (sparke_jobs_open)", "nothing to group by reason"),
        ("vector(1)", "no metric in 'vector(1)'"),
    ],
)
def test_the_check_finds_what_is_wrong(expression, fault, known):
    """A misspelt name, a counter without _total, and labels that do not exist are each found."""
    assert _faults(expression, known) == [fault]


def test_rules_ask_for_what_exists(rules, known):
    """Every metric and label in a rule is one that the service or another rule makes."""
    assert {rule.get("record") or rule["alert"]: _faults(rule["expr"], known) for rule in rules} == {
        rule.get("record") or rule["alert"]: [] for rule in rules
    }


def test_runbooks_ask_for_what_exists(root, known):
    """The same of every query in a page."""
    found = {
        (path.stem, query): _faults(query, known)
        for path in sorted((root / "docs/runbooks").glob("*.md"))
        for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL)
        for query in block.splitlines()
    }
    assert len(found) >= 22
    assert {where: faults for where, faults in found.items() if faults} == {}


def test_alerts_say_how_urgent_they_are_and_what_to_do(rules, root):
    """A severity out of two, a summary, a description and a page of its own each."""
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) >= 20
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{alert['alert']}.md"
        assert (root / alert["annotations"]["runbook_url"]).is_file()


def test_every_alert_and_recording_is_tested(rules, root):
    """Each alert is expected to fire at some time and to be quiet at another; each main recording has a value."""
    tests = yaml.safe_load((root / "deploy/prometheus/rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_what_is_reckoned_from_traffic_asks_for_some(rules):
    """A share, a mean or a quantile of jobs alarms only where there are enough of them; shares of memory and of scrapes are none."""
    of_gauges = {
        "SparkeRedisNoRoom",
        "SparkeRedisFull",
        "SparkeDeviceMemoryFull",
        "SparkeTargetDown",
    }
    reckoned = {
        rule["alert"]: rule["expr"]
        for rule in rules
        if "alert" in rule and re.search(r" / |:ratio|:p95|:mean|avg_over_time", rule["expr"])
    }
    floor = re.compile(
        r"\band (?:on \([^)]*\) )?(?:sum by \([^)]*\) \(increase\([^)]*\)\)|[\w:]+) > [1-9]\d*$", re.MULTILINE
    )
    assert {name for name, expression in reckoned.items() if not floor.search(expression)} == of_gauges
    assert len(reckoned) > len(of_gauges) + 5


@promtool
def test_promtool_accepts_configuration_and_rules(root):
    """Prometheus' own check, warnings included."""
    command = [
        "promtool",
        "check",
        "config",
        "--lint=all",
        "--lint-fatal",
        "deploy/prometheus/prometheus.yml",
    ]
    checked = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=200)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
def test_promtool_runs_the_rules_own_tests(root):
    """Each alert fires by its cause."""
    command = ["promtool", "test", "rules", "deploy/prometheus/rules_test.yml"]
    tested = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=200)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@promtool
def test_promtool_parses_every_panel(dashboards, root, tmp_path):
    """Panels' expressions are PromQL; Grafana's own variables are filled in first."""
    expressions = [
        _filled(target["expr"])
        for dashboard in dashboards.values()
        for panel in _panels(dashboard)
        for target in panel["targets"]
    ]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(path)]
    checked = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=200)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_panels_ask_for_what_exists(dashboards, known):
    """Every metric and label in a panel, its legend and the variables is one that the service or a rule makes."""
    faults = {}
    for name, dashboard in dashboards.items():
        for panel in _panels(dashboard):
            for target in panel["targets"]:
                found = _faults(target["expr"], known)
                kept = _grouped(target["expr"]) or set().union(
                    _OF_EVERY_TARGET, *(known.get(one, set()) for one, _ in _NAME.findall(target["expr"]))
                )
                legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                found += [f"no {label} for the legend" for label in legend - kept]
                if found:
                    faults[name, panel["title"]] = found
        variables = {each["name"]: each for each in dashboard["templating"]["list"]}
        for variable in variables.values():
            if variable["type"] == "query":
                query = variable["query"]["query"]
                metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
                assert label in known[metric] | _OF_EVERY_TARGET
        asked = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(dashboard)))
        assert asked <= set(variables), name
    assert faults == {}


def test_every_metric_is_shown(dashboards, rules):
    """What is counted can be seen: each metric of the service is in a panel, straight or through a rule."""
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    shown = " ".join(
        target["expr"]
        for dashboard in dashboards.values()
        for panel in _panels(dashboard)
        for target in panel["targets"]
    )
    shown = " ".join([shown, *(expr for name, expr in recorded.items() if name in shown)])
    metrics = [metric._name for metric in vars(Metrics()).values() if hasattr(metric, "_labelnames")]
    assert [
        name for name in metrics if not re.search(rf"\b{name}(_total|_bucket|_sum|_count)?\b", shown)
    ] == []


def test_panels_have_units_thresholds_and_a_sentence(dashboards):
    """Nobody has to guess what a number means, and one at night has a colour."""
    for dashboard in dashboards.values():
        for panel in _panels(dashboard):
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"], panel["title"]
            assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            if panel["type"] == "stat":
                assert panel["targets"], panel["title"]
            expressions = " ".join(target["expr"] for target in panel["targets"])
            if "_seconds_bucket" in expressions or "_seconds:p95" in expressions:
                assert defaults["unit"] == "s", panel["title"]
            if "_bytes" in expressions and "/" not in expressions:
                assert defaults["unit"] in {"bytes", "Bps"}, panel["title"]


def test_a_panel_shows_things_of_one_kind(dashboards):
    """Counts of an hour, counts of now, rates and shares are each in a panel of their own: one axis is of one thing."""
    kinds = (r"increase\(.*?\[(\w+)\]", r"delta\(.*?\[(\w+)\]", r"\brate\(.*?\[([\w$]+)\]")
    for name, dashboard in dashboards.items():
        for panel in _panels(dashboard):
            found = {
                tuple(sorted(match for kind in kinds for match in re.findall(kind, target["expr"])))
                for target in panel["targets"]
                if panel["fieldConfig"]["defaults"]["unit"] not in {"s", "percentunit"}
            }
            assert len(found) <= 1, (name, panel["title"], found)


def test_panels_lie_beside_each_other(dashboards):
    """Ids are unique; no panel covers another or leaves the page."""
    for dashboard in dashboards.values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        cells = [
            (x, y)
            for panel in dashboard["panels"]
            for place in [panel["gridPos"]]
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24


def test_dashboards_are_as_they_are_written(dashboards, root):
    """`make docs` would change nothing, and there is no dashboard that nobody writes."""
    assert set(dashboards) == {f"{board.name}.json" for board in BOARDS}
    for board in BOARDS:
        path = root / f"deploy/grafana/dashboards/{board.name}.json"
        assert path.read_text(encoding="utf-8") == render(board), path.name


def test_dashboards_are_what_grafana_reads(dashboards):
    """Grafana's own model of a dashboard loses nothing of them: every member is one that it knows."""
    register_default_plugins()
    for name, dashboard in dashboards.items():
        read = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
        assert read == dashboard, name


def test_a_panel_is_red_where_its_alert_begins(dashboards, rules):
    """Runbooks that panels link to are those of alerts; panels of what an alert compares have the alert's own number."""
    alerts = {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}
    equal = set()
    for dashboard in dashboards.values():
        for panel in _panels(dashboard):
            for link in panel.get("links", []):
                alert = re.fullmatch(r"\$\{runbooks\}/(\w+)\.md", link["url"])[1]
                steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
                if len(steps) > 1 and re.search(rf"[<>] {steps[-1]['value']:g}\b", alerts[alert]):
                    equal.add(alert)
    assert {
        "SparkeApiErrors",
        "SparkeBacklogGrowing",
        "SparkeDeviceMemoryFull",
        "SparkeDiversityCollapsed",
        "SparkeJobsFailing",
        "SparkeJobsOld",
        "SparkeJobsRepaired",
        "SparkeOutOfMemory",
        "SparkeQueueSlow",
        "SparkeStepSlow",
        "SparkeTargetDown",
        "SparkeWebhooksStuck",
    } <= equal


def test_a_limit_of_a_share_is_on_panels_of_shares(dashboards, rules):
    """A panel that leads to an alert of a share, and counts something else, is not red at the share's number."""
    shares = {
        rule["alert"]: re.search(r"> (0\.\d+)", rule["expr"])[1]
        for rule in rules
        if "humanizePercentage" in rule.get("annotations", {}).get("summary", "")
    }
    assert "SparkeJobsFailing" in shares
    for dashboard in dashboards.values():
        for panel in _panels(dashboard):
            defaults = panel["fieldConfig"]["defaults"]
            limits = {step["value"] for step in defaults["thresholds"]["steps"]}
            for alert, share in shares.items():
                if any(alert in link["title"] for link in panel.get("links", [])):
                    assert defaults["unit"] == "percentunit" or float(share) not in limits, panel["title"]


@promtool
def test_numbers_of_workers_are_0_where_there_is_none(dashboards, root, tmp_path):
    """A number that has no value now shows the last that it had: so workers that are gone would be ready for an hour."""
    asked = {
        (name, panel["title"]): _filled(target["expr"])
        for name, dashboard in dashboards.items()
        for panel in _panels(dashboard)
        for target in panel["targets"]
        if panel["type"] == "stat"
        and panel["title"] in {"Ready", "Workers ready", "Images", "Wait of a job, p95"}
    }
    assert len(asked) == 5
    series = [{"series": 'sparke_jobs_open{model="a",instance="api-1"}', "values": "3x40"}]
    expected = [
        {
            "expr": text,
            "eval_time": "5m",
            "exp_samples": [{"labels": '{model="a"}' if title == "Workers ready" else "{}", "value": 0}],
        }
        for (_, title), text in asked.items()
    ]
    cases = {
        "rule_files": [str(root / "deploy/prometheus/rules.yml")],
        "tests": [{"interval": "15s", "input_series": series, "promql_expr_test": expected}],
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    command = ["promtool", "test", "rules", str(tmp_path / "cases.yml")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_dashboards_lead_to_each_other_and_to_the_runbooks(dashboards):
    """One link shows all dashboards of our tag, another the runbooks."""
    for dashboard in dashboards.values():
        boards, runbooks = dashboard["links"]
        assert boards["type"] == "dashboards"
        assert boards["tags"] == dashboard["tags"] == ["sparke"]
        assert runbooks["url"] == "${runbooks}/README.md"


def test_panels_use_the_source_that_is_provisioned(dashboards, root):
    """Grafana finds its data and its dashboards where the compose file puts them."""
    provisioning = root / "deploy/grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (uid,) = {source["uid"] for source in sources}
    for dashboard in dashboards.values():
        text = json.dumps(dashboard)
        assert set(re.findall(r'"type": "prometheus", "uid": "([^"]+)"', text)) == {"${datasource}"}
        source = dashboard["templating"]["list"][0]
        assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
        assert source["current"]["value"] == uid
    (provider,) = yaml.safe_load((provisioning / "dashboards/sparke.yml").read_text())["providers"]
    grafana = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].rpartition("/")
    assert home[0] == provider["options"]["path"]
    assert home[2] in dashboards
