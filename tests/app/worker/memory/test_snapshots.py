"""Copies of memories that begin with a snapshot: as good as those read from the log, and never with what was forgotten."""

import os
from importlib.resources import files

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.jobs.workers import now_ms
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.snapshot_keys import SnapshotKeys
from app.memory.store import MemoryStore
from app.telemetry.metrics import Metrics
from app.worker.memory.host_memory import NeighbourQuery
from app.worker.memory.memory_cache import Dimensions, MemoryCache
from app.worker.memory.snapshot_keeper import SnapshotKeeper
from app.worker.memory.snapshots import SnapshotFolder

pytestmark = pytest.mark.anyio

DIMENSIONS = Dimensions(feature=4, prompt=3)
KEY = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("default"))


class CountedStore(MemoryStore):
    """Counts the entries that are read."""

    num_read = 0

    async def read_after(self, *arguments, **members):
        """As the store does."""
        page = await super().read_after(*arguments, **members)
        self.num_read += len(page)
        return page


async def _write(redis, count, key=KEY, *, origin=0):
    """Entries as a commit adds them; another origin makes other ones."""
    for _ in range(count):
        version = await redis.hincrby(meta_key(key), "version", 1)
        rng = np.random.default_rng(origin + version)
        prompt = np.eye(3)[version % 3] + 0.1 * rng.normal(size=3) * (version % 2)
        entry = MemoryEntry(
            image_id(make_job_id(version, bytes(8)), 0),
            version,
            version,
            rng.normal(size=4).astype(np.float16),
            (prompt / np.linalg.norm(prompt)).astype(np.float16),
        )
        await redis.xadd(log_key(key), {"e": encode_entry(entry)}, id=f"{version}-0")
    await redis.sadd(index_key(key.tenant_id), index_member(key))


class Worker:
    """A worker's copies and their snapshots."""

    def __init__(self, redis, folder, *, max_bytes=10**9):
        self.log = CountedStore(redis)
        self.folder = SnapshotFolder.open(folder, max_bytes=max_bytes)
        self.keeper = SnapshotKeeper(self.folder, SnapshotKeys(redis), least_entries=1)
        self.metrics = Metrics(CollectorRegistry())
        self.cache = MemoryCache(
            self.log, budget_bytes=10**9, metrics=self.metrics, page_entries=7, snapshots=self.keeper
        )

    async def chosen(self, key=KEY):
        """What a request of now has as neighbours, as bytes."""
        point = await self.log.resolve_version(key, None)
        synced = await self.cache.sync(key, DIMENSIONS, forget_version=point.forget_version)
        found = synced.memory.select(
            NeighbourQuery(np.eye(3, dtype=np.float32)[1], point.version, 0.5, 3.0, 9)
        )
        return [
            found.features.tobytes(),
            found.versions.tolist(),
            found.weights.tobytes(),
            len(synced.memory),
        ]

    async def save(self):
        """Writes what is due."""
        await self.keeper.save(self.cache)


@pytest.fixture
def start(redis, tmp_path):
    """Starts workers that share a folder."""
    return lambda **members: Worker(redis, tmp_path / "snapshots", **members)


@pytest.fixture
def forgetter(redis):
    """What forgets."""
    return MemoryForgetter(redis, clock_ms=now_ms)


def _files(tmp_path):
    return sorted((tmp_path / "snapshots").iterdir())


async def test_a_worker_starts_from_a_snapshot_and_reads_the_tail(redis, start, tmp_path):
    """It chooses what a worker without one does, to the bit, for the price of what has come since."""
    await _write(redis, 40)
    first = start()
    await first.chosen()
    await first.save()
    await _write(redis, 5)
    second = start()
    found = await second.chosen()
    assert second.log.num_read == 6
    assert found == await Worker(redis, tmp_path / "none").chosen()
    told = second.metrics.registry.get_sample_value
    assert told("sparke_memory_cache_lookups_total", {"outcome": "snapshot"}) == 1
    await _write(redis, 30)
    assert await second.chosen() == await Worker(redis, tmp_path / "none").chosen()


@pytest.mark.parametrize("act", ["versions", "newest", "all", "delete"])
async def test_a_snapshot_does_not_outlive_what_is_forgotten(redis, start, forgetter, tmp_path, act):
    """From the acknowledgement on its key is nowhere, so the file does not open; who finds it removes it."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    await worker.save()
    (path,) = _files(tmp_path)
    key = await redis.hget(meta_key(KEY), "snapshot_key")
    assert len(key) == 32
    await {
        "versions": lambda: forgetter.forget_versions(KEY, [3]),
        "newest": lambda: forgetter.forget_versions(KEY, [40]),
        "all": lambda: forgetter.forget_all(KEY),
        "delete": lambda: forgetter.delete(KEY),
    }[act]()
    assert await redis.hget(meta_key(KEY), "snapshot_key") is None
    await _write(redis, 3)
    later = start()
    with capture_logs() as logs:
        found = await later.chosen()
    assert "memory_snapshot_not_read" in [line["event"] for line in logs]
    assert not path.exists()
    assert found == await Worker(redis, tmp_path / "none").chosen()
    assert await worker.chosen() == found
    await worker.save()
    assert await redis.hget(meta_key(KEY), "snapshot_key") not in (None, key)
    assert await start().chosen() == found


async def test_a_copy_hears_of_what_was_forgotten_before_it_is_written(redis, start, forgetter, tmp_path):
    """Though no request has read it since: the old file goes, and the new one has nothing of it."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    await worker.save()
    (path,) = _files(tmp_path)
    before = path.read_bytes()
    await forgetter.forget_versions(KEY, [3])
    await _write(redis, 2)
    await worker.save()
    assert path.read_bytes() != before
    later = start()
    found = await later.chosen()
    assert later.log.num_read == 1
    assert found == await Worker(redis, tmp_path / "none").chosen()


async def test_a_copy_that_has_not_heard_gets_no_key(redis, start, forgetter, tmp_path):
    """Where something is forgotten between the last look and the key, nothing is written, until the next time."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    freeze = worker.cache.freeze

    async def freeze_late(key):
        frozen = await freeze(key)
        await forgetter.forget_versions(key, [await worker.log.version(key)])
        await _write(redis, 1)
        return frozen

    worker.cache.freeze = freeze_late
    await worker.save()
    assert _files(tmp_path) == []
    assert await redis.hget(meta_key(KEY), "snapshot_key") is None
    worker.cache.freeze = freeze
    await worker.save()
    assert len(_files(tmp_path)) == 1


async def test_a_memory_at_its_cap_has_snapshots(redis, start, tmp_path):
    """Every commit takes its oldest entries by an act that the worker has not read when it comes to write."""
    await _write(redis, 40)
    await redis.hset(meta_key(KEY), "max_entries", 40)
    worker = start()
    await worker.chosen()
    await _write(redis, 1)
    await _keep_caps(redis)
    await worker.save()
    assert len(_files(tmp_path)) == 1
    later = start()
    assert (await later.chosen())[3] == 40
    assert later.log.num_read == 1


async def _keep_caps(redis):
    cap = redis.register_script(_script("common") + _script("cap"))
    await cap(
        keys=[meta_key(KEY), log_key(KEY), meta_key(KEY).replace(":meta", ":forgotten")], args=[now_ms()]
    )


async def test_what_caps_took_leaves_a_snapshot_as_it_is_read(redis, start, tmp_path):
    """The key stays, and what went since the file was written is dropped before anything is chosen."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    await worker.save()
    await redis.hset(meta_key(KEY), "max_entries", 25)
    await _keep_caps(redis)
    later = start()
    found = await later.chosen()
    assert found[3] == 25
    assert later.log.num_read == 1
    assert found == await Worker(redis, tmp_path / "none").chosen()


def _script(name):
    return (files("app.memory") / f"{name}.lua").read_text() + "\n"


@pytest.mark.parametrize("damage", ["cut", "altered", "another log", "another dimension"])
async def test_what_does_not_fit_is_built_again(redis, start, tmp_path, damage):
    """A file that is damaged, or of a log that is there no more, costs a log line and the time to read the log."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    await worker.save()
    (path,) = _files(tmp_path)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-30])
    elif damage == "altered":
        path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    elif damage == "another log":
        await redis.delete(log_key(KEY))
        await redis.hset(meta_key(KEY), "version", 37)
        await _write(redis, 20, origin=100)
    later = start()
    with capture_logs() as logs:
        if damage == "another dimension":
            await later.cache.sync(KEY, Dimensions(feature=5, prompt=3))
        else:
            assert await later.chosen() == await Worker(redis, tmp_path / "none").chosen()
    assert {"memory_snapshot_not_read", "memory_rebuilt"} & {line["event"] for line in logs}


async def test_a_folder_that_fails_costs_no_request(redis, start, tmp_path):
    """Where it cannot even be asked for a file, as on a share that is away, the log is read."""
    await _write(redis, 40)
    worker = start()
    worker.keeper._folder = SnapshotFolder(tmp_path / ("a" * 300), max_bytes=10**9)
    with capture_logs() as logs:
        assert await worker.chosen() == await Worker(redis, tmp_path / "none").chosen()
        await worker.save()
    events = {line["event"] for line in logs}
    assert {"memory_snapshot_not_read", "memory_snapshot_not_written"} <= events


async def test_no_snapshot_is_written_once_the_worker_has_no_time_for_it(redis, start, tmp_path):
    """What is being written is given up between two pieces, and its file goes: else the process would wait for it."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    worker.keeper.give_up()
    with capture_logs() as logs:
        await worker.save()
    assert [line["event"] for line in logs] == ["memory_snapshot_not_written"]
    assert _files(tmp_path) == []


async def test_snapshots_have_a_budget(redis, start, tmp_path):
    """The one that was used least recently goes; one that is larger than all may be is not written."""
    keys = [MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName(name)) for name in "abc"]
    worker = start()
    for key in keys:
        await _write(redis, 40, key)
        await worker.chosen(key)
    await worker.save()
    paths = [worker.folder._path(key) for key in keys]
    for age, path in enumerate((paths[2], paths[0], paths[1])):
        os.utime(path, (age, age))
    sizes = [path.stat().st_size for path in paths]
    assert max(sizes) < 10**4
    await start().chosen(keys[2])
    smaller = start(max_bytes=sum(sizes) - 1)
    await _write(redis, 10, keys[1])
    await smaller.chosen(keys[1])
    await smaller.save()
    assert [path.exists() for path in paths] == [False, True, True]
    tiny = Worker(redis, tmp_path / "tiny", max_bytes=100)
    await tiny.chosen(keys[0])
    with capture_logs() as logs:
        await tiny.save()
    assert [line["reason"] for line in logs] == ["it is larger than SPARKE_MEMORY_SNAPSHOTS_BYTES"]
    assert list((tmp_path / "tiny").iterdir()) == []


async def test_a_snapshot_is_written_when_it_is_worth_it(redis, start, tmp_path):
    """Not again for a few entries more, nor by a worker that has just started from it."""
    await _write(redis, 40)
    worker = start()
    await worker.chosen()
    await worker.save()
    (path,) = _files(tmp_path)
    written = path.read_bytes()
    await _write(redis, 1)
    for one in (worker, start()):
        await one.chosen()
        await one.save()
        assert path.read_bytes() == written
    await _write(redis, 10)
    await worker.chosen()
    await worker.save()
    assert path.read_bytes() != written


def test_what_a_crash_left_unfinished_goes(tmp_path):
    """Once it is old; what another worker is writing stays."""
    old, young = tmp_path / "a.snapshot.00.part", tmp_path / "b.snapshot.00.part"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    SnapshotFolder.open(tmp_path, max_bytes=1)
    assert (old.exists(), young.exists()) == (False, True)
