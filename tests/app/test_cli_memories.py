"""`sparke memories` as the operator runs it: what looks into Redis by itself."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
import redis
from command_line import create_key, run_sparke
from patience import PATIENCE_S

from app.domain.ids import JobId, LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.errors import NotFound
from app.images.store import ImageStore, image_key
from app.jobs.remains import RemainsCleaner
from app.jobs.workers import now_ms
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

ACME = TenantId("acme")
AT_MS = 1_700_000_000_000


def test_memories_are_seen_and_forgotten(tmp_path: Path):
    """Entries, oldest last; one is forgotten, then what is left, then the memory; another tenant's is not there."""
    where = ("--tenant", "acme", "--data-dir", str(tmp_path))
    with EmbeddedRedis.start(tmp_path) as server:
        create_key(tmp_path, "acme")
        _remember(server.url, 3)
        [line] = run_sparke("memories", "list", *where).stdout.splitlines()
        assert re.fullmatch(r"toy\.default\t3\t3\t[0-9]+\t2023-11-14T22:13:20Z", line)
        assert run_sparke("memories", "list", "--tenant", "default", "--data-dir", str(tmp_path)).stdout == ""
        shown = run_sparke("memories", "show", "toy.default", "--limit", "2", *where).stdout.splitlines()
        assert [each.split("\t")[::2] for each in shown] == [["3", "3"], ["2", "2"]]
        done = run_sparke("memories", "forget", "toy.default", "--version", "2", "--version", "9", *where)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "Forgotten: 1 entries." in done.stderr
        unclear = run_sparke("memories", "forget", "toy.default", "--version", "1", "--all", *where)
        assert unclear.returncode == 1
        assert "give one of --version, --before and --all" in unclear.stderr
        shown = run_sparke("memories", "show", "toy.default", *where).stdout.splitlines()
        assert [each.split("\t")[0] for each in shown] == ["3", "1"]
        early = run_sparke("memories", "forget", "toy.default", "--before", "1700000001", *where)
        assert "Forgotten: 2 entries." in early.stderr
        assert run_sparke("memories", "delete", "toy.default", *where).returncode == 0
        gone = run_sparke("memories", "show", "toy.default", *where)
        assert (gone.returncode, "there is no memory" in gone.stderr) == (1, True)


def test_a_command_that_knows_not_the_store_leaves_images_to_the_service(tmp_path: Path):
    """They lie elsewhere than in the folder that its settings name: what forgetting leaves stays written down, and no folder is made."""
    images = ImageStore.open((tmp_path / "of-the-service").as_uri())
    with EmbeddedRedis.start(tmp_path / "shared") as server:
        [job_id] = _remember(server.url, 1)
        key = image_key(ACME, job_id, 1, 0)
        asyncio.run(images.put(key, b"an image"))
        shell = tmp_path / "shell"
        shell.mkdir()
        done = run_sparke(
            *("memories", "forget", "toy.default", "--tenant", "acme", "--all"),
            cwd=shell,
            SPARKE_REDIS_URL=server.url,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "The service removes their images" in done.stderr
        assert list(shell.iterdir()) == []
        assert asyncio.run(_sweep(server.url, images)) == 1
    with pytest.raises(NotFound):
        asyncio.run(images.get(key))


async def _sweep(url: str, images: ImageStore) -> int:
    """What the service does by itself; how many images it removed."""
    client = connect(url, timeout_s=PATIENCE_S)
    try:
        return await RemainsCleaner(client, images, clock_ms=now_ms).sweep()
    finally:
        await client.aclose()


def _remember(url: str, num_entries: int) -> list[JobId]:
    """Fills a memory; the jobs, which have one image each."""
    memory, ones = MemoryKey(ACME, LatentSpace("toy"), MemoryName("default")), np.ones(2, np.float16)
    jobs = [make_job_id(AT_MS, version.to_bytes(8, "big")) for version in range(1, num_entries + 1)]
    with redis.Redis.from_url(url) as server:
        for version, job_id in enumerate(jobs, 1):
            entry = encode_entry(MemoryEntry(image_id(job_id, 0), version, AT_MS, ones, ones))
            server.xadd(log_key(memory), {"e": entry}, id=f"{version}-0")
        server.hset(meta_key(memory), mapping={"version": num_entries, "created_at_ms": AT_MS})
        server.sadd(index_key(memory.tenant_id), index_member(memory))
    return jobs
