"""Deletions of tenants: what is left at each moment, and what a kill leaves to the next process."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from patience import eventually
from redis.asyncio import Redis

from app.batches import keys as batch_keys
from app.batches.inputs import BatchInputs
from app.domain.ids import BatchId, MemoryName, ModelId, TenantId, make_job_id
from app.domain.job import Job, JobKind, JobState, Lane
from app.domain.question import SearchRequest
from app.domain.request import Diversity, GenerationRequest
from app.erasure.eraser import ErasedStores, TenantEraser
from app.errors import NotFound, TenantDeleting
from app.files.contents import FileContents
from app.images.store import ImageStore
from app.jobs import keys as job_keys
from app.jobs.place import queues_of
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.memory.keys import FORGETTING_KEY
from app.redis.members import member_of
from app.tenants.keys import KeyStore
from app.tenants.registry import TenantRegistry
from app.webhooks import keys as webhook_keys

pytestmark = pytest.mark.anyio

ACME, ACME2 = TenantId("acme"), TenantId("acme2")  # one's name begins as the other's
MODEL, GONE_MODEL = ModelId("toy"), ModelId("gone")
LINGER_S = 100
NUM_IMAGES = 105  # more than one page, as the keys are


class Scene:
    """Two tenants that have something of everything, on a clock that moves when it is told to."""

    def __init__(self, redis, folder):
        self.redis, self.folder, self.now_ms, self.num_jobs = redis, folder, 1_000_000, 0
        url = folder.as_uri()
        kinds = (ImageStore, FileContents, BatchInputs)
        self.folders = tuple(kind.open(url, flush=lambda _path: None) for kind in kinds)
        self.registry = TenantRegistry(redis, clock_ms=self.clock_ms)
        self.jobs = JobStore(redis, JobLimits(), clock_ms=self.clock_ms)
        self.keys = KeyStore(redis)

    def clock_ms(self):
        """Now."""
        return self.now_ms

    def eraser(self, redis=None):
        """What one API process does; GONE_MODEL is in the catalogue no more."""
        redis = redis or self.redis
        jobs = JobStore(redis, JobLimits(), clock_ms=self.clock_ms)
        registry = TenantRegistry(redis, clock_ms=self.clock_ms)
        stores = ErasedStores(jobs, KeyStore(redis), self.folders, (MODEL,))
        return TenantEraser(redis, registry, stores, linger_s=LINGER_S, clock_ms=self.clock_ms)

    def job(self, tenant_id, model=MODEL, lane=Lane.INTERACTIVE):
        """A new job."""
        self.num_jobs += 1
        request = GenerationRequest(model, "a star", "", 1, 64, 64, 2, 5.0, self.num_jobs, Diversity(0.5))
        job_id = make_job_id(self.now_ms, self.num_jobs.to_bytes(8, "big"))
        return Job(tenant_id, job_id, JobKind.GENERATE, request, self.now_ms, self.now_ms + 10**9, lane)

    def question(self, tenant_id):
        """A new question about a memory."""
        asked = SearchRequest(MODEL, MemoryName("default"), "a star", 10)
        return dataclasses.replace(self.job(tenant_id), kind=JobKind.SEARCH, request=asked)

    async def fill(self, tenant_id):
        """Something of everything that can be there."""
        await self.keys.create(tenant_id)
        for job in (
            self.job(tenant_id),
            self.job(tenant_id, GONE_MODEL),
            self.job(tenant_id, lane=Lane.BATCH),
            self.question(tenant_id),
        ):
            await self.jobs.accept(job)
        batch_id, prefix = BatchId(f"batch_{'0' * 36}"), f"sparke:{{t:{tenant_id}}}"
        await self.redis.zadd(batch_keys.OPEN_KEY, {member_of(tenant_id, batch_id): 1})
        for name in (webhook_keys.TENANTS_KEY, FORGETTING_KEY):
            await self.redis.zadd(name, {tenant_id: 1})
        for queue in queues_of([MODEL]):
            await self.redis.xadd(job_keys.dead_key(queue), {"t": tenant_id, "j": "x"})
        await self.redis.set(f"{prefix}:of-a-kind-that-nobody-knows", 1)
        await self.redis.mset({f"{prefix}:memory:toy:m{number}:meta": 1 for number in range(2500)})
        for folder, num_objects in zip(self.folders, (NUM_IMAGES, 1, 1), strict=True):
            for number in range(num_objects):
                await folder.put(f"{folder.FOLDER}/{tenant_id}/some/{number}", b"bytes")

    async def ask(self, tenant_id):
        """What the API and the command line do."""
        await self.registry.ask_deletion(tenant_id)
        await self.keys.remove_all(tenant_id)

    async def traces(self, tenant_id):
        """Whatever names the tenant: keys, members, fields, values, files."""
        found = [path.as_posix() for path in self.folder.rglob("*") if tenant_id in path.parts]
        async for name in self.redis.scan_iter():  # a test may look everywhere
            kind, told = (await self.redis.type(name)).decode(), []
            if kind == "hash":
                told = [part for pair in (await self.redis.hgetall(name)).items() for part in pair]
            elif kind == "zset":
                told = await self.redis.zrange(name, 0, -1)
            elif kind == "set":
                told = await self.redis.smembers(name)
            elif kind == "stream":
                told = [value for _, fields in await self.redis.xrange(name) for value in fields.values()]
            elif kind == "string":
                told = [await self.redis.get(name)]
            found += [f"{name}: {text}" for text in (name, *told) if _names(text, tenant_id)]
        return found


def _names(text, tenant_id):
    word = tenant_id.encode()
    told = (b"{t:" + word + b"}", b'"' + word + b'"')
    return text == word or text.startswith(word + b"/") or any(each in text for each in told)


@pytest.fixture
async def scene(redis, tmp_path):
    """Both tenants."""
    scene = Scene(redis, tmp_path)
    for tenant_id in (ACME, ACME2):
        await scene.fill(tenant_id)
    return scene


async def test_nothing_of_a_deleted_tenant_is_left(scene):
    """No key, member, field, value or file; of the other tenant, whose name begins with its, all is as it was."""
    kept = sorted(await scene.traces(ACME2))
    await scene.ask(ACME)
    eraser = scene.eraser()
    assert await eraser.look() == 0
    deletion = await scene.registry.deletion(ACME)
    assert (deletion.num_objects, deletion.num_keys > 2500, deletion.is_empty) == (
        NUM_IMAGES + 2,
        True,
        False,
    )
    scene.now_ms += 5_000
    assert await eraser.look() == 0
    assert (await scene.registry.deletion(ACME)).is_empty
    scene.now_ms += 1000 * LINGER_S
    assert await eraser.look() == 1
    assert await scene.traces(ACME) == []
    assert sorted(await scene.traces(ACME2)) == kept
    assert await scene.registry.deletions() == {}
    with pytest.raises(NotFound):
        await scene.registry.check(ACME)
    assert await scene.keys.any_keys()


async def test_the_file_of_redis_is_written_anew_at_the_end(redis, tmp_path):
    """What was ever written stands in it until then; afterwards nothing of the tenant does."""
    scene = Scene(redis, tmp_path / "objects")
    await scene.keys.create(ACME)
    await scene.redis.set("sparke:{t:acme}:secret", "the prompt of a deleted tenant")
    folder = Path((await redis.config_get("dir"))["dir"])

    def found():
        return b"the prompt of a deleted tenant" in b"".join(
            path.read_bytes() for path in folder.rglob("*") if path.is_file()
        )

    assert found()
    await scene.ask(ACME)
    await _until_gone(scene, scene.eraser())
    await eventually(lambda: not found())


async def test_the_name_is_free_when_all_is_gone_and_not_before(scene):
    """Else what comes late of the old tenant would be the new one's."""
    await scene.ask(ACME)
    with pytest.raises(TenantDeleting):
        await scene.keys.create(ACME)
    await _until_gone(scene, scene.eraser())
    key = await scene.keys.create(ACME)
    assert (await scene.keys.authenticate(key)).tenant_id == ACME
    assert await scene.eraser().look() == 0


async def test_what_is_written_late_goes_too(scene):
    """An upload that was let in before, a worker that commits: found at the last look, after which there is another."""
    await scene.ask(ACME)
    eraser = scene.eraser()
    for _ in range(2):
        await eraser.look()
        scene.now_ms += 5_000
    late = scene.job(ACME)
    await scene.jobs.accept(late)
    await scene.folders[1].put("files/acme/late", b"bytes")
    assert await eraser.look() == 0  # it is not time yet
    assert (await scene.jobs.get(ACME, late.job_id)).state is JobState.QUEUED
    scene.now_ms += 1000 * LINGER_S
    assert await eraser.look() == 0
    listed = [f"{name}: {b'acme'}" for name in (b"sparke:tenant-deletions", b"sparke:tenants")]
    assert sorted(await scene.traces(ACME)) == listed
    await _until_gone(scene, eraser)


async def test_parts_of_objects_go_at_the_last_look(scene):
    """Not before: until then their writers may live."""
    part = scene.folder / "files" / "acme2" / "upload#1"
    part.write_bytes(b"half")
    await scene.ask(ACME2)
    eraser = scene.eraser()
    await eraser.look()
    assert part.exists()
    await _until_gone(scene, eraser)
    assert not part.exists()


async def test_a_worker_with_a_job_in_hand_loses_it(scene):
    """It is neither committed nor given back, and the worker goes on with other tenants' jobs."""
    queue = JobQueue(scene.redis, JobLimits(), clock_ms=scene.clock_ms)
    reserved = await queue.reserve((MODEL,), "w1", 1, 0)
    own = reserved[0].job.tenant_id
    other = ({ACME, ACME2} - {own}).pop()
    await scene.ask(own)
    await scene.eraser().look()
    assert (await queue.standing(reserved[0])).value == "lost"
    assert await queue.give_back(reserved[0]) is False
    found = await queue.reserve((MODEL,), "w1", 10, 0)
    assert {one.job.tenant_id for one in found} == {other}
    assert await scene.redis.zcount(job_keys.open_key(MODEL), "-inf", "inf") == 2


class _Killed(BaseException):
    """The process is gone: nothing catches this."""


class _MortalRedis(Redis):
    """Dies at a command, before it is sent or after, and at every one after that."""

    at, is_after, num_commands = 0, False, 0

    async def execute_command(self, *args, **options):
        """A command, in its turn."""
        self.num_commands += 1
        if self.num_commands > self.at or (self.num_commands == self.at and not self.is_after):
            raise _Killed
        answer = await super().execute_command(*args, **options)
        if self.num_commands == self.at:
            raise _Killed
        return answer


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_kill_at_any_command_is_taken_up(redis, redis_server, tmp_path, is_after):
    """Another process goes on, and in the end nothing is left, whichever command was the last one."""
    scene = Scene(redis, tmp_path)
    at, was_killed = 0, True
    while was_killed:
        at += 3
        for job in (scene.job(ACME), scene.job(ACME, GONE_MODEL)):
            await scene.jobs.accept(job)
        await scene.keys.create(ACME)
        await scene.folders[0].put("images/acme/j/1-0.png", b"bytes")
        await scene.ask(ACME)
        mortal = _MortalRedis(unix_socket_path=redis_server.url.removeprefix("unix://"), protocol=2)
        mortal.at, mortal.is_after = at, is_after
        was_killed = False
        try:
            await _until_gone(scene, scene.eraser(mortal))
        except _Killed:
            was_killed = True
        await mortal.aclose()
        await redis.delete("sparke:tenant-erasure:acme")  # a minute goes by
        if await scene.registry.deletion(ACME) is not None:
            await _until_gone(scene, scene.eraser())
        assert await scene.traces(ACME) == [], at
    assert at > 40


async def test_two_processes_do_not_get_in_each_others_way(scene):
    """They look at the same time, again and again: it ends once."""
    await scene.ask(ACME)
    erasers = [scene.eraser(), scene.eraser()]
    num_ended = 0
    for _ in range(6):
        num_ended += sum(await asyncio.gather(*(eraser.look() for eraser in erasers)))
        scene.now_ms += 1000 * LINGER_S
    assert num_ended == 1
    assert await scene.traces(ACME) == []


async def test_deleting_the_last_tenant_does_not_open_the_service(redis, tmp_path):
    """There were keys, so there are for ever."""
    scene = Scene(redis, tmp_path)
    await scene.keys.create(ACME)
    await scene.ask(ACME)
    await _until_gone(scene, scene.eraser())
    assert await redis.hlen("sparke:api-keys") == 0
    assert await scene.keys.any_keys()


async def _until_gone(scene, eraser):
    for _ in range(10):
        if await eraser.look():
            return
        scene.now_ms += 1000 * LINGER_S
    pytest.fail("the deletion does not end")
