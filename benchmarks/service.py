"""What the service costs around an engine that costs nothing, and whether it is fair.

    python benchmarks/service.py                    some minutes on two cores
    python benchmarks/service.py --lines 50000      with a batch of so many lines for the last part

Four parts, each with its rival or floor in the same run; load comes from this process, which shares the cores:

- *overhead*: requests for one image, so many at a time. What a request takes, less what the engine took for its batch;
  where the time goes, by the job's own events; beside it the same number of requests that do
  nothing (`/livez`) at the same concurrency; how often Redis is asked for a job.
- *fairness*: one tenant asks for 2,000 images, then another for 10; how many of the first one's are made before the ten.
- *cancels*: 1,000 jobs, 500 of them cancelled at random while three workers run.
- *a batch*: requests of one tenant while another one's batch runs, against the same requests on an empty queue.

Figures go to `--out` as JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from service_load import (
    PHASES,
    all_of,
    client_of,
    ends_ms,
    engine,
    generate,
    livez,
    phases_ms,
    quantile,
    round_trips_a_job,
    submit,
    timed,
)
from service_scene import MODEL, Scene, scene

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.memory.keys import MemoryKey, log_key
from app.redis.connection import connect

BATCH = 16  # images, as the worker's setting has it


def main() -> None:
    """Measures, prints tables, writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--requests", type=int, default=1500, help="for each concurrency; 1 gets a tenth")
    parser.add_argument("--lines", type=int, default=0, help="lines of the batch; 0 leaves that part out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/service"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print(f"{platform.node()}, {os.cpu_count()} cores\n")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bounds = {"max_waiting_jobs_per_tenant": "5000", "max_batch_images": str(BATCH)}
        with scene(Path(folder) / "one", num_workers=1, tenants=("acme", "bolt"), **bounds) as one:
            found["overhead"] = asyncio.run(overhead(one, asked.concurrency, asked.requests))
            found["round_trips_a_job"] = asyncio.run(round_trips_a_job(one, "acme"))
            print(
                f"\nRedis is asked {found['round_trips_a_job']:.1f} times a job, one at a time.", flush=True
            )
            found["fairness"] = asyncio.run(fairness(one))
            if asked.lines:
                found["batch"] = asyncio.run(under_a_batch(one, asked.lines))
        with scene(Path(folder) / "three", num_workers=3, tenants=("acme",), **bounds) as three:
            found["cancels"] = asyncio.run(cancels(three, random.Random(asked.seed)))
    (asked.out / "service.json").write_text(json.dumps(found, indent=1))


async def overhead(there: Scene, concurrencies: list[int], num_requests: int) -> list[dict[str, Any]]:
    """One row for each concurrency."""
    rows = []
    print(
        "| at a time | requests | jobs a second | p50, ms | p95, ms | engine a batch, ms | images a batch | p50 without engine, ms "
        f"| {' | '.join(f'{phase}, ms' for phase in PHASES)} | `/livez`: p50, p95, ms | a second |\n"
        f"|{'---|' * 15}"
    )
    async with client_of(there, "acme", max(concurrencies)) as client:
        await timed(client, 20, 4, generate)
        for at_a_time in concurrencies:
            number = num_requests if at_a_time > 1 else max(20, num_requests // 10)
            before = engine(there)
            began_s = time.perf_counter()
            made = await timed(client, number, at_a_time, generate)
            took_s = time.perf_counter() - began_s
            seconds, batches, images = (
                late - early for late, early in zip(engine(there), before, strict=True)
            )
            engine_ms = 1000 * seconds / batches
            times = [one.ms for one in made]
            floor_began_s = time.perf_counter()
            floor = [one.ms for one in await timed(client, number, at_a_time, livez)]
            floor_s = time.perf_counter() - floor_began_s
            row: dict[str, Any] = {
                "at_a_time": at_a_time,
                "requests": number,
                "jobs_a_second": number / took_s,
                "p50_ms": quantile(times, 50),
                "p95_ms": quantile(times, 95),
                "engine_ms": engine_ms,
                "images_a_batch": images / batches,
                "p50_without_engine_ms": quantile(times, 50) - engine_ms,
                "phases_ms": await phases_ms(there, "acme", made),
                "livez_p50_ms": quantile(floor, 50),
                "livez_p95_ms": quantile(floor, 95),
                "livez_a_second": number / floor_s,
            }
            rows.append(row)
            phases = " | ".join(f"{row['phases_ms'][phase]:.1f}" for phase in PHASES)
            print(
                f"| {at_a_time} | {number} | {row['jobs_a_second']:.0f} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | "
                f"{engine_ms:.1f} | {row['images_a_batch']:.1f} | {row['p50_without_engine_ms']:.1f} | {phases} | "
                f"{row['livez_p50_ms']:.1f}, {row['livez_p95_ms']:.1f} | "
                f"{row['livez_a_second']:.0f} |",
                flush=True,
            )
    return rows


async def fairness(there: Scene, *, num_first: int = 2000, num_second: int = 10) -> dict[str, Any]:
    """How many images of a tenant with a long queue are made between another one's jobs and their ends."""
    async with client_of(there, "acme", 16) as first, client_of(there, "bolt", 16) as second:
        early = await submit(first, num_first)
        asked_ms = 1000 * time.time()
        late = await submit(second, num_second)
        ends, others = await ends_ms(there, "bolt", late), await ends_ms(there, "acme", early)
    between = sum(asked_ms <= end_ms <= max(ends) for end_ms in others)
    found = {
        "first": num_first,
        "second": num_second,
        "made_between": between,
        "batches_between": between / BATCH,
        "second_s": (max(ends) - asked_ms) / 1000,
        "first_s": (max(others) - asked_ms) / 1000,
    }
    print(
        f"\nFairness: of {num_first} jobs of a tenant that came first {between} ended between the other one's {num_second} "
        f"and their end, {found['batches_between']:.1f} batches' worth; the {num_second} took {found['second_s']:.1f} s, "
        f"all {found['first_s']:.1f} s.",
        flush=True,
    )
    return found


async def cancels(
    there: Scene, dice: random.Random, *, num_jobs: int = 1000, num_cancelled: int = 500
) -> dict[str, Any]:
    """Whether every cancel hit its job and no other, and nothing of one entered the memory after the answer."""
    async with client_of(there, "acme", 16) as client:
        job_ids = await submit(client, num_jobs, steps=200)
        chosen = dice.sample(job_ids, num_cancelled)
        acknowledged: dict[str, bool] = {}

        async def cancel(job_id: str) -> None:
            answer = (await client.post(f"/v1/jobs/{job_id}/cancel")).json()
            acknowledged[job_id] = (
                answer["status"] == "cancelled" or answer["cancel_requested_at"] is not None
            )

        await all_of(cancel, chosen, at_a_time=8)
        await ends_ms(there, "acme", job_ids)
        states = {job_id: (await client.get(f"/v1/jobs/{job_id}")).json()["status"] for job_id in job_ids}
        memory = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("default"))
        redis = connect(there.redis_url)
        num_entries = await redis.xlen(log_key(memory))
        await redis.aclose()
    wrongly = [job_id for job_id in job_ids if job_id not in acknowledged and states[job_id] != "succeeded"]
    ran_after = [job_id for job_id, was in acknowledged.items() if was and states[job_id] != "cancelled"]
    num_succeeded = sum(state == "succeeded" for state in states.values())
    found = {
        "jobs": num_jobs,
        "asked": num_cancelled,
        "acknowledged": sum(acknowledged.values()),
        "too_late": num_cancelled - sum(acknowledged.values()),
        "cancelled_wrongly": len(wrongly),
        "run_after_acknowledgement": len(ran_after),
        "succeeded": num_succeeded,
        "entries": num_entries,
    }
    is_right = not wrongly and not ran_after and num_entries == num_succeeded
    print(f"\nCancels: {found}: {'right' if is_right else 'WRONG'}", flush=True)
    return found


async def _until_begun(client: httpx.AsyncClient, batch_id: str) -> None:
    while True:
        shown = (await client.get(f"/v1/batches/{batch_id}")).json()
        if shown["request_counts"]["completed"] >= BATCH:
            return
        if shown["status"] not in {"validating", "in_progress"}:
            raise RuntimeError(f"the batch is {shown['status']}: {shown['errors']}")
        await asyncio.sleep(0.2)


async def under_a_batch(there: Scene, num_lines: int, *, num_requests: int = 60) -> dict[str, Any]:
    """Requests one after another on an empty queue, and while another tenant's batch runs."""
    async with client_of(there, "bolt", 2) as client, client_of(there, "acme", 2) as other:
        alone = [one.ms for one in await timed(client, num_requests, 1, generate)]
        body = {"prompt": "a star", "model": MODEL}
        lines = (
            json.dumps(
                {"custom_id": str(number), "method": "POST", "url": "/v1/images/generations", "body": body}
            )
            for number in range(num_lines)
        )
        uploaded = await other.post(
            "/v1/files", files={"file": ("lines.jsonl", "\n".join(lines))}, data={"purpose": "batch"}
        )
        made = await other.post(
            "/v1/batches",
            json={
                "input_file_id": uploaded.json()["id"],
                "endpoint": "/v1/images/generations",
                "completion_window": "24h",
            },
        )
        batch_id = made.json()["id"]
        await _until_begun(other, batch_id)
        under = [one.ms for one in await timed(client, num_requests, 1, generate)]
        counts = (await other.get(f"/v1/batches/{batch_id}")).json()["request_counts"]
        await other.post(f"/v1/batches/{batch_id}/cancel")
    found = {
        "lines": num_lines,
        "lines_done": counts["completed"],
        "alone_p50_ms": quantile(alone, 50),
        "alone_p95_ms": quantile(alone, 95),
        "under_p50_ms": quantile(under, 50),
        "under_p95_ms": quantile(under, 95),
    }
    print(
        f"\nA batch of {num_lines} lines: a request's p95 is {found['under_p95_ms']:.0f} ms under it ({counts['completed']} "
        f"lines were done by the end) and {found['alone_p95_ms']:.0f} ms alone, "
        f"{found['under_p95_ms'] / found['alone_p95_ms']:.2f} times; p50 {found['under_p50_ms']:.0f} and "
        f"{found['alone_p50_ms']:.0f} ms.",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
