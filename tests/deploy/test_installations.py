"""One Prometheus may watch several installations, told apart by the label `namespace` of its targets, or one without it."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is absent: apt-get install prometheus brings it"
)
_SELECTOR = re.compile(r"\b(?:\w+:)?(?:sparke_\w+|up|ALERTS|process_\w+)(?::\w+)?\b(\{[^}]*\})?")


@pytest.fixture(scope="module")
def rules(root):
    """All rules."""
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def cases(root):
    """The rules' own tests."""
    return yaml.safe_load((root / "deploy/prometheus/rules_test.yml").read_text())["tests"]


def _of(namespace, series):
    """The same series in an installation of this name, for as long as any test lasts."""
    name, _, labels = series["series"].rstrip("}").partition("{")
    joined = ",".join(filter(None, [labels, f'namespace="{namespace}"']))
    return {**series, "series": f"{name}{{{joined}}}"}


def _moved(case, namespace):
    """A test of alerts as that of an installation of this name: what is expected bears it."""
    expected = [
        {**alert, "exp_labels": {**alert["exp_labels"], "namespace": namespace}}
        for alert in case["exp_alerts"]
    ]
    return {**case, "exp_alerts": expected}


def _tried(root, folder, tests):
    path = folder / "cases.yml"
    written = {
        "rule_files": [str(root / "deploy/prometheus/rules.yml")],
        "evaluation_interval": "15s",
        "tests": tests,
    }
    path.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    command = ["promtool", "test", "rules", str(path)]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    return tested.returncode, tested.stdout + tested.stderr


def test_an_installation_that_is_well_hides_nothing_of_another(root, cases, tmp_path):
    """Each alert fires, and is quiet, for one of two installations as it does for one alone, and bears its name."""
    well, *ill = cases
    assert well["name"] == "all is well"
    healthy = [
        {**_of("well", one), "values": one["values"].replace("x240", "x1000")} for one in well["input_series"]
    ]
    tests = [
        {
            **{name: value for name, value in case.items() if name != "promql_expr_test"},
            "input_series": [*(_of("ill", one) for one in case["input_series"]), *healthy],
            "alert_rule_test": [_moved(one, "ill") for one in case["alert_rule_test"]],
        }
        for case in ill
    ]
    assert sum(bool(one["exp_alerts"]) for test in tests for one in test["alert_rule_test"]) >= 23
    assert _tried(root, tmp_path, tests)[0] == 0, _tried(root, tmp_path, tests)[1]


def test_an_api_whose_targets_are_gone_is_missed_beside_another(root, cases, tmp_path):
    """Nobody scrapes what discovery does not find any more: who was there within an hour is missed, without a word of others."""
    series = [
        {"series": 'up{job="sparke-api",namespace="gone"}', "values": "1x20 _x300"},
        {"series": 'up{job="sparke-api",namespace="well"}', "values": "1x320"},
    ]
    (alert,) = (
        one["exp_alerts"][0]
        for case in cases
        for one in case.get("alert_rule_test", [])
        if one["alertname"] == "SparkeApiDown" and one["exp_alerts"]
    )
    asked = [
        {"eval_time": "4m", "alertname": "SparkeApiDown", "exp_alerts": []},
        _moved({"eval_time": "20m", "alertname": "SparkeApiDown", "exp_alerts": [alert]}, "gone"),
        {"eval_time": "70m", "alertname": "SparkeApiDown", "exp_alerts": []},
    ]
    code, said = _tried(
        root, tmp_path, [{"interval": "15s", "input_series": series, "alert_rule_test": asked}]
    )
    assert code == 0, said


def test_every_rule_keeps_the_installation(rules):
    """No aggregation drops the label, and nothing is matched across it, but for what stands for no installation at all."""
    faults = {}
    for rule in rules:
        expression = rule["expr"].replace("or on () absent(", "")
        lists = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        bare = re.findall(r"\b(?:sum|max|min|avg|count|group) ?\((?!namespace)", expression)
        if bare or any(each.split(",")[0] != "namespace" for each in lists):
            faults[rule.get("record") or rule["alert"]] = rule["expr"]
    assert faults == {}


def test_panels_ask_for_the_chosen_installations(root):
    """Every series of every panel, and each dashboard lets one choose."""
    faults = []
    for path in sorted((root / "deploy/grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        assert "namespace" in {each["name"] for each in dashboard["templating"]["list"]}
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                faults += [
                    (path.stem, panel["title"], target["expr"])
                    for matchers in _SELECTOR.findall(target["expr"])
                    if 'namespace=~"$namespace"' not in matchers
                ]
    assert faults == []
