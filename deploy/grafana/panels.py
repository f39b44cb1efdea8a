"""What the dashboards are made of: a panel in a line or two, made into Grafana's JSON by Grafana's own library.

A panel's limit is the threshold of the alert that it names, read from `deploy/prometheus/rules.yml`, so that a panel is
red where the alert begins.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

RULES = Path(__file__).resolve().parents[1] / "prometheus" / "rules.yml"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
RUNBOOKS = "http://localhost:9090/consoles"  # where the compose file's Prometheus shows them
_TAG = "sparke"
_BOTTOM_HEIGHT, _STAT_HEIGHT = 8, 4

AnyPanel = timeseries.Panel | stat.Panel | statetimeline.Panel


@dataclass(frozen=True)
class Query:
    """A PromQL expression and how its series are named; `{{label}}` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `about` is a sentence. It is red from the threshold of `alert` on, or from `red`; below it if `is_low_bad`.

    Without `has_limit` nothing is red: its alert, which counts in another unit, is a link alone. `is_signed`: it may be below 0.
    """

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    alert: str | None = None
    red: float | None = None
    is_low_bad: bool = False
    has_limit: bool = True
    is_signed: bool = False
    kind: Literal["lines", "number", "states"] = "lines"
    width: int = 8


@dataclass(frozen=True)
class Row:
    """Panels below a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """One dashboard. `variables` are labels to choose values of, each with the metric whose values are offered."""

    name: str
    title: str
    about: str
    variables: Sequence[tuple[str, str]]
    rows: Sequence[Row]


def threshold_of(alert: str) -> float:
    """The number that an alert's expression is compared with first. Raises LookupError where there is no such alert."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        if rule.get("alert") == alert:
            found = re.search(r"[<>] ([0-9.]+)", rule["expr"])
            if found is not None:
                return float(found[1])
    raise LookupError(f"{RULES.name} has no alert {alert} with a threshold")


def render(board: Board) -> str:
    """A dashboard as the JSON that Grafana is provisioned with."""
    made = (
        builders.Dashboard(board.title)
        .uid(f"sparke-{board.name}")
        .description(board.about)
        .tags([_TAG])
        .readonly()
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-1h", "now")
        .version(1)
        .variables([*_variables(board)])
        .links([_boards_link(), _runbooks_link()])
    )
    number = 1
    for row in board.rows:
        made.with_row(builders.Row(row.title).id(number))
        number += 1
        for panel in row.panels:
            made.with_panel(_build(panel, number))
            number += 1
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _variables(
    board: Board,
) -> Iterable[builders.DatasourceVariable | builders.QueryVariable | builders.TextBoxVariable]:
    yield (
        builders.DatasourceVariable("datasource")
        .label("Prometheus")
        .type("prometheus")
        .current(models.VariableOption(text="Prometheus", value="prometheus"))
    )
    for label, metric in board.variables:
        yield (
            builders.QueryVariable(label)
            .label(label.capitalize())
            .query({"query": f"label_values({metric}, {label})", "refId": label})
            .datasource(SOURCE)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
            .current(models.VariableOption(text="All", value="$__all"))
        )
    yield (
        builders.TextBoxVariable("runbooks")
        .label("Runbooks at")
        .default_value(RUNBOOKS)
        .current(models.VariableOption(text=RUNBOOKS, value=RUNBOOKS))
    )


def _boards_link() -> builders.DashboardLink:
    """All of our dashboards, with time and variables kept."""
    return (
        builders.DashboardLink("SPARKE")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )


def _runbooks_link() -> builders.DashboardLink:
    return (
        builders.DashboardLink("Runbooks")
        .type(models.DashboardLinkType.LINK)
        .url("${runbooks}/README.md")
        .icon("doc")
        .target_blank(target_blank=True)
    )


def _build(panel: Panel, number: int) -> AnyPanel:
    made = _KINDS[panel.kind]()
    made.id(number).title(panel.title).description(panel.about).datasource(SOURCE).unit(panel.unit)
    made.span(panel.width).height(_STAT_HEIGHT if panel.kind == "number" else _BOTTOM_HEIGHT)
    made.thresholds(_thresholds(panel)).no_value("–")
    if not panel.is_signed:
        made.min(0)
    if panel.alert is not None:
        made.links([_runbook_of(panel.alert)])
    if panel.kind == "states":
        made.data_links([_link("What to do", "${runbooks}/${__field.labels.alertname}.md")])
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made.with_target(
            prometheus.Dataquery()
            .ref_id(letter)
            .datasource(SOURCE)
            .expr(query.expr)
            .legend_format(query.legend)
        )
    return made


def _runbook_of(alert: str) -> builders.DashboardLink:
    return _link(f"Runbook: {alert}", f"${{runbooks}}/{alert}.md")


def _link(title: str, url: str) -> builders.DashboardLink:
    return (
        builders.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(url)
        .target_blank(target_blank=True)
    )


def _thresholds(panel: Panel) -> builders.ThresholdsConfig:
    limit = panel.red
    if limit is None and panel.alert is not None and panel.has_limit:
        limit = threshold_of(panel.alert)
    below, above = ("red", "green") if panel.is_low_bad else ("green", "red")
    steps = [models.Threshold(value=None, color=below)]
    if limit is not None:
        steps.append(models.Threshold(value=limit, color=above))
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _lines() -> timeseries.Panel:
    return (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(10)
        .thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )


def _number() -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _states() -> statetimeline.Panel:
    return (
        statetimeline.Panel()
        .merge_values(merge_values=True)
        .show_value(common.VisibilityMode.NEVER)
        .line_width(0)
        .fill_opacity(70)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


_KINDS: Mapping[str, Callable[[], AnyPanel]] = {"lines": _lines, "number": _number, "states": _states}
