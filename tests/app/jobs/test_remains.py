"""What else tells of a forgotten entry goes, and nothing of what stays."""

import pytest

from app.errors import NotFound, StoreUnavailable
from app.images.store import ImageStore, image_key, picture_key, preview_key, sent_picture_key
from app.jobs import keys
from app.jobs.remains import RemainsCleaner
from app.jobs.running import RunningJobs
from app.jobs.types import Idempotency
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import FORGETTING_KEY, REMAINS_SWEEP_KEY, log_key, meta_key, remains_key

pytestmark = pytest.mark.anyio


class Scene:
    """Jobs whose images lie in a folder, and what forgets and cleans."""

    def __init__(self, bench, tmp_path):
        self.bench, self.redis, self.folder = bench, bench.redis, tmp_path
        self.images = ImageStore.open(tmp_path.as_uri(), flush=lambda _path: None)
        self.forgetter = MemoryForgetter(bench.redis, clock_ms=bench.clock_ms)
        self.cleaner = RemainsCleaner(bench.redis, self.images, clock_ms=bench.clock_ms)

    async def done(self, *, num_images=1, key=None):
        """A job that has ended with images, which are remembered."""
        job = self.bench.job(num_images=num_images)
        await self.bench.store().accept(job, None if key is None else Idempotency(key, "fingerprint"))
        (reserved,) = await self.bench.queue().reserve(
            (job.request.model,), await self.bench.live("w1"), 16, 0
        )
        for index in range(num_images):
            for fence in (reserved.fence, 77):  # one that was lost wrote too
                await self.images.put(image_key(job.tenant_id, job.job_id, fence, index), b"png")
            await self.images.put(
                preview_key(job.tenant_id, job.job_id, reserved.fence, index, number=1), b"p"
            )
        for part in ("picture", "mask"):
            await self.images.put(picture_key(job.tenant_id, job.job_id, part), b"what an edit begins with")
        await self.bench.queue().commit(reserved, self.bench.result(reserved), self.bench.entries(reserved))
        return job

    def stored(self, job):
        """The files of a job's images."""
        return sorted(path.name for path in self.folder.rglob(f"{job.job_id}/*.png"))

    async def is_known(self, job):
        """Whether anything in Redis has the job's prompt, or its id."""
        found = [name async for name in self.redis.scan_iter(match=f"*{job.job_id}*")]
        listed = await self.redis.zscore(keys.jobs_key(job.tenant_id), job.job_id)
        return bool(found) or listed is not None


@pytest.fixture
def scene(bench, tmp_path):
    """On an empty Redis."""
    return Scene(bench, tmp_path)


async def test_of_a_forgotten_job_nothing_is_left(scene):
    """Files of every fence, previews, record, events, place in the list, idempotency key; another job keeps all."""
    job, other = await scene.done(num_images=2, key="mine"), await scene.done(key="other")
    await scene.forgetter.forget_versions(scene.bench.memory(), [1, 2])
    assert await scene.cleaner.clean(job.tenant_id) == 2
    assert not await scene.is_known(job)
    assert scene.stored(job) == []
    assert await scene.redis.exists(keys.idempotency_key(job.tenant_id, "mine")) == 0
    assert await scene.is_known(other)
    assert len(scene.stored(other)) == 5
    assert await scene.redis.exists(keys.idempotency_key(other.tenant_id, "other")) == 1
    assert await scene.redis.exists(remains_key(job.tenant_id)) == 0
    with pytest.raises(NotFound):
        await scene.bench.store().get(job.tenant_id, job.job_id)


async def test_a_forgotten_picture_goes_with_what_was_sent(scene):
    """Where a worker died before it took away what it had made an image of; the others stay with theirs."""
    job = await scene.done(num_images=2)
    for index in range(2):
        await scene.images.put(sent_picture_key(job.tenant_id, job.job_id, index), b"as it was sent")
    await scene.forgetter.forget_versions(scene.bench.memory(), [1])
    await scene.cleaner.clean(job.tenant_id)
    assert "picture-0.png" not in scene.stored(job)
    assert "picture-1.png" in scene.stored(job)


async def test_a_job_keeps_the_images_that_were_not_forgotten(scene):
    """Its record tells of those alone until the last of them is forgotten too."""
    job = await scene.done(num_images=3)
    await scene.forgetter.forget_versions(scene.bench.memory(), [2])
    await scene.cleaner.clean(job.tenant_id)
    record = await scene.bench.store().get(job.tenant_id, job.job_id)
    assert [image.image_id[-2:] for image in record.result.images] == ["-0", "-2"]
    assert [image.seed for image in record.result.images] == [job.request.seeds[0], job.request.seeds[2]]
    kept = {"mask.png", "picture.png"}
    assert {name.split("-")[1].removesuffix(".png") for name in set(scene.stored(job)) - kept} == {"0", "2"}
    assert kept < set(scene.stored(job))
    await scene.forgetter.forget_versions(scene.bench.memory(), [1, 3])
    await scene.cleaner.clean(job.tenant_id)
    assert not await scene.is_known(job)
    assert scene.stored(job) == []


async def test_two_processes_edit_one_record(scene):
    """Neither brings back what the other took out."""
    job = await scene.done(num_images=3)
    other = RemainsCleaner(scene.redis, scene.images, clock_ms=scene.bench.clock_ms)
    edit, meanwhile = scene.cleaner._forget_job, [2]

    async def edit_after(*arguments):
        while meanwhile:
            await scene.forgetter.forget_versions(scene.bench.memory(), [meanwhile.pop()])
            await other.clean(job.tenant_id)
        return await edit(*arguments)

    scene.cleaner._forget_job = edit_after
    await scene.forgetter.forget_versions(scene.bench.memory(), [1])
    await scene.cleaner.clean(job.tenant_id)
    record = await scene.bench.store().get(job.tenant_id, job.job_id)
    assert [image.image_id[-2:] for image in record.result.images] == ["-2"]


async def test_images_whose_job_is_known_no_more_go_too(scene):
    """Records live shorter than images."""
    job = await scene.done(num_images=2)
    await scene.redis.delete(keys.job_key(job.tenant_id, job.job_id))
    await scene.forgetter.forget_all(scene.bench.memory())
    await scene.cleaner.clean(job.tenant_id)
    assert scene.stored(job) == []


async def test_all_of_a_memory_goes_by_pages(scene):
    """The log that was discarded too, whatever has been remembered since."""
    jobs = [await scene.done(num_images=4) for _ in range(60)]
    await scene.forgetter.forget_all(scene.bench.memory())
    later = await scene.done()
    assert await scene.cleaner.clean(later.tenant_id) == 240
    assert [scene.stored(job) for job in jobs] == [[]] * 60
    assert len(scene.stored(later)) == 5
    left = {name.decode() async for name in scene.redis.scan_iter(match="*:memory:*")}
    assert left == {log_key(scene.bench.memory()), log_key(scene.bench.memory()).replace(":log", ":meta")}


@pytest.fixture
async def uncompressed(redis):
    """Dumps of Redis hold bytes as they are; nodes of streams are what they are by default, and not as we have them."""
    await redis.config_set("rdbcompression", "no")
    await redis.config_set("stream-node-max-entries", 100)
    yield
    await redis.config_set("rdbcompression", "yes")
    await redis.config_set("stream-node-max-entries", 1)


@pytest.mark.usefixtures("uncompressed")
async def test_the_bytes_of_what_is_deleted_leave_the_log(scene):
    """Entries that shared a node with others are nowhere in it; the others are as they were, also those that came since."""
    await scene.done(num_images=4)
    memory, log = scene.bench.memory(), log_key(scene.bench.memory())
    before = await scene.redis.xrange(log)
    await scene.forgetter.forget_versions(memory, [2])
    data = before[1][1][b"e"]
    assert data in await scene.redis.dump(log)
    await scene.cleaner.clean(memory.tenant_id)
    assert data not in await scene.redis.dump(log)
    await scene.done()
    after = await scene.redis.xrange(log)
    assert [row for row in before if row[0] != b"2-0"] == after[:3]
    assert after[3][0] == b"6-0"


@pytest.mark.usefixtures("uncompressed")
async def test_where_no_node_is_shared_nothing_is_written_anew(scene):
    """An entry with a node of its own is gone from it at once: so it is in the Redis that we start ourselves."""
    await scene.redis.config_set("stream-node-max-entries", 1)
    await scene.done(num_images=4)
    memory, log = scene.bench.memory(), log_key(scene.bench.memory())
    data = (await scene.redis.xrange(log))[1][1][b"e"]
    await scene.forgetter.forget_versions(memory, [2])
    assert data not in await scene.redis.dump(log)
    assert await scene.cleaner.count(memory.tenant_id) == 1


@pytest.mark.usefixtures("uncompressed")
async def test_a_log_is_written_anew_while_it_is_written_and_forgotten(scene):
    """A copy that has what was forgotten meanwhile is thrown away."""
    memory, log = scene.bench.memory(), log_key(scene.bench.memory())
    for _ in range(60):
        await scene.done(num_images=4)
    await scene.forgetter.forget_versions(memory, [100])
    compact, num_calls = scene.cleaner._compact, 0

    async def meanwhile(*arguments):
        nonlocal num_calls
        num_calls += 1
        answer = await compact(*arguments)
        if num_calls == 1:
            assert not answer
            await scene.forgetter.forget_versions(memory, [7])
            await scene.done(num_images=2)
        return answer

    scene.cleaner._compact = meanwhile
    before = [row for row in await scene.redis.xrange(log) if row[0] != b"7-0"]
    await scene.cleaner.clean(memory.tenant_id)
    after = await scene.redis.xrange(log)
    assert after[:-2] == before
    assert [row[0] for row in after[-2:]] == [b"243-0", b"244-0"]
    assert num_calls > 3


@pytest.mark.usefixtures("uncompressed")
async def test_a_log_at_its_cap_is_written_anew_while_it_is_written(scene):
    """What caps take goes from the copy, which is not begun anew for it: there would be no end to that."""
    memory, log = scene.bench.memory(), log_key(scene.bench.memory())
    for _ in range(60):
        await scene.done(num_images=4)
    forgotten = (await scene.redis.xrange(log, "100-0", "100-0"))[0][1][b"e"]
    await scene.forgetter.forget_versions(memory, [100])
    await scene.redis.hset(meta_key(memory), "max_entries", 239)
    compact, num_calls = scene.cleaner._compact, 0

    async def meanwhile(*arguments):
        nonlocal num_calls
        num_calls += 1
        assert num_calls < 9, "it is begun anew for ever"
        answer = await compact(*arguments)
        await scene.done(num_images=1)
        return answer

    scene.cleaner._compact = meanwhile
    await scene.cleaner.clean(memory.tenant_id)
    assert (await scene.redis.xlen(log), num_calls) == (239, 2)
    assert (await scene.redis.xrange(log))[0][0] == b"3-0"
    assert forgotten not in await scene.redis.dump(log)
    assert await scene.cleaner.count(memory.tenant_id) == 0


async def test_what_failed_is_done_by_a_later_sweep(scene):
    """The tenant stays listed while anything is left, and an hour longer; one process sweeps at a time."""
    await scene.redis.config_resetstat()
    job = await scene.done(num_images=2)
    await scene.forgetter.forget_all(scene.bench.memory())
    delete, scene.images.delete = scene.images.delete, _away
    with pytest.raises(StoreUnavailable):
        await scene.cleaner.sweep()
    scene.images.delete = delete
    assert await scene.cleaner.sweep() == 0
    await scene.redis.delete(REMAINS_SWEEP_KEY)
    assert await scene.cleaner.sweep() == 2
    assert not await scene.is_known(job)
    assert await scene.redis.zcard(FORGETTING_KEY) == 1
    scene.bench.now_ms += 3_600_001
    await scene.redis.delete(REMAINS_SWEEP_KEY)
    assert await _num_rewrites(scene) == 0
    assert await scene.cleaner.sweep() == 0
    assert await scene.redis.zcard(FORGETTING_KEY) == 0
    assert await _num_rewrites(scene) == 1, "the file has what was forgotten until it is written anew"


async def _num_rewrites(scene):
    stats = await scene.redis.info("commandstats")
    return stats.get("cmdstat_bgrewriteaof", {"calls": 0})["calls"]


async def _away(_key):
    raise StoreUnavailable("away")


async def test_jobs_that_run_are_waited_for(bench):
    """Those that run, not those that wait; one that was taken back and begun anew is another run."""
    jobs = [bench.job() for _ in range(3)]
    for job in jobs:
        await bench.store().accept(job)
    model = jobs[0].request.model
    first, second = await bench.queue().reserve((model,), await bench.live("w1"), 2, 0)
    running = RunningJobs(bench.redis)
    found = await running.of(jobs[0].tenant_id, [model])
    assert set(found) == {first.job.job_id, second.job.job_id}
    assert await running.wait_ended(jobs[0].tenant_id, found, 0.05) == 2
    await bench.queue().commit(first, bench.result(first), [])
    assert await running.wait_ended(jobs[0].tenant_id, found, 0.0) == 1
    await bench.reclaimer().reclaim(model)
    await bench.queue().reserve((model,), await bench.live("w2"), 2, 0)
    assert await running.wait_ended(jobs[0].tenant_id, found, 0.0) == 0


async def _forget_in_every_way(bench, tmp_path):
    scene = Scene(bench, tmp_path)
    jobs = [await scene.done(num_images=2, key=f"key {number}") for number in range(4)]
    memory = bench.memory()
    await scene.forgetter.forget_versions(memory, [1])
    await scene.forgetter.forget_before(memory, bench.now_ms - 1)
    await scene.cleaner.sweep()
    await scene.forgetter.forget_all(memory)
    await scene.done()
    await RunningJobs(bench.redis).of(memory.tenant_id, [jobs[0].request.model])
    await scene.forgetter.delete(memory)
    await scene.cleaner.clean(memory.tenant_id)
    assert [scene.stored(job) for job in jobs] == [[]] * 4
    assert await bench.redis.exists(log_key(memory)) == 0
    await bench.redis.config_set("stream-node-max-entries", 100)
    await scene.done(num_images=3)
    await scene.forgetter.forget_versions(memory, [(await bench.memories().version(memory)) - 1])
    await scene.cleaner.clean(memory.tenant_id)
    assert await bench.redis.xlen(log_key(memory)) == 2


async def test_on_redis_6_2(redis_6_2, make_bench, tmp_path):
    """The oldest server that we promise has all that forgetting takes."""
    await _forget_in_every_way(make_bench(redis_6_2), tmp_path / "images")


async def test_on_a_cluster_no_command_crosses_slots(cluster_node, make_bench, tmp_path):
    """A node of a cluster refuses scripts and commands whose keys lie in two slots; none of ours do."""
    await _forget_in_every_way(make_bench(cluster_node), tmp_path / "images")
