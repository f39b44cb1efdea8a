"""A real Prometheus over the service: ten minutes of mixed traffic, then each alert fired by its real cause and cleared.

    python benchmarks/monitoring.py                     about three quarters of an hour on two cores
    python benchmarks/monitoring.py --minutes 1 --only "Redis killed"

Redis, two replicas of the API, two workers of a weightless model that does what it is told, one of the demo model, Prometheus with the
repository's own configuration and rules: all real processes on loopback. All times of the rules are divided by `--factor`, as
`monitoring_prometheus.py` says. During the traffic no alert may fire. Then, for each cause: seconds until its alerts fire, and, once it
has ended, until they clear. At last every query of every panel of the dashboards, with its value at the end of the traffic and the
largest of the run; a panel without data is a fault unless `NO_DATA` has its reason. Needs prometheus and promtool on PATH.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from monitoring_causes import NOT_HERE, ROUNDS, Cause, Stage
from monitoring_load import Receiver, Traffic
from monitoring_prometheus import Prometheus, Value, for_panel, panels_of_dashboards
from monitoring_scene import TENANTS, Scene

from app.domain.ids import TenantId
from app.redis.connection import connect
from app.webhooks.store import WebhookStore

NO_DATA = {("workers", "Device memory"): "no CUDA device here"}
_POLL_S = 0.5
_SETTLE_S = 20.0  # after the start, before traffic counts: series need a past
_FIRE_S, _CLEAR_S = 420.0, 420.0


@dataclass
class Watch:
    """Which alerts fire, as Prometheus says twice a second, and every change of that: when, which, whether it fires."""

    prometheus: Prometheus
    now: frozenset[str] = frozenset()
    changes: list[tuple[float, str, bool]] = field(default_factory=list)

    async def run(self) -> None:
        """For ever."""
        async with httpx.AsyncClient() as http:
            while True:
                found = frozenset(await self.prometheus.firing(http))
                at_s = time.time()
                self.changes += [(at_s, name, True) for name in sorted(found - self.now)]
                self.changes += [(at_s, name, False) for name in sorted(self.now - found)]
                self.now = found
                await asyncio.sleep(_POLL_S)

    async def until(self, name: str, *, fires: bool, limit_s: float) -> float | None:
        """Seconds until an alert fires, or does not; None where that is not so by then."""
        began_s = time.monotonic()
        while (name in self.now) is not fires:
            if time.monotonic() - began_s > limit_s:
                return None
            await asyncio.sleep(_POLL_S / 2)
        return time.monotonic() - began_s


@dataclass(frozen=True)
class Fired:
    """An alert and a cause: seconds from its beginning to the alert, and from its end until the alert was over."""

    alert: str
    cause: str
    fired_s: float | None
    cleared_s: float | None


@dataclass(frozen=True)
class Shown:
    """A panel: the number of its series, its values at the end of the traffic, the largest of the run."""

    dashboard: str
    title: str
    num_series: int
    at_the_end: tuple[float, ...]
    largest: float | None


@dataclass
class Report:
    """What was seen."""

    quiet: list[str] = field(default_factory=list)
    fired: list[Fired] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    num_webhooks: int = 0
    known_alerts: tuple[str, ...] = ()

    def faults(self, *, is_whole: bool) -> list[str]:
        """What is not as it should be; of alerts without a cause and panels without data only where all was done."""
        found = [f"{name} fired in ordinary traffic" for name in self.quiet]
        for one in self.fired:
            if one.fired_s is None:
                found.append(f"{one.alert} did not fire: {one.cause}")
            elif one.cleared_s is None:
                found.append(f"{one.alert} did not clear: {one.cause}")
        if is_whole:
            left = set(self.known_alerts) - {one.alert for one in self.fired} - set(NOT_HERE)
            found += [f"{name} has no cause" for name in sorted(left)]
            empty = [one for one in self.shown if not one.num_series]
            found += [
                f"no data: {one.dashboard}, {one.title}"
                for one in empty
                if (one.dashboard, one.title) not in NO_DATA
            ]
        return found


async def play(scene: Scene, minutes: float, factor: float, rounds: Sequence[Sequence[Cause]]) -> Report:
    """Traffic, causes, panels."""
    receiver, report = Receiver(), Report(known_alerts=scene.prometheus.alerts)
    watch = Watch(scene.prometheus)
    await scene.wait_until_ready()
    async with receiver.listening(), Traffic(scene, random.Random(0)) as traffic:
        await _make_webhooks(scene, receiver.port)
        stage = Stage(scene, traffic, receiver)
        tasks = [asyncio.create_task(work) for work in (_keep(scene), watch.run(), traffic.run())]
        try:
            await asyncio.sleep(_SETTLE_S)
            began_s = time.time()
            await asyncio.sleep(60 * minutes)
            report.quiet = sorted({name for at_s, name, fires in watch.changes if fires and at_s >= began_s})
            report.counts, report.num_webhooks = dict(sorted(traffic.counts.items())), receiver.num_heard
            traffic_ended_s = time.time()
            report.fired = await _cause_all(stage, watch, rounds)
            spans = (began_s, traffic_ended_s, time.time())
            report.shown = await _read_panels(scene.prometheus, factor, spans)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
    return report


async def _make_webhooks(scene: Scene, port: int) -> None:
    redis = connect(scene.server.url)
    store = WebhookStore(redis, clock_ms=lambda: int(1000 * time.time()))
    for tenant in TENANTS:
        await store.create(TenantId(tenant), f"http://127.0.0.1:{port}/{tenant}")
    await redis.aclose()


async def _keep(scene: Scene) -> None:
    while True:
        scene.replace_dead()
        await asyncio.sleep(_POLL_S)


async def _cause_all(stage: Stage, watch: Watch, rounds: Sequence[Sequence[Cause]]) -> list[Fired]:
    """One round after another; alerts clear while the next round, unless it is of the same alerts, has begun."""
    clearing: list[asyncio.Task[list[Fired]]] = []
    for causes in filter(None, rounds):
        await stage.scene.wait_until_ready()
        fired = await asyncio.gather(*(_cause(stage, watch, cause) for cause in causes))
        clearing += [
            asyncio.create_task(_clear(watch, cause, one)) for cause, one in zip(causes, fired, strict=True)
        ]
    return [one for found in await asyncio.gather(*clearing) for one in found]


async def _cause(stage: Stage, watch: Watch, cause: Cause) -> dict[str, float | None]:
    for name in cause.alerts:
        await watch.until(name, fires=False, limit_s=_CLEAR_S)
    _say(f"{cause.what}; what fires before: {', '.join(sorted(watch.now)) or 'nothing'}")
    began_s = time.monotonic()
    async with cause.lasts(stage):
        left_s = _FIRE_S - (time.monotonic() - began_s)
        waits = [watch.until(name, fires=True, limit_s=left_s) for name in cause.alerts]
        prepared_s = time.monotonic() - began_s
        found = await asyncio.gather(*waits)
    fired = {
        name: None if one is None else prepared_s + one for name, one in zip(cause.alerts, found, strict=True)
    }
    _say(f"  {', '.join(f'{name} {_show(one)} s' for name, one in fired.items())}")
    return fired


async def _clear(watch: Watch, cause: Cause, fired: dict[str, float | None]) -> list[Fired]:
    waits = [watch.until(name, fires=False, limit_s=_CLEAR_S) for name in fired]
    cleared = await asyncio.gather(*waits)
    _say(f"  over: {cause.what}")
    return [
        Fired(name, cause.what, fired_s, cleared_s)
        for (name, fired_s), cleared_s in zip(fired.items(), cleared, strict=True)
    ]


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


async def _read_panels(
    prometheus: Prometheus, factor: float, spans: tuple[float, float, float]
) -> list[Shown]:
    began_s, traffic_ended_s, ended_s = spans
    shown = []
    async with httpx.AsyncClient(timeout=60) as http:
        for dashboard, title, texts in panels_of_dashboards():
            at_the_end: list[Value] = []
            over_the_run: list[Value] = []
            for text in texts:
                expr = for_panel(text, factor)
                at_the_end += await prometheus.value_of(http, expr, traffic_ended_s)
                over_the_run += await prometheus.largest_of(http, expr, (began_s, ended_s))
            largest = max((one.value for one in over_the_run), default=None)
            values = tuple(one.value for one in at_the_end)
            shown.append(Shown(dashboard, title, len(over_the_run), values, largest))
    return shown


def main() -> int:
    """Plays, prints, writes; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of mixed traffic")
    parser.add_argument(
        "--factor", type=float, default=20.0, help="what all times of the rules are divided by"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        help="causes, as they are named in monitoring_causes.py; none at all: traffic alone",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/monitoring"))
    asked = parser.parse_args()
    rounds = [
        [cause for cause in causes if asked.only is None or cause.what in asked.only] for causes in ROUNDS
    ]
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.out) as folder:
        scene = Scene.start(Path(folder), asked.factor)
        try:
            report = asyncio.run(play(scene, asked.minutes, asked.factor, rounds))
        finally:
            scene.stop()
            (asked.out / "log").write_bytes((Path(folder) / "log").read_bytes())
    (asked.out / "monitoring.json").write_text(json.dumps(asdict(report), indent=1))
    where = f"{platform.node()}, {os.cpu_count()} cores; times of rules divided by {asked.factor:g}"
    text = "\n".join(_tables(report, where))
    (asked.out / "monitoring.md").write_text(text + "\n")
    print(text)
    faults = report.faults(is_whole=asked.only is None)
    print("\n".join(["", *faults]) if faults else "\nAll as it should be.")
    return 1 if faults else 0


def _tables(report: Report, where: str) -> Iterable[str]:
    yield f"{where}; webhooks heard in the traffic: {report.num_webhooks}"
    yield f"\nRequests: {', '.join(f'{name} {number}' for name, number in report.counts.items())}"
    yield f"\nAlerts in the traffic: {', '.join(report.quiet) or 'none'}"
    yield "\n| alert | cause | seconds to fire | seconds to clear |\n|---|---|---|---|"
    for one in report.fired:
        yield f"| {one.alert} | {one.cause} | {_show(one.fired_s)} | {_show(one.cleared_s)} |"
    yield "\n| dashboard | panel | series | at the end of the traffic | largest of the run |\n|---|---|---|---|---|"
    for panel in report.shown:
        values = ", ".join(_show(value) for value in panel.at_the_end[:4])
        more = ", …" if len(panel.at_the_end) > 4 else ""
        reason = NO_DATA.get((panel.dashboard, panel.title), "")
        yield f"| {panel.dashboard} | {panel.title} | {panel.num_series} | {values}{more}{reason} | {_show(panel.largest)} |"


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
