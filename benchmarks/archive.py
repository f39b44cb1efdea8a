"""A memory of 100,000 entries leaves one service and comes into an empty one, and then makes the same images there.

    python benchmarks/archive.py --entries 100000

Each service has a Redis of its own that writes each command to its disk, an API and a worker with the demo model. Entries are
scattered around those of a few images that the first service has made, so that requests for the same prompts have
neighbours among them. `sparke memories` carries the archive; memory is what the API process had at the most.
"""

import argparse
import asyncio
import base64
import io
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from redis.asyncio import Redis
from service_scene import Scene, scene

import app
from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.store import MemoryStore
from app.redis.connection import connect

PROMPTS = ("a star", "a red circle", "a heart on sand", "a striped moon")
TENANT = "acme"
SEEN, LARGE = (
    MemoryKey(TenantId(TENANT), LatentSpace("demo"), MemoryName(name)) for name in ("seen", "large")
)
MODELS = str(Path(app.__file__).parent / "models.toml")
GAP_EVERY = 50  # each fiftieth version has no entry
_PAGE = 1000
_SAMPLE_S = 0.02
_KIB = 1024


@dataclass(frozen=True)
class Moved:
    """One way of the archive: how long it took, and what the API process held before and at the most."""

    seconds: float
    before_bytes: int
    most_bytes: int


@dataclass(frozen=True)
class Carried:
    """What was seen: `images` of the two services, request by request, then those without the memory."""

    num_entries: int
    archive_bytes: int
    log_bytes: int
    out: Moved
    back: Moved
    images: tuple[list[Any], list[Any]]
    unguided: list[Any]


def carry(folder: Path, *, num_entries: int, num_requests: int, steps: int) -> Carried:
    """Fills a memory, takes it to another service, and asks both for the same images, at two versions of the memory."""
    asked = [
        {"prompt": PROMPTS[number % len(PROMPTS)], "seed": 1000 * number, "n": 2, "steps": steps}
        for number in range(num_requests)
    ]
    path = folder / "large.sparke"
    with _service(folder / "one") as there:
        log_bytes = asyncio.run(_fill(there, num_entries, steps))
        out = _move(there, "export", "large", "--out", str(path))
        first = _images(there, asked, num_entries)
        unguided = _images(there, asked, 0)
    with _service(folder / "two") as there:
        back = _move(there, "import", str(path))
        second = _images(there, asked, num_entries)
    return Carried(num_entries, path.stat().st_size, log_bytes, out, back, (first, second), unguided)


@contextmanager
def _service(folder: Path) -> Iterator[Scene]:
    with scene(folder, num_workers=1, tenants=(TENANT,), models_file=MODELS) as there:
        yield there


async def _fill(there: Scene, num_entries: int, steps: int) -> int:
    """Images of each prompt, then a memory of entries around theirs; the bytes that its log takes in Redis."""
    for number, prompt in enumerate(PROMPTS):
        body = {
            "prompt": prompt,
            "n": 8,
            "steps": steps,
            "seed": number,
            "diversity": {"memory": {"name": "seen"}},
        }
        await asyncio.to_thread(_ask, there, body)
    redis = connect(there.redis_url)
    seen = [entry for _, entry in await MemoryStore(redis).read_entries_after(SEEN, 0)]
    source = np.random.default_rng(7)
    for start in range(1, num_entries + 1, _PAGE):
        await _append(redis, seen, range(start, min(start + _PAGE, num_entries + 1)), source)
    await redis.hset(meta_key(LARGE), mapping={"version": _version_of(num_entries), "created_at_ms": 1})
    await redis.sadd(index_key(LARGE.tenant_id), index_member(LARGE))
    log_bytes: Any = await redis.memory_usage(log_key(LARGE), samples=0)
    await redis.aclose()
    return int(log_bytes)


async def _append(redis: Redis, seen: list[MemoryEntry], numbers: range, source: np.random.Generator) -> None:
    async with redis.pipeline(transaction=False) as pipeline:
        for number in numbers:
            near = seen[source.integers(len(seen))]
            entry = MemoryEntry(
                image_id(make_job_id(number, b"synthetic"[:8]), 0),
                number,
                number,
                _scattered(near.feature, 0.5, source),
                _scattered(near.prompt_embedding, 0.05, source),
            )
            version = _version_of(number)
            pipeline.xadd(log_key(LARGE), {"e": encode_entry(entry)}, id=f"{version}-0")
        await pipeline.execute()


def _version_of(number: int) -> int:
    return number + (number - 1) // (GAP_EVERY - 1)


def _scattered(
    unit: NDArray[np.float16], distance: float, source: np.random.Generator
) -> NDArray[np.float16]:
    """A unit vector at about so large a distance from another."""
    noise = source.standard_normal(unit.size) * distance / np.sqrt(unit.size)
    moved = unit.astype(np.float64) + noise
    return np.asarray(moved / np.linalg.norm(moved), np.float16)


def _images(there: Scene, asked: list[dict[str, Any]], num_entries: int) -> list[Any]:
    """Pixels and figures of each request, as of the memory's last version and of the one at half of its entries."""
    found: list[Any] = []
    for version in (_version_of(num_entries), _version_of(num_entries // 2)) if num_entries else (0,):
        memory = {"name": "large", "write": False, "version": version, "read": num_entries > 0}
        if not num_entries:
            del memory["version"]
        for members in asked:
            answer = _ask(
                there, {**members, "reproducible": True, "diversity": {"strength": 1, "memory": memory}}
            )
            found += [
                (Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).tobytes(), image["diversity"])
                for image in answer["data"]
            ]
    return found


def _ask(there: Scene, body: dict[str, Any]) -> Any:
    headers = {"authorization": f"Bearer {there.keys[TENANT]}"}
    answer = httpx.post(f"{there.url}/v1/images/generations", json=body, headers=headers, timeout=300)
    answer.raise_for_status()
    return answer.json()


def _move(there: Scene, *command: str) -> Moved:
    """Runs `sparke memories` and watches the API's resident memory meanwhile."""
    is_over, pid = threading.Event(), there.pids["api"]
    before = most = _resident_bytes(pid)

    def watch() -> None:
        nonlocal most
        while not is_over.wait(_SAMPLE_S):
            most = max(most, _resident_bytes(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began_s = time.perf_counter()
    line = [sys.executable, "-P", "-m", "app.cli", "memories", *command, "--url", there.url]
    try:
        subprocess.run([*line, "--api-key", there.keys[TENANT]], check=True, capture_output=True)  # noqa: S603 - our own
    finally:
        is_over.set()
        watcher.join()
    return Moved(time.perf_counter() - began_s, before, most)


def _resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    """Prints a table, and whether the images are the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = carry(Path(folder), num_entries=asked.entries, num_requests=asked.requests, steps=asked.steps)
    print(
        f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}\n"
    )
    print(
        f"{found.num_entries:,} entries: {found.log_bytes / 1e6:.1f} MB in Redis, archive {found.archive_bytes / 1e6:.1f} MB\n"
    )
    print("| | s | MB/s | entries/s | API resident before, MiB | at the most |\n|---|---|---|---|---|---|")
    for name, moved in (("export", found.out), ("import", found.back)):
        print(
            f"| {name} | {moved.seconds:.1f} | {found.archive_bytes / 1e6 / moved.seconds:.1f}"
            f" | {found.num_entries / moved.seconds:,.0f} | {moved.before_bytes / 2**20:.0f} | {moved.most_bytes / 2**20:.0f} |"
        )
    first, second = found.images
    num_equal = sum(one == other for one, other in zip(first, second, strict=True))
    num_moved = sum(one[0] != plain[0] for one, plain in zip(first, found.unguided, strict=False))
    print(
        f"\n{num_equal} of {len(first)} images are the same to the bit on both services;"
        f" {num_moved} of {len(found.unguided)} differ from those that no memory leads"
    )
    sys.exit(0 if num_equal == len(first) else 1)


if __name__ == "__main__":
    main()
