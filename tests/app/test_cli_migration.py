"""`sparke redis migrate` on a Redis that several machines share."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.audit.log import AuditLimits, AuditLog, AuditQuery
from app.domain.audit import Journal
from app.domain.ids import ModelId, WorkerId, image_id, make_job_id
from app.jobs.types import WorkerInfo
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import DATA_FORMAT_KEY

pytestmark = pytest.mark.anyio

ENCODE_OLD = runpy.run_path(str(Path(__file__).parent / "memory" / "old_entries.py"))["encode_old"]
LOG = "sparke:{t:acme}:memory:demo:default:log"


def _sparke(redis_url, *arguments):
    """Exit code and standard error of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env={**environment, "SPARKE_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return done.returncode, done.stderr


HALVES = np.ones(3, np.float16)
ENTRY = MemoryEntry(image_id(make_job_id(1, b"12345678"), 0), 1, 2, HALVES, HALVES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "expected"),
    [(None, "data format 1, this release works with 2"), (3, "a newer release wrote them")],
)
async def test_no_main_works_with_another_format(redis, redis_url, number, expected):
    """Each says what to do, and so do the commands that look into Redis by themselves."""
    await redis.xadd(LOG, {"e": ENCODE_OLD(ENTRY)}, id="1-0")
    if number is not None:
        await redis.set(DATA_FORMAT_KEY, number)
    for arguments in (("api", "--port", "0"), ("worker",), ("serve", "--port", "0"), ("keys", "list")):
        code, said = _sparke(redis_url, *arguments)
        assert code != 0, arguments
        assert expected in said, arguments


async def test_an_older_releases_redis_is_migrated(redis, redis_url):
    """Not while a worker lives; a second call finds nothing to do."""
    await redis.xadd(LOG, {"e": ENCODE_OLD(ENTRY)}, id="1-0")
    registry = WorkerRegistry(redis, ttl_s=20)
    await registry.beat(WorkerInfo(WorkerId("w1"), "ready", (ModelId("toy"),), now_ms()))
    code, said = _sparke(redis_url, "redis", "migrate")
    assert code == 1
    assert "w1; stop every worker" in said
    await registry.remove(WorkerId("w1"))
    for num_written in (1, 0):
        code, said = _sparke(redis_url, "redis", "migrate")
        assert code == 0, said
        assert f"The data have the format 2; {num_written} logs were written anew." in said
    assert (await redis.xrange(LOG))[0][1] == {b"e": encode_entry(ENTRY)}
    audit = AuditLog(redis, AuditLimits(100, 3600), clock_ms=now_ms)
    page = await audit.read(AuditQuery(Journal.ADMIN, 9, "asc"))
    assert {(record.deed.act, record.deed.actor) for _, record in page.records} == {("data.migrate", "cli")}
    told = [(record.outcome, dict(record.facts)) for _, record in page.records]
    assert told == [
        ("begun", {}),
        ("refused", {}),
        ("begun", {}),
        ("done", {"num_logs": 1}),
        ("begun", {}),
        ("done", {"num_logs": 0}),
    ]
