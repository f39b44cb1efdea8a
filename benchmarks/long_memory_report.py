"""What the runs of `long_memory.py` say: windows of 64 images, their Vendi scores, and how new the newest images are.

A single window of 64 has one score, and two windows of one and the same distribution differ by some 6 %. So the first
64 are those of many fresh tenants, the newest are many windows, and every ratio has a 95 % interval by bootstrap over
windows, or over tenants in pairs.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from figures import Interval, mean_of, ratio
from PIL import Image
from scipy.stats import bootstrap
from torch import Tensor

from sparke_engine.core.kernels import CosineKernel, unit
from sparke_engine.core.scores import vendi
from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import is_right, sheet

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

NEWEST = 64
NEWEST_WINDOWS = 32
TOGETHER = 1024
REPEAT_DISTANCE = 1e-3
RESAMPLES = 4000


@dataclass(frozen=True)
class Made:
    """What a run made, tenants first: entries [t,n,d], judge's features [t,n,128] and attributes [t,n,4].

    `first` and `newest` are pictures of the first tenant, uint8 [≤64,3,64,64].
    """

    features: Tensor
    judged: Tensor
    attributes: Tensor
    first: Tensor
    newest: Tensor

    @classmethod
    def nothing(cls, tenants: int, feature_dim: int) -> "Made":
        """What a run has before its first image."""
        no_pictures = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
        return cls(
            torch.zeros(tenants, 0, feature_dim),
            torch.zeros(tenants, 0, 128),
            torch.zeros(tenants, 0, 4, dtype=torch.int64),
            no_pictures,
            no_pictures.clone(),
        )

    def plus(self, features: Tensor, judged: Tensor, attributes: Tensor, pictures: Tensor) -> "Made":
        """With a round's images."""
        return Made(
            torch.cat([self.features, features], dim=1),
            torch.cat([self.judged, judged], dim=1),
            torch.cat([self.attributes, attributes], dim=1),
            torch.cat([self.first, pictures])[:NEWEST].clone(),
            torch.cat([self.newest, pictures])[-NEWEST:].clone(),
        )

    def window_scores(self) -> Tensor:
        """The Vendi score of each window of 64 images, counted from the newest back, oldest window first: float64 [t,w]."""
        start = self.judged.shape[1] % NEWEST
        tenants, _, dim = self.judged.shape
        windows = self.judged[:, start:].reshape(tenants, -1, NEWEST, dim)
        scores = [[vendi(window, CosineKernel()) for window in own] for own in windows]
        return torch.tensor(scores, dtype=torch.float64)


def nearest_earlier(judged: Tensor, newest: int) -> Tensor:
    """1 − cosine of the judge's features of each of the newest images to its nearest earlier one: float64 [newest].

    `judged` [n,128]. The newest see one another too, each those before it.
    """
    rows = unit(judged.double())
    distance = 1 - rows[-newest:] @ rows.T
    places = torch.arange(len(rows))
    is_earlier = places[None] < places[-newest:, None]
    return torch.where(is_earlier, distance, torch.inf).amin(1).clamp_min(0)


def repeats(judged: Tensor) -> Tensor:
    """For each tenant the share of the newest 64 images that another of them repeats: float64 [t]."""
    rows = unit(judged[:, -NEWEST:].double())
    distance = 1 - rows @ rows.mT + 2 * torch.eye(rows.shape[1], dtype=rows.dtype)
    return (distance.amin(2) < REPEAT_DISTANCE).double().mean(1)


def effective_cells(attributes: Tensor) -> float:
    """The exponential of the entropy over cells of colour, background and texture: float of attributes [n,4]."""
    cells = (attributes[:, 1] * 8 + attributes[:, 2]) * 3 + attributes[:, 3]
    shares = torch.bincount(cells).double() / len(cells)
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def ratio_of_means(own: Tensor, other: Tensor) -> Interval:
    """mean(own) / mean(other) of two independent samples, with its 95 % interval by bootstrap."""

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(a.mean(axis) / b.mean(axis))

    point = float(own.mean() / other.mean())
    if min(len(own), len(other)) < 2:
        return Interval(point, point, point)
    found = bootstrap(
        (own.numpy(), other.numpy()),
        partial(statistic),
        n_resamples=RESAMPLES,
        rng=0,
        method="percentile",
    )
    low, high = found.confidence_interval
    return Interval(point, float(low), float(high))


Runs = dict[tuple[str, str], Made]
Windows = dict[tuple[str, str], Tensor]


def write_report(made: Runs, prompt: str, where: str, folder: Path) -> str:
    """Writes `table.md`, `figures.json`, `long-memory.png` and a sheet of pictures for each run; returns the tables."""
    table = caption_table()
    stated = table.stated[table.texts.index(prompt)]
    windows = {run: one.window_scores() for run, one in made.items()}
    long_rows, pinned_rows = long_figures(made, windows, stated), pinned_figures(made, windows, stated)
    figures = {"where": where, "long": long_rows, "pinned": pinned_rows, "windows": saved_windows(windows)}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1, default=vars))
    for (kind, memory), one in made.items():
        both = torch.cat([one.first, one.newest]).float() / 255
        name = f"{kind}-{memory.replace(' ', '-')}.png"
        Image.fromarray(sheet(both, 16).numpy()).save(folder / name)
    return read_report(folder / "figures.json", folder)


def read_report(path: Path, folder: Path) -> str:
    """Writes `table.md` of a `figures.json`, and `long-memory.png` where it holds the windows' scores; returns the tables."""
    figures = json.loads(path.read_text())
    long_rows, pinned_rows = ([_read_row(row) for row in figures[kind]] for kind in ("long", "pinned"))
    text = f"{figures['where']}\n\n{long_table(long_rows)}\n\n{pinned_table(pinned_rows)}\n"
    (folder / "table.md").write_text(text)
    if "windows" in figures:
        draw(windows_of(figures["windows"]), folder / "long-memory.png")
    return text


def _read_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: Interval(**value) if isinstance(value, dict) else value for name, value in row.items()}


def saved_windows(windows: Windows) -> list[dict[str, Any]]:
    """The scores [t,w] of each run, for JSON."""
    return [
        {"kind": kind, "memory": memory, "scores": scores.tolist()}
        for (kind, memory), scores in windows.items()
    ]


def windows_of(saved: list[dict[str, Any]]) -> Windows:
    """What `saved_windows` gave."""
    return {(one["kind"], one["memory"]): torch.tensor(one["scores"], dtype=torch.float64) for one in saved}


def long_figures(made: Runs, windows: Windows, stated: Tensor) -> list[dict[str, Any]]:
    """A row for each long run that is there."""
    rows: list[dict[str, Any]] = []
    unguided = made.get(("long", "none"))
    near = None
    if unguided is not None:
        near = float(nearest_earlier(unguided.judged[0], _newest(unguided)).median())
    for (kind, memory), one in made.items():
        if kind != "long":
            continue
        new, judged, seen = _newest(one), one.judged[0], one.attributes[0]
        fresh = windows.get(("fresh", "none" if memory == "none" else "all"))
        newest = windows[kind, memory][0, -(new // NEWEST) :]
        right = is_right(seen, stated.expand_as(seen)).double()
        distances = nearest_earlier(judged, new)
        rows.append(
            {
                "memory": memory,
                "first": None if fresh is None else mean_of(fresh[:, 0]),
                "newest": mean_of(newest),
                "ratio": None if fresh is None else ratio_of_means(newest, fresh[:, 0]),
                "together": vendi(judged[-min(new, TOGETHER) :], CosineKernel()),
                "cells": effective_cells(seen[-new:]),
                "near_share": None if near is None else float((distances < near).double().mean()),
                "nearest": float(distances.mean()),
                "repeats": float(repeats(one.judged)),
                "right_first": float(right[:1000].mean()),
                "right_last": float(right[-1000:].mean()),
            }
        )
    return rows


def pinned_figures(made: Runs, windows: Windows, stated: Tensor) -> list[dict[str, Any]]:
    """A row for each pinned run that is there; tenants in pairs."""
    rows: list[dict[str, Any]] = []
    for (kind, memory), one in made.items():
        if kind != "pinned":
            continue
        first, newest = windows[kind, memory][:, 0], windows[kind, memory][:, -1]
        seen = one.attributes[:, -NEWEST:].flatten(0, 1)
        rows.append(
            {
                "memory": memory,
                "first": mean_of(first),
                "newest": mean_of(newest),
                "ratio": ratio(newest, first),
                "repeats": mean_of(repeats(one.judged)),
                "right_last": float(is_right(seen, stated.expand_as(seen)).double().mean()),
            }
        )
    return rows


def _newest(one: Made) -> int:
    """How many images count as the newest of a long run: 32 windows, or half of what there is."""
    num_windows = one.judged.shape[1] // NEWEST
    return NEWEST * max(1, min(NEWEST_WINDOWS, num_windows // 2))


def long_table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    heads = [
        "memory",
        "Vendi of the first 64",
        "of newest windows of 64",
        "ratio",
        "of the last 1,024 together",
        "cells",
        "nearer to an earlier image than half of those without memory",
        "right, first 1,000",
        "right, last 1,000",
    ]
    lines = _head(heads)
    for row in rows:
        cells = [
            row["memory"],
            "" if row["first"] is None else row["first"].text(".2f"),
            row["newest"].text(".2f"),
            "" if row["ratio"] is None else row["ratio"].text(".3f"),
            f"{row['together']:.2f}",
            f"{row['cells']:.1f}",
            "" if row["near_share"] is None else f"{100 * row['near_share']:.1f} %",
            f"{100 * row['right_first']:.1f} %",
            f"{100 * row['right_last']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pinned_table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    heads = [
        "memory, the same seeds in every request",
        "Vendi of the first 64",
        "of the newest 64",
        "ratio",
        "repeats among the newest 64",
        "right, newest 64",
    ]
    lines = _head(heads)
    lines += [
        f"| {row['memory']} | {row['first'].text('.2f')} | {row['newest'].text('.2f')} | {row['ratio'].text('.3f')} "
        f"| {row['repeats'].text('.1f', factor=100)} % | {100 * row['right_last']:.1f} % |"
        for row in rows
    ]
    return "\n".join(lines)


def _head(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def colours(windows: Windows) -> dict[str, str]:
    """A colour for each way to read a memory, the same in both panels."""
    return {memory: f"C{number}" for number, memory in enumerate(sorted({name for _, name in windows}))}


def draw(windows: Windows, path: Path) -> None:
    """The scores of windows against the memory's size: new seeds on the left, the same ones on the right."""
    colour_of = colours(windows)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), dpi=130, sharey=True)
    for axes, kind, title in zip(panels, ("long", "pinned"), ("new seeds", "the same seeds"), strict=True):
        for (own, memory), scores in windows.items():
            if own == kind:
                _curve(axes, scores, memory, colour_of[memory])
        axes.set_title(f"{title} in every request")
        axes.set_xlabel("images in the memory")
        axes.grid(visible=True, alpha=0.3)
        if axes.lines:
            axes.legend()
    panels[0].set_ylabel("Vendi score of 64 images")
    panels[0].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _curve(axes: Axes, scores: Tensor, label: str, colour: str) -> None:
    """Means over tenants and over stretches of windows, with their 95 % intervals."""
    num_windows = scores.shape[1]
    stretch = max(1, num_windows // 16)
    starts = range(num_windows % stretch, num_windows, stretch)
    means = [mean_of(scores[:, start : start + stretch].flatten()) for start in starts]
    sizes = [NEWEST * (start + stretch) for start in starts]
    axes.plot(sizes, [one.value for one in means], marker="o", ms=3, label=label, color=colour)
    axes.fill_between(
        sizes, [one.low for one in means], [one.high for one in means], alpha=0.15, color=colour, linewidth=0
    )
