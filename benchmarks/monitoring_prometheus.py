"""A real Prometheus for `monitoring.py`: the repository's configuration and rules with all times divided, and what it says.

Nothing but times is changed: every duration in an expression (`[5m]`, `offset 1h`), every `for`, the intervals of the
configuration, and the thresholds of `IN_SECONDS`, which are times too. Windows are at least `MIN_WINDOW_S`, for a rate needs
two scrapes and the machine may be late with one.
"""

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[1]
IN_SECONDS = ("SparkeQueueSlow", "SparkeJobsOld", "SparkeBacklogGrowing", "SparkeWebhooksStuck")
MIN_WINDOW_S = 5.0
_SCRAPE_S = 1.0
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:(?<=\[)|(?<=offset ))(\d+)([smhd])\b")
_START_S = 60.0


@dataclass(frozen=True)
class Value:
    """One series at one moment."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """The server. `alerts` are the names of all rules that it has."""

    url: str
    alerts: tuple[str, ...]

    async def firing(self, http: httpx.AsyncClient) -> set[str]:
        """The alerts that fire."""
        return {
            alert["labels"]["alertname"]
            for alert in await self._ask(http, "alerts", "alerts")
            if alert["state"] == "firing"
        }

    async def value_of(self, http: httpx.AsyncClient, expr: str, at_s: float) -> list[Value]:
        """An expression at a moment."""
        found = await self._ask(http, "query", "result", query=expr, time=f"{at_s:.3f}")
        return [Value(one.get("metric", {}), float(one["value"][1])) for one in found]

    async def largest_of(
        self, http: httpx.AsyncClient, expr: str, span_s: tuple[float, float]
    ) -> list[Value]:
        """Each series of an expression with its largest value within a span; one that was never a number is left out."""
        begin, end = span_s
        found = await self._ask(
            http, "query_range", "result", query=expr, start=f"{begin:.3f}", end=f"{end:.3f}", step="5"
        )
        numbers = [(one["metric"], [float(value) for _, value in one["values"]]) for one in found]
        known = [(labels, [value for value in values if not math.isnan(value)]) for labels, values in numbers]
        return [Value(labels, max(values)) for labels, values in known if values]

    async def _ask(
        self, http: httpx.AsyncClient, what: str, member: str, **asked: str
    ) -> list[dict[str, Any]]:
        answer = await http.get(f"{self.url}/api/v1/{what}", params=asked)
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"Prometheus does not understand {asked}: {body['error']}")
        found: list[dict[str, Any]] = body["data"][member]
        return found


def scaled_expression(expr: str, factor: float) -> str:
    """A PromQL expression with its durations divided."""

    def divide(found: re.Match[str]) -> str:
        seconds = int(found[1]) * _UNITS_S[found[2]] / factor
        return f"{max(seconds, MIN_WINDOW_S) * 1000:.0f}ms"

    return _DURATION.sub(divide, expr)


def scaled_rules(factor: float) -> dict[str, Any]:
    """The repository's rules with all times divided. Raises LookupError where one of `IN_SECONDS` is not among them."""
    rules: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8"))
    left = set(IN_SECONDS)
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule["expr"] = scaled_expression(rule["expr"], factor)
        if "for" in rule:
            number, unit = rule["for"][:-1], rule["for"][-1]
            rule["for"] = f"{1000 * int(number) * _UNITS_S[unit] / factor:.0f}ms"
        if rule.get("alert") in left:
            left.remove(rule["alert"])
            rule["expr"] = re.sub(
                r"> (\d+)", lambda found: f"> {int(found[1]) / factor:g}", rule["expr"], count=1
            )
    if left:
        raise LookupError(f"rules.yml has no alerts {sorted(left)}; correct IN_SECONDS")
    return rules


def scaled_configuration(targets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The repository's configuration with these addresses in place of names in DNS, scraped once a second."""
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    configuration: dict[str, Any] = yaml.safe_load(text)
    interval = f"{_SCRAPE_S:g}s"
    configuration["global"] = dict.fromkeys(
        ("scrape_interval", "scrape_timeout", "evaluation_interval"), interval
    )
    jobs = [job for job in configuration["scrape_configs"] if job["job_name"] in targets]
    if {job["job_name"] for job in jobs} != set(targets):
        raise LookupError(f"prometheus.yml has not the jobs {sorted(targets)}")
    for job in jobs:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    configuration["scrape_configs"] = jobs
    return configuration


def start(
    folder: Path, targets: Mapping[str, Sequence[str]], factor: float, port: int
) -> tuple[subprocess.Popen[bytes], Prometheus]:
    """A server on loopback that has checked its files with promtool. Raises RuntimeError where it does not come up."""
    folder.mkdir()
    rules = scaled_rules(factor)
    (folder / "rules.yml").write_text(
        yaml.safe_dump(rules, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(scaled_configuration(targets), sort_keys=False), encoding="utf-8")
    promtool, server = _found("promtool"), _found("prometheus")
    subprocess.run([promtool, "check", "config", str(path)], check=True, capture_output=True)  # noqa: S603 - a tool of ours
    command = [
        server,
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--web.console.templates={ROOT / 'docs/runbooks'}",
        "--log.level=warn",
    ]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - likewise
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    made = Prometheus(f"http://127.0.0.1:{port}", tuple(alerts))
    try:
        _wait_until_ready(made.url)
    except RuntimeError:
        process.kill()
        process.wait()
        raise
    return process, made


def panels_of_dashboards() -> list[tuple[str, str, list[str]]]:
    """Every panel that asks for something: its dashboard, its title, its expressions as Grafana sends them, all chosen."""
    found = []
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            texts = [target["expr"] for target in panel.get("targets", [])]
            filled = [re.sub(r"\$(namespace|model|instance)\b", ".*", text) for text in texts]
            if filled:
                found.append((path.stem, panel["title"], filled))
    return found


def for_panel(expr: str, factor: float) -> str:
    """A panel's expression as it is asked here: times divided, and Grafana's interval filled in, four scrapes as it has it."""
    return scaled_expression(expr, factor).replace("$__rate_interval", f"{4 * _SCRAPE_S:g}s")


def _found(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is absent: apt-get install prometheus brings it")
    return path


def _wait_until_ready(url: str) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        try:
            if httpx.get(f"{url}/-/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"Prometheus is not ready after {_START_S:g} s")
