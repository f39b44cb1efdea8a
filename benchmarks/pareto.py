"""Which method is ahead of which: the tables and the plot of `benchmarks/sweep.py`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl
import numpy as np
import torch
from figures import Figures, Interval, difference, mean_of, ratio
from torch import Tensor

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

OURS = "denoised"
SAME_SEEDS = ", same seeds"
SHIPPED_SETTINGS = {"scale", "strength", "seeds"}
FLOORS = (99.9, 99.0, 90.0, 66.0)


@dataclass(frozen=True)
class Measured:
    """An arm's figures a prompt, Cond-Vendi a block of prompts, and precision a prompt."""

    name: str
    figures: Figures
    cond_vendi: Tensor
    precision: Tensor | None

    def saved(self) -> dict[str, Any]:
        """All of it, for JSON."""
        parts = {name: part.tolist() for name, part in vars(self.figures).items()}
        precision = None if self.precision is None else self.precision.tolist()
        return {"name": self.name, "cond_vendi": self.cond_vendi.tolist(), "precision": precision, **parts}

    @classmethod
    def of_saved(cls, saved: dict[str, Any]) -> Self:
        """What `saved` gave."""

        def read(name: str) -> Tensor:
            return torch.tensor(saved[name], dtype=torch.float64)

        own = Figures(*(read(field.name) for field in fields(Figures)))
        precision = None if saved["precision"] is None else read("precision")
        return cls(saved["name"], own, read("cond_vendi"), precision)

    @property
    def settings(self) -> dict[str, str]:
        """What the arm's name says."""
        return dict(part.split("=", 1) for part in self.name.split(",") if "=" in part)

    @property
    def method(self) -> str:
        """The method's name, with the seeds where they are the same in every request."""
        if self.name == "data":
            return self.name
        settings = self.settings
        own = OURS if float(settings.get("strength", 1)) > 0 else "none"
        name = settings.get("method", settings.get("preset", own))
        return name + (SAME_SEEDS if self.has_same_seeds else "")

    @property
    def family(self) -> str:
        """One line of the plot: a method at one guidance scale; all scales where nothing else is done.

        Ours that no request can ask for are a family of their own.
        """
        if self.name == "data" or self.method.startswith("none"):
            return self.method
        other = ", other fields" if self.is_ours and not self.is_shipped else ""
        return f"{self.method}{other}, scale {self.settings['scale']}"

    @property
    def is_ours(self) -> bool:
        """Whether this is the mode `denoised`."""
        return self.method.startswith(OURS)

    @property
    def is_shipped(self) -> bool:
        """Whether this is the shipped preset, at a scale and strength that a request can ask for."""
        return self.is_ours and self.settings.keys() <= SHIPPED_SETTINGS

    @property
    def has_same_seeds(self) -> bool:
        """Whether every request of a prompt had the same seeds."""
        return self.settings.get("seeds") == "same"

    @property
    def setting_text(self) -> str:
        """The settings but for the method."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items() if name != "method")

    @property
    def accuracy(self) -> float:
        """Share of images that are as stated, in percent."""
        return 100 * float(self.figures.accuracy.mean())

    @property
    def vendi(self) -> float:
        """Mean Vendi score a prompt."""
        return float(self.figures.vendi.mean())

    def row(self) -> dict[str, Any]:
        """For JSON."""
        own = self.figures
        return {
            "arm": self.name,
            "method": self.method,
            "family": self.family,
            "accuracy": asdict(mean_of(own.accuracy)),
            "precision": None if self.precision is None else asdict(mean_of(self.precision)),
            "vendi": asdict(mean_of(own.vendi)),
            "cond_vendi": asdict(mean_of(self.cond_vendi)),
            "colour_bits": float(np.nanmean(own.colour_bits)),
            "background_bits": float(np.nanmean(own.background_bits)),
            "push": float(own.push.mean()),
        }


def method_table(measured: list[Measured]) -> str:
    """All arms, by method."""
    lines = [
        "| method | setting | accuracy, % | precision, % | Vendi | Cond-Vendi | H(colour) | H(background) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(measured, key=lambda each: (each.method, -each.accuracy)):
        own = one.figures
        precision = "" if one.precision is None else mean_of(one.precision).text(".1f", factor=100)
        lines.append(
            f"| {one.method} | {one.setting_text} | {mean_of(own.accuracy).text('.2f', factor=100)} | {precision} "
            f"| {mean_of(own.vendi).text('.2f')} | {mean_of(one.cond_vendi).text('.2f')} "
            f"| {np.nanmean(own.colour_bits):.2f} | {np.nanmean(own.background_bits):.2f} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Comparison:
    """A rival's arm, and ours mixed to its accuracy: `share` of the images by the first of two arms, the rest by the other.

    Strengths are continuous, and a user may ask for either; what the mixture gives is what both give, on the line
    between them. Where all of ours are less accurate than the rival it is the most accurate alone.
    """

    rival: Measured
    ours: tuple[Measured, Measured]
    share: float
    accuracy: Interval
    vendi: Interval
    cond_vendi: Interval

    @property
    def verdict(self) -> str:
        """Ahead or behind beyond the interval in both scores, less accurate beyond the interval, or even."""
        if self.accuracy.high < 0:
            return "less accurate"
        if min(self.vendi.low, self.cond_vendi.low) > 1:
            return "ahead"
        return "behind" if max(self.vendi.high, self.cond_vendi.high) < 1 else "even"

    @property
    def ours_text(self) -> str:
        """What is mixed."""
        first, second = (one.setting_text for one in self.ours)
        if first == second:
            return first
        return f"{self.share:.0%} {first}; {1 - self.share:.0%} {second}"


def comparisons(measured: list[Measured], *, shipped: bool = False) -> list[Comparison]:
    """One for each rival's arm, with ours of the same seeds policy; `shipped`: with those that a request can ask for."""
    ours = [one for one in measured if one.is_ours and (one.is_shipped or not shipped)]
    found = []
    for rival in measured:
        if rival.is_ours or rival.name == "data":
            continue
        own = [one for one in ours if one.has_same_seeds == rival.has_same_seeds]
        if own:
            found.append(_comparison(rival, own))
    return found


def _comparison(rival: Measured, own: list[Measured]) -> Comparison:
    """With the mixture of two arms that has the rival's accuracy and the highest Vendi score."""
    above = [one for one in own if one.accuracy >= rival.accuracy]
    below = [one for one in own if one.accuracy < rival.accuracy]
    if above:
        pairs = [(one, other) for one in above for other in (one, *below)]
        first, second = max(pairs, key=lambda pair: _mixed_vendi(pair[0], pair[1], rival.accuracy))
    else:
        first = second = max(own, key=lambda one: one.accuracy)
    share = _share(first, second, rival.accuracy)

    def mixed(of: Callable[[Measured], Tensor]) -> Tensor:
        return share * of(first) + (1 - share) * of(second)

    return Comparison(
        rival,
        (first, second),
        share,
        difference(mixed(lambda one: one.figures.accuracy), rival.figures.accuracy),
        ratio(mixed(lambda one: one.figures.vendi), rival.figures.vendi),
        ratio(mixed(lambda one: one.cond_vendi), rival.cond_vendi),
    )


def _share(first: Measured, second: Measured, accuracy: float) -> float:
    """How much of the first makes a mixture with the second that accurate; 1 where both are as accurate."""
    apart = first.accuracy - second.accuracy
    return 1.0 if apart <= 0 else min(max((accuracy - second.accuracy) / apart, 0.0), 1.0)


def _mixed_vendi(first: Measured, second: Measured, accuracy: float) -> float:
    share = _share(first, second, accuracy)
    return share * first.vendi + (1 - share) * second.vendi


def comparison_table(compared: list[Comparison]) -> str:
    """Each rival's arm against ours at its accuracy, in pairs."""
    lines = [
        "| rival | setting | its accuracy | ours | accuracy, points | Vendi, ratio | Cond-Vendi, ratio | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.rival.method} | {one.rival.setting_text} | {one.rival.accuracy:.2f} | {one.ours_text} "
        f"| {one.accuracy.text('+.2f', factor=100)} | {one.vendi.text('.3f')} "
        f"| {one.cond_vendi.text('.3f')} | {one.verdict} |"
        for one in sorted(compared, key=lambda each: (each.rival.method, -each.rival.accuracy))
    ]
    return "\n".join(lines)


def best_rivals(measured: list[Measured]) -> list[Measured]:
    """Of each family the arm of the highest Vendi score above each floor of accuracy; of guidance scale alone every arm.

    Where every request has new seeds.
    """
    rivals = [one for one in measured if not one.is_ours and not one.has_same_seeds and one.name != "data"]
    found = [one for one in rivals if one.method == "none"]
    for family in dict.fromkeys(one.family for one in rivals if one.method != "none"):
        for floor in FLOORS:
            above = [one for one in rivals if one.family == family and one.accuracy >= floor]
            found += [max(above, key=lambda one: one.vendi)] if above else []
    return list({one.name: one for one in found}.values())


def short_table(measured: list[Measured], compared: list[Comparison], shipped: list[Comparison]) -> str:
    """The best arms of each rival beside ours at their accuracy: any of ours, and what a request can ask for."""
    lines = [
        "| rival | setting | accuracy, % | Vendi | ours, any fields: Vendi, ratio | | shipped preset: Vendi, ratio | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    of_any, of_shipped = ({one.rival.name: one for one in each} for each in (compared, shipped))
    for one in sorted(best_rivals(measured), key=lambda each: (each.family, -each.accuracy)):
        cells = [
            one.method.replace("none", "guidance scale alone"),
            one.setting_text.removesuffix(", strength 0"),
            f"{one.accuracy:.2f}",
            f"{one.vendi:.2f}",
        ]
        for by_rival in (of_any, of_shipped):
            against = by_rival.get(one.name)
            cells += ["", ""] if against is None else [against.vendi.text(".3f"), against.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Vendi against the share of wrong images, log scale: up and to the left is better. Rows as in sweep.json.

    Left what is of use, in the middle all arms, right those with the same seeds in every request.
    """
    figure, (near, whole, same) = plt.subplots(1, 3, figsize=(16, 6.2), dpi=110)
    fresh = [row for row in rows if SAME_SEEDS not in row["family"]]
    methods = {row["method"].removesuffix(SAME_SEEDS) for row in rows if row["arm"] != "data"}
    colours = dict(zip(sorted(methods - {OURS}), map(plt.get_cmap("tab10"), range(10)), strict=False)) | {
        OURS: "black"
    }
    _draw_families(near, fresh, colours)
    _draw_families(whole, fresh, colours)
    _draw_families(same, [row for row in rows if row not in fresh or row["arm"] == "data"], colours)
    near.set(xlim=(0.017, 12), ylim=(1.9, 4.7), title="new seeds in every request, up to 12 % wrong")
    whole.set(title="the same, all arms")
    same.set(title="the same seeds in every request")
    near.set_ylabel("Vendi score a prompt (judge's features)")
    whole.set_xlabel("images that are not as stated, % (judge; log scale; 0.02 stands for none)")
    known: dict[str, Any] = {}
    for axes in (near, same):
        lines, labels = axes.get_legend_handles_labels()
        known = dict(zip(labels, lines, strict=True)) | known
    names = sorted(known, key=lambda name: (OURS not in name, name))
    figure.legend([known[name] for name in names], names, fontsize=8, ncols=6, loc="lower center")
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def _draw_families(axes: Axes, rows: Sequence[dict[str, Any]], colours: dict[str, Any]) -> None:
    """A method has one colour, a guidance scale one marker; ours is black, and hollow where no request can ask for it."""
    for family in sorted(
        {row["family"] for row in rows if row["arm"] != "data"}, key=lambda name: (OURS in name, name)
    ):
        arms = sorted(
            (row for row in rows if row["family"] == family), key=lambda row: float(row["vendi"]["value"])
        )
        method = arms[0]["method"].removesuffix(SAME_SEEDS)
        is_ours, is_other = method == OURS, "other fields" in family
        axes.plot(
            [max(100 * (1 - row["accuracy"]["value"]), 0.02) for row in arms],
            [row["vendi"]["value"] for row in arms],
            marker="o" if is_ours else {"1": "s", "3": "^"}.get(family.rpartition("scale ")[2], "v"),
            markersize=6 if is_ours else 4,
            linewidth=2.4 if is_ours else 1.0,
            color=colours[method],
            markerfacecolor="white" if is_other else None,
            linestyle="none" if is_other else "-",
            label=family.replace(SAME_SEEDS, "").replace("none", "guidance scale alone"),
        )
    for row in rows:
        if row["arm"] == "data":
            axes.axhline(row["vendi"]["value"], color="grey", linewidth=0.8)
            place = (1, row["vendi"]["value"])
            axes.annotate("training data", place, xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set_xscale("log")
    axes.grid(visible=True, which="both", alpha=0.25)
