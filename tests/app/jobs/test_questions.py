"""Questions go the way of every job in a queue of their own, and leave nothing but an answer for whoever waits."""

import dataclasses
import json

import pytest

from app.domain.ids import LatentSpace, MemoryName, ModelId, TenantId, make_job_id
from app.domain.job import Job, JobKind, JobState
from app.domain.question import SearchRequest, SearchResult, Similar
from app.domain.quota import Quotas, SameForAll
from app.domain.result import Failure
from app.errors import CorruptRecord, MemoryFull
from app.jobs import codec
from app.jobs.listing import JobLister
from app.jobs.place import queue_of_questions, queues_of
from app.jobs.room import CountedRoom
from app.jobs.running import RunningJobs
from app.jobs.store import JobStore
from app.jobs.types import Committed, JobLimits, JobQuery
from app.webhooks.store import WebhookStore

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
QUESTIONS = queue_of_questions(MODEL)
ACME = TenantId("acme")
ANSWER = SearchResult((Similar(3, 0.5),), LatentSpace("toy"), MemoryName("default"), 7)


def _question(bench, tenant="acme", *, timeout_ms=10**9) -> Job:
    image_job = bench.job(tenant, timeout_ms=timeout_ms)
    request = SearchRequest(MODEL, MemoryName("default"), "a secret star", 10)
    return dataclasses.replace(image_job, kind=JobKind.SEARCH, request=request)


async def _accept(bench, *jobs):
    for job in jobs:
        await bench.store().accept(job)


async def _reserve(bench, queue=QUESTIONS, *, most=10):
    return await bench.queue().reserve([queue], await bench.live("w1"), most, 0)


async def _keys(bench):
    return {key.decode() async for key in bench.redis.scan_iter("sparke:*")}


async def test_an_answer_reaches_the_record(bench):
    """By the commit of every job: no entry, and the memory is not touched."""
    job = _question(bench)
    await _accept(bench, job)
    [reserved] = await _reserve(bench)
    assert reserved.job == job
    assert await bench.queue().commit(reserved, ANSWER, ()) == Committed(None)
    record = await bench.store().get(ACME, job.job_id)
    assert (record.state, record.result, record.images) == (JobState.SUCCEEDED, ANSWER, ())
    assert await bench.memories().version(bench.memory()) == 0


async def test_it_leaves_nothing_else(bench):
    """No event, no place in the list, no word to a webhook, nothing charged; and its record lives a minute."""
    await WebhookStore(bench.redis, clock_ms=bench.clock_ms).create(ACME, "https://example.org")
    before = await _keys(bench)
    job, failing, late = (_question(bench, timeout_ms=ms) for ms in (10**9, 10**9, 5))
    await _accept(bench, job, failing, late)
    [first, second, third] = await _reserve(bench)
    queue = bench.queue()
    await queue.commit(first, ANSWER, ())
    await queue.fail(second, Failure("broken", "it broke"))
    await bench.store().cancel(ACME, third.job.job_id)
    await queue.fail(third, Failure("broken", "it broke"))
    records = {f"sparke:{{t:acme}}:job:{one.job_id}" for one in (job, failing, late)}
    tenants = {key for key in await _keys(bench) - before if "{t:acme}" in key}
    assert tenants == records
    for record in records:
        assert 0 < await bench.redis.pttl(record) <= 60_000
    assert (await JobLister(bench.redis).list_jobs(ACME, JobQuery(10))).records == ()
    assert await JobLister(bench.redis).read(ACME, [job.job_id]) == [None]
    await bench.store().discard_question(ACME, job.job_id)
    assert len(records & await _keys(bench)) == 2


async def test_no_question_waits_behind_images(bench):
    """Whatever the same tenant has waiting for the model, and however many of it run."""
    bench.limits = JobLimits(max_released_per_tenant=1)
    await _accept(bench, *(bench.job() for _ in range(5)))
    await _reserve(bench, MODEL, most=1)
    job = _question(bench)
    await _accept(bench, job)
    [reserved] = await _reserve(bench)
    assert reserved.job == job
    assert [one.job.kind for one in await _reserve(bench, MODEL)] == []


async def test_tenants_take_turns(bench):
    """One that asks much does not hold up another, and a call gives out no more than it was asked for."""
    jobs = [_question(bench, "acme") for _ in range(5)]
    await _accept(bench, *jobs, _question(bench, "bolt"))
    first = await _reserve(bench, most=2)
    assert [one.job.tenant_id for one in first] == ["acme", "bolt"]


async def test_a_question_of_a_worker_that_died_is_answered_by_another(bench):
    """The lease, the attempts and the poison are those of every job."""
    bench.limits = JobLimits(max_attempts=2)
    job = _question(bench)
    await _accept(bench, job)
    for _ in range(2):
        [reserved] = await _reserve(bench)
        await bench.queue().begin(reserved)
        await bench.reclaimer().reclaim(QUESTIONS)
    assert await _reserve(bench) == []
    record = await bench.store().get(ACME, job.job_id)
    assert (record.state, record.failure.code) == (JobState.FAILED, "poison")
    assert [letter.job_id for letter in await bench.store().list_dead_letters(QUESTIONS)] == [job.job_id]


async def test_a_sweep_ends_what_is_too_late(bench):
    """As it does among jobs of images, in the queue that it is told of."""
    job = _question(bench, timeout_ms=5)
    await _accept(bench, job)
    bench.now_ms += 10
    report = await bench.sweeper().sweep(queues_of([MODEL]))
    assert (report.num_open, report.num_repaired) == (1, 1)
    assert (await bench.store().get(ACME, job.job_id)).state is JobState.EXPIRED


async def test_forgetting_waits_for_questions_that_run(bench):
    """They may have read what is forgotten."""
    await _accept(bench, _question(bench))
    [reserved] = await _reserve(bench)
    running = RunningJobs(bench.redis)
    found = await running.of(ACME, [MODEL])
    assert found == {reserved.job.job_id: reserved.fence}
    await bench.queue().commit(reserved, ANSWER, ())
    assert await running.wait_ended(ACME, found, 1) == 0


async def test_no_quota_of_images_or_entries_stops_a_question(bench):
    """It makes none, though the day's images are spent and the memories are full."""

    async def many(_tenant):
        return 10**9

    quotas = SameForAll(
        Quotas(max_waiting_jobs=5, images_per_day=1, max_memory_entries=1, max_stored_bytes=1)
    )

    async def check_memory(job):
        assert not job.kind.is_question

    room = CountedRoom(memory_entries=many, stored_bytes=many, check_memory=check_memory)
    store = JobStore(bench.redis, bench.limits, clock_ms=bench.clock_ms, quotas=quotas, room=room)
    await store.accept(_question(bench))
    with pytest.raises(MemoryFull):
        await store.accept(bench.job())


def _job_of(kind, request) -> Job:
    return Job(ACME, make_job_id(5, bytes(8)), kind, request, 1, 2)


async def test_a_kind_is_not_taken_for_another(bench):
    """A record whose request is of another kind, or whose kind nobody knows, is corrupt, and none such is written."""
    search = _job_of(JobKind.SEARCH, SearchRequest(MODEL, MemoryName("default"), "a star", 10, 0.5, 3))
    image = _job_of(JobKind.GENERATE, bench.job().request)
    for job in (search, image):
        assert codec.decode_job(codec.encode_job(job), where="job") == job
    for job, other in ((search, "generate"), (search, "edit"), (image, "search"), (image, "divine")):
        stored = json.dumps(json.loads(codec.encode_job(job)) | {"kind": other}).encode()
        with pytest.raises(CorruptRecord, match=r"^job 7: "):
            codec.decode_job(stored, where="job 7")
    with pytest.raises(ValueError, match="serializing"):
        codec.encode_job(dataclasses.replace(search, kind=JobKind.GENERATE))


async def test_a_result_is_one_of_its_jobs_kind(bench):
    """The answer to a question is no images, whatever a record says."""
    image = _job_of(JobKind.GENERATE, bench.job().request)
    found = {b"job": codec.encode_job(image), b"state": b"succeeded", b"result": codec.encode_result(ANSWER)}
    with pytest.raises(CorruptRecord, match=r"^job 7: "):
        codec.decode_record(found, where="job 7")


async def test_only_jobs_of_images_say_what_images(bench):
    """Whoever takes a question for one is told so at once."""
    search = _job_of(JobKind.SEARCH, SearchRequest(MODEL, MemoryName("default"), "a star", 10))
    assert (search.model, search.num_images) == (MODEL, 0)
    assert bench.job(num_images=3).generation.num_images == 3
    with pytest.raises(TypeError, match="search"):
        _ = search.generation


def test_a_number_that_json_cannot_carry_is_refused():
    """Wherever in an answer it is."""
    answer = dataclasses.replace(ANSWER, found=(Similar(3, 0.5), Similar(4, float("nan"))))
    with pytest.raises(ValueError, match=r"found\.1\.similarity: expected finite"):
        codec.encode_result(answer)
