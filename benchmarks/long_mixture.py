"""How a memory should be read, where it can be computed exactly: prompts of the Gaussian mixture asked for for ever.

    python benchmarks/long_mixture.py

The mixture of `mixture.py`: four prompts, each a ring of eight modes of unlike frequency, classifier-free guidance at
scale 3, mode `denoised`. Each prompt has a memory of its own, and a tenant asks for it four samples at a time. Ways to
read the memory are those of `long_memory.py`, which asks the same of the demo model: all entries, a fixed sample of
them, the oldest (what "nearest" comes to where prompts are equal), or a sample drawn anew for each request. *New noise*:
each request starts elsewhere. *The same noise*: each starts from the same four points, so that nothing but the memory
makes samples differ, as where a client sends the same seed with every request.

Scores are effective numbers of modes of 64 samples, in pairs over tenants and prompts with 95 % intervals by bootstrap.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from figures import Interval, mean_of, ratio
from mixture import (
    FELLOWS,
    MODES,
    PROMPTS,
    SCALE,
    SPREAD,
    View,
    denoise,
    denoised,
    modes,
    noise_levels,
    weights_of_modes,
)
from torch import Tensor

WINDOW, NEWEST_WINDOWS = 64, 4


@dataclass(frozen=True)
class Row:
    """A way to read the memory: effective modes of the first 64 and of newest windows, and samples within 3σ of a mode."""

    memory: str
    noise: str
    first: Interval
    newest: Interval
    ratio: Interval
    share: Interval

    def text(self) -> str:
        """As a line of Markdown."""
        cells = (self.first.text(".2f"), self.newest.text(".2f"), self.ratio.text(".3f"))
        return (
            f"| {self.noise} | {self.memory} | {' | '.join(cells)} | {self.share.text('.1f', factor=100)} |"
        )


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--strength", type=float, default=1.6, help="the size of a push in lengths of x̂0")
    parser.add_argument("--read", type=int, default=64, help="the entries that a bounded way reads")
    parser.add_argument("--out", type=Path, default=Path("runs/long-mixture"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    start_s, rows = time.perf_counter(), []
    print(
        "| noise | memory | effective modes of the first 64 | of newest windows of 64 | ratio | newest within 3σ, % |\n"
        "|---|---|---|---|---|---|"
    )
    ways = ("none", "all", *(f"{way} {asked.read}" for way in ("sample", "nearest", "anew")))
    for pinned in (False, True):
        for memory in ways[1 if pinned else 0 :]:
            made = samples(memory, asked.tenants, asked.samples, asked.strength, pinned=pinned)
            rows.append(row(memory, made, pinned=pinned))
            print(rows[-1].text(), flush=True)
    where = (
        f"{platform.node()}, one core, {time.perf_counter() - start_s:.0f} s; {asked.tenants} tenants, {PROMPTS} prompts, "
        f"{asked.samples} samples each, push {asked.strength:g}"
    )
    (asked.out / "long-mixture.json").write_text(
        json.dumps({"where": where, "rows": [asdict(one) for one in rows]}, indent=1)
    )
    print(f"\n{where}")


def samples(memory: str, tenants: int, number: int, strength: float, *, pinned: bool) -> Tensor:
    """What each tenant has of each prompt in the end: [r,p,number,2], oldest first."""
    generator = torch.Generator().manual_seed(3)
    past = torch.zeros(tenants, PROMPTS, 0, 2)
    noise = torch.randn(tenants, PROMPTS, FELLOWS, 2, generator=generator)
    order = torch.rand(number, generator=generator)
    while past.shape[2] < number:
        if not pinned:
            noise = torch.randn(noise.shape, generator=generator)
        known, weight = read(memory, past, order, generator)
        past = torch.cat([past, request(noise, known, weight, strength * (memory != "none"))], 2)
    return past


def read(memory: str, past: Tensor, order: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """The entries that a request gets, [r,p,k,2], and the weight n/k of each."""
    way, _, most = memory.partition(" ")
    size = past.shape[2]
    if way == "none":
        return past[:, :, :0], 1.0
    if way == "all" or size <= int(most):
        return past, 1.0
    if way == "nearest":
        return past[:, :, : int(most)], 1.0
    keys = order[:size] if way == "sample" else torch.rand(size, generator=generator)
    return past[:, :, keys.argsort()[: int(most)]], size / int(most)


def request(noise: Tensor, known: Tensor, weight: float, strength: float) -> Tensor:
    """Four samples for every tenant and prompt [r,p,4,2], by Euler steps of the probability-flow ODE, as in `mixture.py`."""
    sigmas, ring, often = noise_levels(), modes(), weights_of_modes()
    weights = torch.full((*noise.shape[:3], known.shape[2]), weight)
    noisy: Tensor = sigmas[0] * noise
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        prompted = denoise(noisy, ring, often, sigma)
        whole = denoise(noisy, ring.flatten(0, 1), often.flatten() / PROMPTS, sigma)
        clean = whole + SCALE * (prompted - whole)
        view = View(index, sigma, SCALE, noisy, clean, prompted, known, weights)
        if strength > 0:
            clean = clean - denoised(view, strength, relax=1.0, projected=False)
        noisy = clean + following / sigma * (noisy - clean)
    return noisy


def row(memory: str, made: Tensor, *, pinned: bool) -> Row:
    """The scores of a way, over tenants and prompts."""
    first, _ = window_scores(made[:, :, :WINDOW])
    stretch = min(NEWEST_WINDOWS, max(1, made.shape[2] // WINDOW // 2))
    late = [made[:, :, made.shape[2] - WINDOW * back :][:, :, :WINDOW] for back in range(1, stretch + 1)]
    scores, shares = zip(*(window_scores(window) for window in late), strict=True)
    newest, share = torch.stack(scores).mean(0), torch.stack(shares).mean(0)
    noise = "the same" if pinned else "new"
    return Row(memory, noise, mean_of(first), mean_of(newest), ratio(newest, first), mean_of(share))


def window_scores(window: Tensor) -> tuple[Tensor, Tensor]:
    """Effective modes of a window [r,p,n,2] and the share of its samples within 3σ of one, float64 [r·p] each."""
    nearest = torch.cdist(window, modes().expand(len(window), -1, -1, -1)).min(-1)
    is_near = nearest.values < 3 * SPREAD
    counts = (torch.nn.functional.one_hot(nearest.indices, MODES) * is_near[..., None]).sum(2).double()
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    effective = torch.exp(-torch.xlogy(shares, shares).sum(-1))
    return effective.flatten(), is_near.double().mean(2).flatten()


if __name__ == "__main__":
    main()
