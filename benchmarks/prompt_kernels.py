"""The prompt kernel on pairs of prompts of known relation, as a table and as a picture: part of `prompt_awareness.py`."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from prompt_sets import Pairs
from torch import Tensor

from sparke_engine.guidance.bandwidths import PromptBandwidth, prompt_bandwidth_from

mpl.use("agg")
from matplotlib import pyplot as plt

KINDS = {
    "related": ("#1b9e77", "one scene in two ways"),
    "overlapping": ("#d95f02", "two scenes of one theme"),
    "unrelated": ("#7570b3", "scenes of two themes"),
}
LEAST_KERNEL = 1e-6
SHARE = 0.95


def kernel_table(encoders: dict[str, Pairs], preset_bandwidth: float) -> str:
    """For each encoder what k_Y² is between related, overlapping and unrelated prompts, at two bandwidths."""
    lines = [
        "| encoder | bandwidth | related: median | ≥ 0.5 | overlapping: median | unrelated: median | ≤ 0.01 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pairs in encoders.items():
        chosen = prompt_bandwidth_from(pairs.related, pairs.unrelated, share=SHARE).bandwidth
        for bandwidth, why in ((preset_bandwidth, "preset"), (chosen, "chosen")):
            values = {kind: kernel(getattr(pairs, kind), bandwidth) for kind in KINDS}
            near = float((values["related"] >= 0.5).double().mean())
            far = float((values["unrelated"] <= 0.01).double().mean())
            lines.append(
                f"| {name} | {bandwidth:.3g} ({why}) | {values['related'].median():.2g} | {100 * near:.1f} % "
                f"| {values['overlapping'].median():.2g} | {values['unrelated'].median():.2g} | {100 * far:.1f} % |"
            )
    return "\n".join(lines)


def range_table(encoders: dict[str, Pairs]) -> str:
    """For each encoder the distances of pairs and the bandwidths that follow from them."""
    lines = [
        "| encoder | related: distance, 5 to 95 % | overlapping | unrelated | bandwidth from | to | chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pairs in encoders.items():
        spans = [
            "{:.2f} to {:.2f}".format(*np.quantile(getattr(pairs, kind), [0.05, 0.95])) for kind in KINDS
        ]
        found = prompt_bandwidth_from(pairs.related, pairs.unrelated, share=SHARE)
        lines.append(
            f"| {name} | {' | '.join(spans)} | {found.least:.3g} | {found.most:.3g} "
            f"| {found.bandwidth:.3g}{'' if found.can_be_had else ', the largest that keeps the unrelated off'} |"
        )
    return "\n".join(lines)


def kernel(distances: Tensor, bandwidth: float) -> Tensor:
    """k_Y² at distances."""
    return torch.exp(-distances.square() / bandwidth**2)


def draw(encoders: dict[str, Pairs], preset_bandwidth: float, path: Path) -> None:
    """A row an encoder: how far apart pairs are with the kernel over it, and what the kernel makes of them."""
    figure, rows = plt.subplots(
        len(encoders), 2, figsize=(12, 1.2 + 3.2 * len(encoders)), squeeze=False, layout="constrained"
    )
    for axes, (name, pairs) in zip(rows, encoders.items(), strict=True):
        found = prompt_bandwidth_from(pairs.related, pairs.unrelated, share=SHARE)
        _distances(axes[0], name, pairs, {"preset": preset_bandwidth, "chosen": found.bandwidth})
        _kernels(axes[1], pairs, found)
    handles, labels = rows[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(KINDS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _distances(axis: Any, name: str, pairs: Pairs, bandwidths: dict[str, float]) -> None:
    for kind in KINDS:
        _histogram(axis, getattr(pairs, kind).numpy(), kind, np.linspace(0, 1.6, 33))
    axis.set(xlim=(0, 1.6), xlabel="distance of unit prompt embeddings", title=name)
    top = axis.get_ylim()[1]
    axis.set_ylim(top=1.35 * top)  # room for the legend
    axis.set_yticks([tick for tick in axis.get_yticks() if tick <= min(top, 100)])
    curves = axis.twinx()
    places = np.linspace(0, 1.6, 200)
    for (why, bandwidth), style in zip(bandwidths.items(), ("--", "-"), strict=True):
        values = np.exp(-((places / bandwidth) ** 2))
        curves.plot(places, values, style, color="black", label=f"bandwidth {bandwidth:.2f} ({why})")
    curves.set(ylim=(0, 1.35), ylabel="$k_Y^2$ (black)")
    curves.set_yticks([0, 0.5, 1])
    curves.legend(fontsize=9, loc="upper right")


def _kernels(axis: Any, pairs: Pairs, found: PromptBandwidth) -> None:
    bins = np.geomspace(LEAST_KERNEL, 1, 41)
    for kind, (_, meaning) in KINDS.items():
        values = kernel(getattr(pairs, kind), found.bandwidth).clamp_min(LEAST_KERNEL).numpy()
        _histogram(axis, values, kind, bins, label=f"{kind}: {meaning}")
    for edge in (0.01, 0.5):
        axis.axvline(edge, color="black", linewidth=1, linestyle=":")
    near, far = 100 * found.related_near, 100 * found.unrelated_far
    axis.set(
        xscale="log",
        xlim=(LEAST_KERNEL, 1),
        xlabel=f"$k_Y^2$ at bandwidth {found.bandwidth:.2f} (the first bin holds all that is smaller)",
        title=f"{near:.0f} % of related ≥ 0.5, {far:.0f} % of unrelated ≤ 0.01 (dotted)",
    )


def _histogram(axis: Any, values: np.ndarray, kind: str, bins: np.ndarray, *, label: str = "") -> None:
    """Shares of a kind, outlined, so that kinds that overlap can be told apart."""
    colour, weights = KINDS[kind][0], np.full(len(values), 100 / len(values))
    axis.hist(values, bins, weights=weights, histtype="stepfilled", color=colour, alpha=0.2)
    axis.hist(
        values, bins, weights=weights, histtype="step", color=colour, linewidth=1.8, label=label or None
    )
    axis.set_ylabel("% of the kind's pairs")
