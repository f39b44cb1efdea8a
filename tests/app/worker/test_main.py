"""A whole worker on a real Redis, in this process and as a process of its own."""

import asyncio
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from leases import is_extended, leave_idle
from patience import PATIENCE_S, eventually
from processes import free_port
from structlog.testing import capture_logs

from app.domain.ids import LatentSpace, MemoryName
from app.domain.job import JobState
from app.errors import ConfigurationError, Unavailable
from app.images.store import ImageStore, image_key
from app.jobs.orphans import OrphanSweeper
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.jobs.waiter import JobWaiter
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import MemoryKey
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.settings import load_settings
from app.tenants.registry import TenantRegistry
from app.worker.main import work
from app.worker.model.models import choose_device, load_spec
from app.worker.port import WorkerHealth
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

_CATALOGUE = """
[[models]]
model_id = "toy"
source = "{source}"
latent_space = "toy"

[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 256
multiple_px = 8
"""


class SlowEngine(ToyEngine):
    """The toy, but every batch waits until it is let go."""

    def __init__(self):
        super().__init__(preset_named("toy"))
        self.began, self.go = threading.Event(), threading.Event()

    def generate(self, groups, plan, on_step):
        """Wait, then as the toy."""
        self.began.set()
        assert self.go.wait(3 * PATIENCE_S)
        return super().generate(groups, plan, on_step)


def _toy(_spec):
    return ToyEngine(preset_named("toy"))


@pytest.fixture
def settings(redis_url, tmp_path):
    """Settings of a worker that serves the toy."""
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(_CATALOGUE.format(source="builtin:toy"))
    return load_settings(
        redis_url=redis_url,
        data_dir=tmp_path,
        models_file=catalogue,
        device="cpu",
        heartbeat_interval_s=0.1,
        heartbeat_ttl_s=30.0,
        sweep_interval_s=0.2,
        redis_timeout_s=PATIENCE_S,
        warm_up=False,  # engines of these tests note every batch that they get
    )


@asynccontextmanager
async def _working(settings, load=_toy):
    """A worker in this process, stopped at the end; yields its stop event and its task."""
    stop = asyncio.Event()
    task = asyncio.create_task(work(settings, stop, load=load))
    try:
        yield stop, task
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task


@asynccontextmanager
async def _client(url):
    """A job store, a waiter and a registry, as the API has them."""
    redis = connect(url, timeout_s=PATIENCE_S)
    store, registry = JobStore(redis, JobLimits()), WorkerRegistry(redis)
    try:
        async with JobWaiter(redis, store, registry, no_worker_grace_s=PATIENCE_S, poll_s=0.1) as waiter:
            yield store, waiter, registry
    finally:
        await redis.aclose()


def _soon(job):
    """The job with a creation and a deadline of now, as the API makes them."""
    return replace(job, created_at_ms=now_ms(), deadline_at_ms=now_ms() + 600_000)


async def _ask(client, job):
    store, waiter, _ = client
    await store.accept(job)
    return await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)


async def test_a_worker_serves_and_says_so(settings, make_job):
    """Jobs succeed, the registry shows the worker while it lives, and nothing of it once it has stopped."""
    async with _client(settings.redis_url) as client:
        async with _working(settings):
            record = await _ask(client, _soon(make_job(1, num_images=2)))
            (info,) = await client[2].list_workers()
        assert record.state is JobState.SUCCEEDED
        assert (info.phase, info.models, info.worker_id) == ("ready", ("toy",), record.worker_id)
        assert await client[2].list_workers() == []


async def test_a_worker_drops_its_copies_of_a_deleted_tenants_memories(settings, make_job, redis):
    """While it runs, within an interval of its sweep, and though it is asked for nothing of that tenant any more."""
    jobs = [make_job(number) for number in (1, 2)]
    with capture_logs() as told:
        async with _client(settings.redis_url) as client, _working(settings):
            for job in jobs:  # the second one reads what the first one left
                await _ask(client, _soon(job))
            await TenantRegistry(redis, clock_ms=now_ms).ask_deletion(jobs[0].tenant_id)
            async with asyncio.timeout(PATIENCE_S):
                while not any(line["event"] == "memories_dropped" for line in told):  # noqa: ASYNC110 - it tells the log
                    await asyncio.sleep(0.05)
    assert [line["num_memories"] for line in told if line["event"] == "memories_dropped"] == [1]


async def test_what_is_forgotten_leaves_a_worker_that_is_asked_for_nothing(settings, make_job, redis):
    """Within an interval of its sweep: nobody reads the memory again."""
    jobs = [make_job(number) for number in (1, 2)]
    memory = MemoryKey(jobs[0].tenant_id, LatentSpace("toy"), MemoryName("default"))
    with capture_logs() as told:
        async with _client(settings.redis_url) as client, _working(settings):
            for job in jobs:
                await _ask(client, _soon(job))
            await MemoryForgetter(redis, clock_ms=now_ms).forget_versions(memory, [1])
            async with asyncio.timeout(PATIENCE_S):
                while not any(line["event"] == "memory_entries_dropped" for line in told):  # noqa: ASYNC110 - it tells the log
                    await asyncio.sleep(0.05)
    assert [line["num_entries"] for line in told if line["event"] == "memory_entries_dropped"] == [1]


async def test_a_worker_removes_images_past_their_time(settings, make_job):
    """An image that is older than `image_ttl_s` goes, and one that was just made stays."""
    store = ImageStore.open(settings.image_store_url)
    job = make_job(1)
    old = image_key(job.tenant_id, job.job_id, 1, 0)
    await store.put(old, b"png")
    written_s = now_ms() / 1000 - settings.image_ttl_s - 5
    os.utime(settings.data_dir / "images" / old, (written_s, written_s))
    async with _client(settings.redis_url) as client, _working(settings):
        record = await _ask(client, _soon(make_job(2)))
        async with asyncio.timeout(PATIENCE_S):
            while (settings.data_dir / "images" / old).exists():  # noqa: ASYNC110 - a file rings no bell
                await asyncio.sleep(0.02)
    assert (await store.get(record.result.images[0].storage_key)).startswith(b"\x89PNG")


async def test_a_worker_removes_images_that_no_job_ended_with(settings, make_job, redis):
    """A zombie wrote one under an old fence, two hours ago; what the job ended with, then too, stays."""
    store = ImageStore.open(settings.image_store_url)
    async with _client(settings.redis_url) as client:
        async with _working(settings):
            record = await _ask(client, _soon(make_job(1)))
        own = record.result.images[0].storage_key
        orphan = image_key(record.job.tenant_id, record.job.job_id, record.fence - 1, 0)
        await store.put(orphan, b"png")
        for key in (own, orphan):
            os.utime(settings.data_dir / "images" / key, (time.time() - 7200,) * 2)
        await redis.delete(OrphanSweeper.KEY)
        async with _working(settings), asyncio.timeout(PATIENCE_S):
            while (settings.data_dir / "images" / orphan).exists():  # noqa: ASYNC110 - a file rings no bell
                await asyncio.sleep(0.02)
    assert (await store.get(own)).startswith(b"\x89PNG")


@pytest.mark.parametrize("finer", [(8, 8), (2, 8)])
async def test_models_of_one_latent_space_must_have_equal_vectors(settings, finer):
    """Else each would find the other's entries corrupt, or compare what is not alike: no worker starts, and both are named."""
    text = settings.models_file.read_text()
    settings.models_file.write_text(text + text.replace('model_id = "toy"', 'model_id = "finer"'))

    def load(spec):
        grid = finer if spec.model_id == "finer" else (4, 4)
        return ToyEngine(replace(preset_named("toy"), grid=grid))

    with pytest.raises(ConfigurationError, match="toy and finer name one latent space"):
        async with asyncio.timeout(PATIENCE_S):  # a worker that starts would work until it is stopped
            await work(settings, asyncio.Event(), load=load)


async def test_two_workers_share_a_memory(settings, make_job):
    """Of two workers on one Redis each sees what the other has made."""
    async with _client(settings.redis_url) as client, _working(settings), _working(settings):
        records = [await _ask(client, _soon(make_job(number, seed=10 * number))) for number in range(12)]
    assert [record.result.images[0].num_neighbours for record in records] == list(range(12))


async def test_a_stop_finishes_what_runs_and_leaves_the_rest_to_others(settings, make_job):
    """The running job succeeds here; the one that waited in this worker succeeds in the next, under a new fence."""
    engine = SlowEngine()
    first = _soon(make_job(1))
    second = replace(_soon(make_job(2, steps=3)), created_at_ms=now_ms() + 1)
    async with _client(settings.redis_url) as (store, waiter, _):
        await store.accept(first)
        await store.accept(second)
        async with _working(settings, lambda _spec: engine) as (stop, _task):
            assert await asyncio.to_thread(engine.began.wait, PATIENCE_S)
            started = await store.get(second.tenant_id, second.job_id)
            assert started.state is JobState.RUNNING
            stop.set()
            await asyncio.sleep(0.1)
            engine.go.set()
        assert (await store.get(first.tenant_id, first.job_id)).state is JobState.SUCCEEDED
        assert (await store.get(second.tenant_id, second.job_id)).state is JobState.QUEUED
        async with _working(settings):
            record = await waiter.wait(second.tenant_id, second.job_id, 20)
    assert (record.state, record.fence > started.fence) == (JobState.SUCCEEDED, True)


async def test_patience_with_a_running_batch_ends(settings, make_job):
    """A batch longer than the drain time-out goes back to the queue, and the worker ends in time."""
    engine, job = SlowEngine(), _soon(make_job(1))
    impatient = settings.model_copy(update={"drain_timeout_s": 0.2})
    async with _client(settings.redis_url) as (store, waiter, _):
        await store.accept(job)
        stop = asyncio.Event()
        task = asyncio.create_task(work(impatient, stop, load=lambda _spec: engine))
        assert await asyncio.to_thread(engine.began.wait, PATIENCE_S)
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task
        assert (await store.get(job.tenant_id, job.job_id)).state is JobState.QUEUED
        engine.go.set()
        async with _working(settings):
            assert (await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)).state is JobState.SUCCEEDED


async def test_a_worker_outlives_an_outage_of_redis(settings, tmp_path, make_job):
    """Redis stops and comes back: the same worker goes on, and the memory is whole."""
    with EmbeddedRedis.start(tmp_path / "own") as server:
        own = settings.model_copy(update={"redis_url": server.url})
        async with _working(own):
            async with _client(server.url) as client:
                await _ask(client, _soon(make_job(1)))
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(1.5)
            with EmbeddedRedis.start(tmp_path / "own") as again:
                assert again.url == server.url
                async with _client(again.url) as client:
                    record = await _ask(client, _soon(make_job(2, seed=50)))
                assert record.state is JobState.SUCCEEDED
                assert record.result.images[0].num_neighbours == 1


async def test_what_a_dead_worker_left_is_done_by_the_living(settings, make_job):
    """A job that a vanished worker had begun succeeds elsewhere once its lease is over, under a new fence; counted."""
    job = _soon(make_job(1))
    redis = connect(settings.redis_url)
    try:
        await JobStore(redis, JobLimits()).accept(job)
        async with JobQueue(redis, JobLimits()) as queue:
            [held] = await queue.reserve(["toy"], "vanished-1", 1, 0)
            await queue.begin(held)
        async with _client(settings.redis_url) as (store, waiter, registry), _working(settings):
            while [worker.phase for worker in await registry.list_workers()] != ["ready"]:  # noqa: ASYNC110 - nobody says so
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)  # ten looks
            assert (await store.get(job.tenant_id, job.job_id)).fence == held.fence
            await leave_idle(redis, "toy", idle_s=settings.heartbeat_ttl_s)
            record = await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)
    finally:
        await redis.aclose()
    assert (record.state, record.fence > held.fence, record.num_attempts) == (JobState.SUCCEEDED, True, 2)


async def test_a_live_worker_keeps_what_takes_longer_than_a_lease(settings, make_job, redis):
    """Its heartbeat extends the lease: the job is made once, though a second worker looks for it all the time."""
    engine, job = SlowEngine(), _soon(make_job(1))
    async with _client(settings.redis_url) as (store, waiter, _), _working(settings, lambda _spec: engine):
        await store.accept(job)
        assert await asyncio.to_thread(engine.began.wait, PATIENCE_S)
        started = await store.get(job.tenant_id, job.job_id)
        async with _working(settings):
            for _ in range(3):
                await leave_idle(redis, "toy", idle_s=settings.heartbeat_ttl_s / 2)
                await eventually(partial(is_extended, redis, "toy", within_s=settings.heartbeat_ttl_s / 4))
            engine.go.set()
            record = await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S)
    assert (record.state, record.fence) == (JobState.SUCCEEDED, started.fence)


async def test_a_model_that_fails_to_load_ends_the_worker(settings):
    """The error names the model and the cause, and the registry forgets the worker."""

    def fail(_spec):
        raise OSError("no such weights")

    with pytest.raises(Unavailable, match=r"toy.*no such weights"):
        await work(settings, asyncio.Event(), load=fail)
    async with _client(settings.redis_url) as (_, _waiter, registry):
        assert await registry.list_workers() == []


async def test_a_model_that_the_catalogue_lacks_is_a_wrong_setting(settings):
    """It is named beside those there are."""
    wrong = settings.model_copy(update={"models": ("sdxl",)})
    with pytest.raises(ConfigurationError, match=r"sdxl.*toy"):
        await work(wrong, asyncio.Event(), load=_toy)


async def test_a_lora_that_is_not_there_is_a_wrong_setting(settings):
    """It is said, with the model, the LoRA and the path, before anything is loaded."""
    lora = '[[models.loras]]\nname = "ink"\nsource = "./ink.safetensors"\n'
    settings.models_file.write_text(settings.models_file.read_text() + lora)
    loaded = []
    with pytest.raises(ConfigurationError, match=r"model toy: the LoRA 'ink': .*ink\.safetensors"):
        await work(settings, asyncio.Event(), load=loaded.append)
    assert loaded == []


async def test_a_lora_of_a_model_that_loads_none_is_a_wrong_setting(settings, tmp_path):
    """A worker says so when it loads the model."""
    (tmp_path / "ink.safetensors").touch()
    lora = '[[models.loras]]\nname = "ink"\nsource = "./ink.safetensors"\n'
    settings.models_file.write_text(settings.models_file.read_text() + lora)
    with pytest.raises(ConfigurationError, match=r"model toy: .*no weights that LoRAs could change"):
        async with asyncio.timeout(PATIENCE_S):
            await work(settings, asyncio.Event(), load=partial(load_spec, device="cpu"))


async def test_a_worker_can_be_stopped_while_it_loads(settings):
    """A load that takes long does not keep a stopped worker."""
    loading, go = threading.Event(), threading.Event()

    def load(spec):
        loading.set()
        go.wait(3 * PATIENCE_S)
        return _toy(spec)

    stop = asyncio.Event()
    task = asyncio.create_task(work(settings, stop, load=load))
    assert await asyncio.to_thread(loading.wait, PATIENCE_S)
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await task
    go.set()


async def test_batches_that_were_too_large_are_not_made_again(settings, make_job, small_engine):
    """Every job succeeds, and no batch is larger than what was learned of the first, too large ones."""
    engine = small_engine(room_images=3)
    small = settings.model_copy(update={"max_batch_images": 8})
    jobs = [_soon(make_job(number)) for number in range(40)]
    async with _client(settings.redis_url) as client:
        store, waiter, _ = client
        for job in jobs:
            await store.accept(job)
        async with _working(small, lambda _spec: engine):
            ended = [await waiter.wait(job.tenant_id, job.job_id, PATIENCE_S) for job in jobs]
    assert [record.state for record in ended] == [JobState.SUCCEEDED] * len(jobs)
    assert [size for size in engine.sizes if size > 3] == [8, 4]
    after = engine.sizes[engine.sizes.index(4) + 1 + 4 :]
    assert max(after) == 2
    assert sum(after) == len(jobs) - 8 - 4


async def test_metrics_are_served_and_a_port_in_use_is_no_death(settings, make_job):
    """A worker counts its images on its own port; a second one on the same port works without."""
    port = free_port()
    counted = settings.model_copy(update={"worker_metrics_port": port})
    async with _client(settings.redis_url) as client, _working(counted):
        record = await _ask(client, _soon(make_job(1, num_images=3)))
        assert record.state is JobState.SUCCEEDED
        text = ""
        async with asyncio.timeout(PATIENCE_S):  # the client hears of the commit before the worker counts it
            while 'sparke_images_total{model="toy"} 3.0' not in text:
                _, text = await asyncio.to_thread(_get, port, "/metrics")
        assert 'sparke_worker_ready{model="toy"} 1.0' in text
        async with _working(counted) as (_, task):
            while len(await client[2].list_workers()) < 2:
                assert not task.done()
                await asyncio.sleep(0.05)


def _get(port, path):
    """The status and the body of an answer of the worker's own port, as a probe has it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_probe_sees_a_worker_load_get_ready_and_drain(settings, make_job):
    """It lives all the time; it is ready from when its models are loaded until it is told to stop."""
    port = free_port()
    loading, loaded, engine = threading.Event(), threading.Event(), SlowEngine()

    def load(_spec):
        loading.set()
        assert loaded.wait(PATIENCE_S)
        return engine

    async def see(path):
        return await asyncio.to_thread(_get, port, path)

    counted = settings.model_copy(update={"worker_metrics_port": port})
    async with _client(settings.redis_url) as client, _working(counted, load) as (stop, _):
        await asyncio.to_thread(loading.wait, PATIENCE_S)
        assert await see("/livez") == (200, '{"status": "ok"}')
        assert await see("/readyz") == (503, '{"status": "loading"}')
        loaded.set()
        await client[0].accept(_soon(make_job(1)))
        await asyncio.to_thread(engine.began.wait, PATIENCE_S)
        assert await see("/readyz") == (200, '{"status": "ok"}')
        stop.set()

        async def drains():
            return await see("/readyz") == (503, '{"status": "draining"}')

        await eventually(drains)
        assert (await see("/livez"))[0] == 200
        assert (await see("/other"))[0] == 404
        engine.go.set()


async def test_a_worker_whose_loop_is_stuck_does_not_live():
    """The loop is asked, not the thread that answers."""
    health = WorkerHealth()
    assert await asyncio.to_thread(health.is_alive, PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(health.is_alive, 0.1).result(PATIENCE_S), (
            "the loop waits here until it is told"
        )


async def _spawn(settings, *, source="builtin:toy"):
    settings.models_file.write_text(_CATALOGUE.format(source=source))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    environment |= {"SPARKE_MODELS_FILE": str(settings.models_file), "SPARKE_DEVICE": "cpu"}
    environment |= {"SPARKE_REDIS_URL": settings.redis_url, "SPARKE_DATA_DIR": str(settings.data_dir)}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "app.cli", "worker"), env=environment, stderr=asyncio.subprocess.PIPE
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_worker_process_ends_cleanly_on_a_signal(settings, make_job, number):
    """`sparke worker` serves a job, then exits 0 on a signal, also on two, and leaves the registry clean."""
    child = await _spawn(settings)
    try:
        async with _client(settings.redis_url) as client:
            while not await client[2].list_workers():
                assert child.returncode is None
                await asyncio.sleep(0.1)
            record = await _ask(client, _soon(make_job(1)))
            assert record.state is JobState.SUCCEEDED
            child.send_signal(number)
            child.send_signal(number)
            async with asyncio.timeout(PATIENCE_S):
                _, said = await child.communicate()
            assert child.returncode == 0, said.decode()
            assert await client[2].list_workers() == []
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_worker_process_that_cannot_load_exits_1(settings):
    """The exit code tells `sparke serve` to try again later, and the log says which model and why."""
    child = await _spawn(settings, source="/nowhere/at/all")
    async with asyncio.timeout(200):
        _, said = await child.communicate()
    assert child.returncode == 1
    assert "toy" in said.decode()
    assert "/nowhere/at/all" in said.decode()


def test_a_worker_has_one_device():
    """Of several, `sparke serve` runs a worker on each."""
    with pytest.raises(ConfigurationError, match="a worker has one device"):
        choose_device("cpu,cpu")


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_is_not_there_is_said_before_a_model_is_loaded(device):
    """It would end each start of the worker, so it is a matter of the settings."""
    with pytest.raises(ConfigurationError, match=f"SPARKE_DEVICE is {device}, and torch sees"):
        choose_device(device)


async def test_a_folder_for_snapshots_that_cannot_be_is_said_before_a_model_is_loaded(settings):
    """Loading may take minutes."""
    wrong = settings.model_copy(update={"memory_snapshots_dir": Path("/proc/nowhere")})

    def load(_spec):
        pytest.fail("a model was loaded")

    with pytest.raises(ConfigurationError, match="SPARKE_MEMORY_SNAPSHOTS_DIR"):
        await work(wrong, asyncio.Event(), load=load)
