"""A real Prometheus sees the service, and alerts fire by their real causes."""

import asyncio
import re
import shutil
import subprocess

import httpx
import pytest
import yaml
from monitoring import NO_DATA, Fired, Report, Shown, play
from monitoring_causes import NOT_HERE, ROUNDS
from monitoring_prometheus import ROOT, for_panel, panels_of_dashboards, scaled_expression, scaled_rules
from monitoring_scene import Scene
from patience import PATIENCE_S

prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is absent: apt-get install prometheus brings it",
)


@pytest.mark.parametrize(
    ("expr", "scaled"),
    [
        ("rate(sparke_images_total[10m])", "rate(sparke_images_total[30000ms])"),
        ("avg_over_time(model:sparke_x:mean15m[1d] offset 1h)", None),
        ("rate(sparke_images_total[1m])", "rate(sparke_images_total[5000ms])"),
        ('up{job="sparke-5m"} > 60', None),
    ],
)
def test_durations_are_divided_and_nothing_else(expr, scaled):
    """Windows and offsets, not names, labels or numbers; no window is too short for two scrapes."""
    if scaled is None:
        scaled = expr.replace("[1d] offset 1h", "[4320000ms] offset 180000ms")
    assert scaled_expression(expr, 20) == scaled


@prometheus
def test_scaled_rules_are_the_rules_but_for_their_times(tmp_path):
    """Promtool takes them; with a factor of 1 they are the repository's."""
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(scaled_rules(20)))
    checked = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ours = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    rules, same = (
        [one for group in each["groups"] for one in group["rules"]] for each in (ours, scaled_rules(1))
    )
    for rule, other in zip(rules, same, strict=True):
        assert re.sub(r"\d+ms", "", other["expr"]) == re.sub(
            r"(?<=\[)\d+[smhd]|(?<=offset )\d+[smhd]", "", rule["expr"]
        )


def test_every_alert_has_a_cause_or_a_reason():
    """Whoever adds an alert says what makes it fire."""
    caused = {alert for causes in ROUNDS for cause in causes for alert in cause.alerts}
    known = {
        rule["alert"] for group in scaled_rules(1)["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert caused | set(NOT_HERE) == known
    assert not caused & set(NOT_HERE)


def test_panels_are_asked_as_grafana_asks():
    """Nothing of Grafana's is left in an expression, and every panel is there that a reason is given for."""
    panels = panels_of_dashboards()
    assert len(panels) >= 60
    assert [text for *_, texts in panels for text in texts if "$" in for_panel(text, 20)] == []
    assert set(NO_DATA) <= {(dashboard, title) for dashboard, title, _ in panels}


def test_what_is_not_as_it_should_be_is_found():
    """An alert in ordinary traffic, one that does not fire or clear, one without a cause, a panel without data."""
    report = Report(
        quiet=["A"],
        fired=[Fired("B", "b", None, None), Fired("C", "c", 1.0, None), Fired("D", "d", 1.0, 2.0)],
        shown=[Shown("workers", "Empty", 0, (), None), Shown("workers", "Device memory", 0, (), None)],
        known_alerts=("A", "B", "C", "D"),
    )
    part = ["A fired in ordinary traffic", "B did not fire: b", "C did not clear: c"]
    assert report.faults(is_whole=False) == part
    assert report.faults(is_whole=True) == [*part, "A has no cause", "no data: workers, Empty"]


@prometheus
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_alerts_fire_by_their_causes_and_clear(tmp_path):
    """Half a minute of traffic without an alert; then the API, Redis and workers are killed, each is seen, and panels have data."""
    wanted = {
        "both API replicas killed",
        "Redis killed",
        "both workers killed",
        "a job that kills its workers",
    }
    rounds = [[cause for cause in causes if cause.what in wanted] for causes in ROUNDS]
    scene = Scene.start(tmp_path, 20)
    try:
        report = asyncio.run(play(scene, 0.5, 20, rounds))
        page = httpx.get(f"{scene.prometheus.url}/consoles/SparkeApiDown.md", timeout=PATIENCE_S)
    finally:
        scene.stop()
    assert report.faults(is_whole=False) == []
    assert {one.cause for one in report.fired} == wanted
    with_data = [one for one in report.shown if one.num_series]
    assert len(with_data) >= 0.9 * len(report.shown)
    assert report.num_webhooks > 0
    assert page.text.startswith("# SparkeApiDown\n\nPage. ")
