"""How fast neighbours are found in a large memory, beside a flat FAISS index and cells with exact pruning; no Redis.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/memory_search.py             sizes 100,000, 300,000 and 1,000,000
    python benchmarks/memory_search.py --sizes 1000000 --device cuda --no-rivals     and what the device takes

OpenMP's threads sleep while they wait, as in a worker.

The worst case for the search: every entry has a prompt of its own, so that nothing is shared. Rivals, in the same run:
`IndexFlatIP` in fp32, as it was, and the share of rows that an inverted file of 2,048 k-means cells could not leave out by
the triangle inequality on the sphere, cell by cell and row by row. `common` is the cosine of unrelated prompts.

With a device, the neighbours that were chosen are brought there and one step of guidance of an image of 1024 px is done.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import torch
from scale_scene import PROMPT, Prompts, Report, Rows, chosen_of, drawn_rows

from app.worker.memory.host_memory import Chosen, HostMemory
from app.worker.memory.neighbours import to_neighbours
from sparke_engine.guidance.denoised import Extrapolation, denoised_push
from sparke_engine.guidance.presets import preset_named
from sparke_engine.guidance.push import Entries

CELLS, TRAINED_A_CELL, PRUNED_BELOW = 2048, 39, 400_000
MIN_COSINE = 0.689  # of the preset `sdxl`
SIDE, CHANNELS = 128, 4


def main() -> None:
    """Prints the figures and writes them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--common", type=float, nargs="+", default=[0.0, 0.4])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-rivals", action="store_true", help="only what is used")
    parser.add_argument("--out", type=Path, default=Path("runs/memory-search"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    name = f", {torch.cuda.get_device_name()}" if asked.device == "cuda" else ""
    report = Report.begin(name)
    for size in asked.sizes:
        for common in asked.common:
            _measure(size, common, asked, report)
    (asked.out / f"memory-search-{asked.device}.json").write_text(json.dumps(asdict(report), indent=1))


def _measure(size: int, common: float, asked: argparse.Namespace, report: Report) -> None:
    generator = np.random.default_rng(size)
    prompts = Prompts.drawn(generator, common=common)
    memory = HostMemory(1024, PROMPT)
    for rows in drawn_rows(prompts, size, generator, own=1.0):
        memory.append(rows)
    queries = prompts.asked(asked.queries, generator, own=1.0).embeddings
    title = f"{size:,} prompts, common {common}"
    report.tell_load()
    report.tell(f"{title}: GiB of the copy", memory.size_bytes / 2**30)
    counts = [chosen_of(memory, query).num_qualified for query in queries[:20]]
    report.tell(
        f"{title}: entries that qualify, median and largest", f"{np.median(counts):,.0f}, {max(counts):,}"
    )
    report.quantiles_ms(f"{title}: choice of neighbours", _timed(lambda q: chosen_of(memory, q), queries))
    if not asked.no_rivals:
        _rivals(memory, queries, title, report)
    if asked.device != "cpu" or asked.no_rivals:
        _device([chosen_of(memory, query) for query in queries], title, asked.device, report)


def _timed(call: Callable[[Rows], object], queries: Rows) -> list[float]:
    times = []
    for query in queries:
        start_s = time.perf_counter()
        call(query)
        times.append(time.perf_counter() - start_s)
    return times


def _rivals(memory: HostMemory, queries: Rows, title: str, report: Report) -> None:
    rows = np.concatenate(memory.frozen().prompts)
    index = faiss.IndexFlatIP(PROMPT)
    for start in range(0, len(rows), 100_000):
        index.add(rows[start : start + 100_000].astype(np.float32))
    times = _timed(lambda query: index.range_search(query[None], MIN_COSINE), queries)
    report.quantiles_ms(f"{title}: FAISS, flat, fp32, search alone", times)
    if len(rows) < PRUNED_BELOW:
        kept = _kept_by_cells(rows.astype(np.float32), queries)
        report.tell(
            f"{title}: share that cells cannot leave out, by cells and by rows",
            "{:.2f}, {:.2f}".format(*kept),
        )


def _kept_by_cells(rows: Rows, queries: Rows) -> tuple[float, float]:
    """Shares of rows within the bound's angle of what their cell's radius, or their own angle in it, leaves possible."""
    cells = faiss.Kmeans(
        PROMPT, CELLS, niter=6, spherical=True, max_points_per_centroid=TRAINED_A_CELL, seed=1
    )
    cells.train(rows)
    cosines, places = cells.index.search(rows, 1)
    angles, cell_of = np.arccos(np.clip(cosines[:, 0], -1, 1)), places[:, 0]
    radii = np.zeros(CELLS)
    np.maximum.at(radii, cell_of, angles)
    bound, by_cells, by_rows = np.arccos(MIN_COSINE), [], []
    for query in queries:
        from_cells = np.arccos(np.clip(cells.centroids @ query, -1, 1))
        by_cells.append((from_cells <= bound + radii)[cell_of].mean())
        by_rows.append((np.abs(angles - from_cells[cell_of]) <= bound).mean())
    return float(np.mean(by_cells)), float(np.mean(by_rows))


def _device(chosen: list[Chosen], title: str, device: str, report: Report) -> None:
    """From the choice on the host to the end of one guided step on the device."""
    preset = preset_named("sdxl")
    clean, prompted = torch.randn(2, 1, CHANNELS, SIDE, SIDE, device=device)
    limit, scale = torch.ones(1, device=device), torch.full((1,), 7.5, device=device)

    def bring(one: Chosen) -> Entries | None:
        neighbours = to_neighbours(one)
        if neighbours is None:
            return None
        return Entries(neighbours.features[0], neighbours.weights[0]).to(torch.device(device))

    def step(entries: Entries) -> None:
        extrapolation = Extrapolation(prompted, scale)
        denoised_push(clean, entries, preset, eta=1.0, limit=limit, extrapolation=extrapolation, relax=0.5)

    brought, stepped = [], []
    for one in [chosen[0], *chosen]:
        start_s = time.perf_counter()
        entries = bring(one)
        _wait(device)
        middle_s = time.perf_counter()
        if entries is not None:
            step(entries)
            _wait(device)
            brought.append(middle_s - start_s)
            stepped.append(time.perf_counter() - middle_s)
    report.tell(f"{title}: neighbours of an image, largest", float(max(len(one.versions) for one in chosen)))
    report.quantiles_ms(f"{title}: neighbours brought to {device}", brought[1:])
    report.quantiles_ms(f"{title}: one guided step on {device}, not recorded", stepped[1:])
    if device == "cuda":
        report.tell(f"{title}: largest bytes on the device, MiB", torch.cuda.max_memory_allocated() / 2**20)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
