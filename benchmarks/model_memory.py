"""What a worker's model needs: memory of the host while it loads and after, memory of the device, seconds an image.

    HF_HUB_OFFLINE=1 PYTHONPATH=. python benchmarks/model_memory.py --family sdxl flux --out OUT --limit-s 280
    python benchmarks/model_memory.py --tiny        small ones of the same parts, on a CPU too

Pipelines have the true sizes of the published models and random weights, which need no network and cost what true ones
cost. Each is saved in diffusers' format in the dtype that its repository has, then loaded in a fresh process as a worker
loads it (`load_spec`), which makes one image in two steps as a worker's warm-up does, and then a batch of each number of
images at the model's own size. Files come from the page cache, so the time of loading is without the disk's. There are two
rivals: `together` decodes the images of a batch at once, as pipelines do; `host`, loading alone, has the whole pipeline on
the host first, and from there brings it to the device.

Memory of the host is read from outside, every 5 ms: anonymous memory is what a container is killed for; pages of files go
where room is needed. For SDXL and FLUX 50 GB of disk are needed, one model after the other; `--keep` leaves folders for the
next call.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from model_shapes import FAMILIES
from resident import note_most, resident_bytes

WAYS = ("worker", "together", "host")
EVERY_S = 0.005
GB = 1e9
HEAD = (
    "| model | loaded | parameters | stored, GB | load, s | host: most anonymous, GB | host: most in all, GB | host: anonymous then, GB "
    "| device then, GB | images | device at most, GB | whole device, GB | a step, ms an image | decoding, ms an image |"
)


def main() -> None:
    """Prints rows as they come, and writes all as JSON after each."""
    asked = _arguments().parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    begin_s, measured = time.monotonic(), []
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|", flush=True)
    for name in asked.family:
        left_s = asked.limit_s - (time.monotonic() - begin_s)
        if left_s <= 0:
            print(f"{name}: no time is left", file=sys.stderr, flush=True)
            continue
        try:
            for found in measure(name, asked, left_s):
                measured.append(found)
                (asked.out / "model-memory.json").write_text(json.dumps(measured, indent=1))
                print("\n".join(rows_of(found)), flush=True)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--dtype", help="what it runs in, in place of the usual one")
    parser.add_argument("--stored", help="what its files are in, in place of what its repository has")
    parser.add_argument("--images", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the models' folders")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="what is not done by then is left out")
    parser.add_argument("--models", type=Path, default=Path("runs/model-memory/models"))
    parser.add_argument("--out", type=Path, default=Path("runs/model-memory"))
    return parser


def measure(name: str, asked: argparse.Namespace, limit_s: float) -> Iterator[dict[str, Any]]:
    """What was found of a family, way by way. Raises RuntimeError where a process fails or is late."""
    family, end_s = FAMILIES[name], time.monotonic() + limit_s
    stored = asked.stored or ("float32" if asked.tiny else family.stored)
    folder = asked.models / f"{name}-{'tiny' if asked.tiny else 'full'}-{stored}"
    given = {
        "family": name,
        "folder": str(folder),
        "device": asked.device,
        "tiny": asked.tiny,
        "stored": stored,
        "dtype": asked.dtype or ("float32" if asked.device == "cpu" else family.dtype),
        "side_px": 32 if asked.tiny else family.side_px,
        "guidance_scale": family.guidance_scale,
        "steps": asked.steps,
    }
    try:
        saved = _saved(folder, given, end_s)
        for way in asked.ways:
            images = [] if way == "host" else asked.images
            child = run({"do": "measure", "way": way, "images": images, **given}, end_s)
            if any(phase["phase"] == "load" for phase in child.found):
                yield {
                    "where": _where(asked.device),
                    **given,
                    "way": way,
                    **saved,
                    "phases": child.found,
                    "most": child.most,
                }
            child.check()
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder.with_suffix(".partial"), ignore_errors=True)


def _saved(folder: Path, given: dict[str, Any], end_s: float) -> dict[str, Any]:
    """What the folder holds; it is made where it is not there."""
    note = folder.with_suffix(".json")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        child = run({"do": "save", **given}, end_s)
        child.check()
        note.write_text(json.dumps(child.found[0]))
    saved: dict[str, Any] = json.loads(note.read_text())
    return saved


@dataclass
class Child:
    """What a process said of its phases, and the most that it held of the host in each."""

    name: str
    found: list[dict[str, Any]] = field(default_factory=list)
    most: dict[str, dict[str, int]] = field(default_factory=dict)
    returned: int = 0

    def check(self) -> None:
        """Raise RuntimeError where it did not come to its end."""
        if self.returned:
            raise RuntimeError(f"{self.name} ended with {self.returned}")


def run(given: dict[str, Any], end_s: float) -> Child:
    """One process of `model_memory_worker.py`, watched, and killed where it is late."""
    child, phase, over = Child(f"{given['family']}: {given['do']}"), ["begin"], Event()
    command = [sys.executable, str(Path(__file__).with_name("model_memory_worker.py")), json.dumps(given)]
    begin_s = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own

        def watch() -> None:
            while not over.wait(EVERY_S):
                if time.monotonic() > end_s:
                    process.kill()
                note_most(child.most.setdefault(phase[0], {}), resident_bytes(process.pid))

        watching = Thread(target=watch)
        watching.start()
        try:
            for line in process.stdout or ():
                said = json.loads(line)
                if "found" in said:
                    child.found.append(said["found"])
                else:
                    phase[0] = said["phase"]
                    told = f"{child.name}: {phase[0]} after {time.monotonic() - begin_s:.1f} s"
                    print(told, file=sys.stderr, flush=True)
        finally:
            over.set()
            watching.join()
    child.returned = process.returncode
    return child


def rows_of(found: dict[str, Any]) -> list[str]:
    """A row for each number of images, or one for a load alone."""
    (load,) = (phase for phase in found["phases"] if phase["phase"] == "load")
    most = found["most"]["load"]
    begin = [
        found["family"],
        found["way"],
        f"{sum(found['parameters'].values()):,}",
        _gb(found["stored_bytes"]),
        f"{load['seconds']:.1f}",
        _gb(most["anonymous"]),
        _gb(most["rss"]),
        _gb(load["host"]["anonymous"]),
        _gb(load.get("held_bytes")),
    ]
    batches = {
        int(phase["phase"].removeprefix("images: ")): phase for phase in found["phases"] if "step_s" in phase
    }
    ends = [_of_images(number, phase) for number, phase in batches.items()] or [["–"] * 5]
    return [f"| {' | '.join([*begin, *end])} |" for end in ends]


def _of_images(number: int, phase: dict[str, Any]) -> list[str]:
    per_image = [f"{1000 * phase[key] / number:.1f}" for key in ("step_s", "decode_s")]
    return [str(number), _gb(phase.get("peak_bytes")), _gb(phase.get("used_bytes")), *per_image]


def _where(device: str) -> str:
    on_cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name() if on_cuda else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, torch {torch.__version__}"


def _gb(size_bytes: int | None) -> str:
    return "–" if size_bytes is None else f"{size_bytes / GB:.2f}"


if __name__ == "__main__":
    main()
