"""Batches from their creation to their end, by drivers that come and go."""

import asyncio
from dataclasses import replace

import pytest
from patience import eventually
from redis.asyncio import Redis
from structlog.testing import capture_logs

from app.batches import keys
from app.batches.driver import BatchDriver
from app.domain.batch import BatchState
from app.domain.file import FilePurpose, StoredFile
from app.domain.ids import WorkerId
from app.domain.job import JobState, Lane
from app.domain.quota import DAY_MS
from app.errors import NotFound, StoreUnavailable
from app.files.keys import content_key
from app.jobs.keys import job_key
from app.jobs.queue import JobQueue
from app.redis.members import member_of

pytestmark = pytest.mark.anyio


async def _has_begun(desk, batch):
    return (await desk.read(batch)).cursor.line > 1


async def test_every_line_has_its_answer(desk):
    """In the order of the file; lines with a fault and lines that failed are in the error file, and all are counted."""
    words = [f"w{number}" for number in range(20)]
    batch = await desk.create(*words, "bad", "", "fail", "w3", "last")
    async with desk.working(), desk.driving(desk.driver()):
        record = await desk.wait(batch)
    assert record.state is BatchState.COMPLETED
    assert (record.counts.total, record.counts.completed, record.counts.failed) == (24, 21, 3)
    assert [line["id"] for line in await desk.output(batch)] == [*words, "last"]
    assert [(line["line"], line.get("code", "job")) for line in await desk.errors(batch)] == [
        (21, "bad"),
        (23, "job"),
        (24, "duplicate_custom_id"),
    ]
    assert [(fault.line, fault.code) for fault in record.faults] == [(21, "bad"), (24, "duplicate_custom_id")]
    assert sorted(desk.done) == sorted([*words, "fail", "last"])
    assert await desk.batches().list_open(10) == []
    assert await desk.redis.ttl(keys.batch_key("acme", batch.batch_id)) > 0
    value = desk.metrics.registry.get_sample_value
    assert value("sparke_batch_lines_total", {"outcome": "completed"}) == 21
    assert value("sparke_batch_lines_total", {"outcome": "failed"}) == 1
    assert value("sparke_jobs_accepted_total", {"model": "toy"}) == 22
    assert value("sparke_batches_ended_total", {"state": "completed"}) == 1


async def test_without_errors_there_is_no_error_file(desk):
    """And without answers no output file; neither is listed."""
    good, poor = await desk.create("one"), await desk.create("fail", "bad")
    async with desk.working(), desk.driving(desk.driver()):
        whole, empty = await desk.wait(good), await desk.wait(poor)
    assert (whole.output_file_id is None, whole.error_file_id is None) == (False, True)
    assert (empty.output_file_id is None, empty.error_file_id is None) == (True, False)
    assert empty.state is BatchState.COMPLETED


async def test_a_file_that_a_killed_process_recorded_is_replaced(desk):
    """It was of other answers than there are now: some may have been kept no longer. Nobody has seen its id."""
    batch = await desk.create("one", "two")
    old = StoredFile(
        batch.tenant_id,
        keys.made_file_id(batch, "output", desk.now_ms),
        "old",
        FilePurpose.BATCH_OUTPUT,
        7,
        desk.now_ms,
        desk.now_ms + 10**6,
    )
    await desk.files().add(old)
    async with desk.driving(desk.driver()), desk.working():
        record = await desk.wait(batch)
    assert record.output_file_id == old.file_id
    assert [line["id"] for line in await desk.output(batch)] == ["one", "two"]


async def test_a_result_that_is_no_longer_kept(desk):
    """Its line says so; the others have theirs."""
    batch = await desk.create(*(f"w{number}" for number in range(6)))
    queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)
    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        await desk.work_once(queue)
        await desk.redis.delete(job_key(batch.tenant_id, keys.line_job_id(batch, 1)))
        async with desk.working():
            record = await desk.wait(batch)
    assert (record.state, record.counts.completed, record.counts.failed) == (BatchState.COMPLETED, 5, 1)
    assert [line["code"] for line in await desk.errors(batch)] == ["result_gone"]


async def test_urls_end_with_the_records_that_they_need(desk):
    """A line's images are shown by its job's record, which is kept from that line's end on, not from the batch's."""
    batch = await desk.create("one", "two")
    queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)
    async with desk.driving(desk.driver()):
        ends_ms = {}
        for _ in range(2):
            await eventually(lambda: desk.jobs().count_waiting(batch.tenant_id, "toy"))
            [held] = await queue.reserve(["toy"], WorkerId("w"), 1, block_ms=1000)
            await desk.finish(queue, held)
            ends_ms[held.job.request.prompt] = desk.now_ms
            desk.now_ms += 600_000
        await desk.wait(batch)
    assert {line["id"]: line["until"] for line in await desk.output(batch)} == {
        word: end_ms // 1000 + 60 for word, end_ms in ends_ms.items()
    }


async def test_a_bounded_number_of_lines_are_jobs(desk):
    """Of the batch lane, with the batch's deadline; the others wait in the file until those were begun."""
    batch = await desk.create(*(f"w{number}" for number in range(30)))
    queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)
    async with desk.driving(desk.driver()):
        for num_done in range(0, 30, 4):
            num_waiting = min(4, 30 - num_done)

            async def is_full(num_waiting=num_waiting):
                return await desk.jobs().count_waiting(batch.tenant_id, "toy") == num_waiting

            await eventually(is_full)
            await asyncio.sleep(0.05)
            assert await is_full()
            for held in await queue.reserve(["toy"], WorkerId("w"), 4, block_ms=0):
                assert held.job.lane is Lane.BATCH
                assert held.job.deadline_at_ms == batch.expires_at_ms
                await queue.fail(held, desk.failure)
        record = await desk.wait(batch)
    assert record.counts.failed == 30


async def test_lines_are_there_for_every_worker(desk):
    """So many lines of a lone batch wait beside those that run: more workers have more of them at a time."""
    batch = await desk.create(*(f"w{number}" for number in range(30)))

    async def wait():
        return await desk.jobs().count_waiting(batch.tenant_id, "toy") == 4

    async with desk.driving(desk.driver()):
        for number in range(3):
            await eventually(wait)
            queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)
            assert len(await queue.reserve(["toy"], WorkerId(f"w{number}"), 4, block_ms=0)) == 4
        await eventually(wait)
        assert await desk.jobs().count_open("toy") == 16


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"\n \n\r\n", "empty_file"),
        (b"bad\nbad", "no_valid_line"),
        (b"a\n" * 101, "too_many_lines"),
        (b"\n" * 201 + b"a", "too_many_lines"),
    ],
)
async def test_a_file_that_is_no_batch(desk, content, code):
    """It fails as a whole, with a code of its own; nothing is made, and nothing is left."""
    desk.limits = replace(desk.limits, max_lines=100)
    batch = await desk.batch(content=content)
    await desk.batches().create(batch)
    async with desk.driving(desk.driver()):
        record = await desk.wait(batch)
    assert (record.state, record.faults[0].code) == (BatchState.FAILED, code)
    assert record.faults[0].line is None
    assert [fault.line for fault in record.faults[1:]] == ([1, 2] if code == "no_valid_line" else [])
    assert (record.output_file_id, record.error_file_id) == (None, None)
    assert not list((desk.folder / "batches").rglob("batch_*"))
    assert await desk.jobs().count_open("toy") == 0


async def test_a_file_that_is_gone(desk):
    """Deleted between the request and the first look."""
    batch = await desk.create("one")
    await desk.contents.delete(content_key(batch.tenant_id, batch.input_file_id))
    async with desk.driving(desk.driver()):
        record = await desk.wait(batch)
    assert (record.state, record.faults[0].code) == (BatchState.FAILED, "input_gone")


async def test_a_file_that_goes_while_its_batch_runs(desk):
    """The batch has a copy of its own, and goes on."""
    batch = await desk.create(*(f"w{number}" for number in range(9)))
    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        await desk.contents.delete(content_key(batch.tenant_id, batch.input_file_id))
        async with desk.working():
            record = await desk.wait(batch)
    assert (record.state, record.counts.completed) == (BatchState.COMPLETED, 9)


async def test_a_batch_whose_own_copy_is_lost_fails(desk):
    """It cannot be done, so it says so, and its jobs are cancelled."""
    batch = await desk.create(*(f"w{number}" for number in range(9)))
    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        await desk.inputs.delete(keys.input_key(batch.tenant_id, batch.batch_id))
        async with desk.working():
            record = await desk.wait(batch)
    assert (record.state, record.faults[-1].code) == (BatchState.FAILED, "input_gone")


async def test_a_cancel_ends_what_has_not_run(desk):
    """What was done is in the output; the rest is in the error file, and no job of it is left."""
    batch = await desk.create("one", "bad", *(f"w{number}" for number in range(20)))
    queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)

    async def is_full():
        return await desk.jobs().count_open("toy") == 4

    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        assert await desk.work_once(queue) > 0
        await eventually(is_full)
        first = await desk.batches().cancel(batch.tenant_id, batch.batch_id)
        assert first.state is BatchState.CANCELLING
        record = await desk.wait(batch)
    assert record.state is BatchState.CANCELLED
    again = await desk.batches().cancel(batch.tenant_id, batch.batch_id)
    assert again == record
    done = [line["id"] for line in await desk.output(batch)]
    assert sorted(done) == sorted(desk.done)
    errors = await desk.errors(batch)
    codes = {line["line"]: line["code"] for line in errors}
    assert codes.pop(2) == "bad"
    assert set(codes.values()) == {"batch_cancelled"}
    assert len(done) + len(errors) == record.counts.total == 22
    job_ids = [keys.line_job_id(batch, line) for line in range(1, 23)]
    states = await desk.jobs().states(batch.tenant_id, job_ids)
    assert set(states) == {None, JobState.SUCCEEDED, JobState.CANCELLED}


async def test_a_cancel_before_the_first_look(desk):
    """There is nothing to write."""
    batch = await desk.create("one")
    await desk.batches().cancel(batch.tenant_id, batch.batch_id)
    async with desk.driving(desk.driver()):
        record = await desk.wait(batch)
    assert (record.state, record.output_file_id, record.error_file_id) == (BatchState.CANCELLED, None, None)
    assert await desk.jobs().count_open("toy") == 0


async def test_a_running_job_of_a_cancelled_batch_cannot_succeed(desk):
    """The batch does not wait for it, and its line is told as cancelled."""
    batch = await desk.create("one", "two")
    queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)
    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        running = await queue.reserve(["toy"], WorkerId("w"), 8, block_ms=1000)
        await desk.batches().cancel(batch.tenant_id, batch.batch_id)
        record = await desk.wait(batch)
    assert running
    assert record.counts.failed == 2
    assert {line["code"] for line in await desk.errors(batch)} == {"batch_cancelled"}


async def test_a_day_is_over(desk):
    """What was done is in the output; the rest has expired, whether it had become a job or not."""
    batch = await desk.create("one", *(f"w{number}" for number in range(20)))
    queue = JobQueue(desk.redis, desk.job_limits, clock_ms=desk.clock_ms)
    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        assert await desk.work_once(queue) > 0
        desk.now_ms = batch.expires_at_ms
        record = await desk.wait(batch)
    assert record.state is BatchState.EXPIRED
    assert record.reached_at_ms[BatchState.FINALIZING] <= record.reached_at_ms[BatchState.EXPIRED]
    assert sorted(line["id"] for line in await desk.output(batch)) == sorted(desk.done)
    errors = await desk.errors(batch)
    assert {line["code"] for line in errors} == {"batch_expired"}
    assert len(errors) + len(desk.done) == 21
    assert await desk.jobs().count_open("toy") == 0


async def test_a_full_queue_is_waited_for(desk):
    """Nothing is lost where the tenant has as many jobs waiting as it may."""
    desk.job_limits = replace(desk.job_limits, max_waiting_per_tenant=1, max_released_per_tenant=1)
    batch = await desk.create(*(f"w{number}" for number in range(12)))
    async with desk.driving(desk.driver()):
        await eventually(lambda: _has_begun(desk, batch))
        await asyncio.sleep(0.1)
        assert await desk.jobs().count_waiting(batch.tenant_id, "toy") == 1
        async with desk.working():
            record = await desk.wait(batch)
    assert record.counts.completed == 12
    assert sorted(desk.done) == sorted(f"w{number}" for number in range(12))


async def test_lines_wait_for_the_next_days_images(desk):
    """What the day has is done, what fails is given back and done by another line, and the rest waits for midnight."""
    desk.now_ms = DAY_MS // 2
    batch = await desk.create("fail", *(f"w{number}" for number in range(7)))
    desk.quotas = {"images_per_day": 5}
    async with desk.driving(desk.driver()), desk.working():

        async def are_done(num_lines):
            return len(desk.done) == num_lines

        await eventually(lambda: are_done(6))
        await asyncio.sleep(0.1)
        assert await are_done(6)
        desk.now_ms = DAY_MS
        record = await desk.wait(batch)
    assert (record.counts.completed, record.counts.failed) == (7, 1)
    assert len(desk.done) == 8


@pytest.mark.parametrize("is_of_entries", [True, False])
async def test_lines_wait_for_room_in_memories(desk, is_of_entries):
    """No line fails of a memory that is full, or that may not be made; once something was forgotten they go on."""
    desk.quotas = {"max_memory_entries": 10} if is_of_entries else {}
    desk.num_entries, desk.has_memory_left = 10, is_of_entries
    batch = await desk.create("one", "two")
    async with desk.driving(desk.driver()), desk.working():

        async def is_looked_through():
            return (await desk.read(batch)).state is BatchState.IN_PROGRESS

        await eventually(is_looked_through)
        await asyncio.sleep(0.1)
        assert desk.done == []
        desk.num_entries, desk.has_memory_left = 0, True
        record = await desk.wait(batch)
    assert record.counts.completed == 2


async def test_room_is_left_for_requests(desk):
    """Batches fill a part of what may wait of a tenant: a request that somebody waits for still has its place."""
    desk.limits = replace(desk.limits, max_waiting=3)
    batches = [await desk.create(*(f"{name}{number}" for number in range(12))) for name in "xyz"]

    async def is_filled():
        return await desk.jobs().count_open("toy") >= 3

    async with desk.driving(desk.driver()):
        await eventually(is_filled)
        await asyncio.sleep(0.2)
        assert await desk.jobs().count_open("toy") <= 3 + len(batches) - 1  # each looks before it adds one
        async with desk.working():
            for batch in batches:
                assert (await desk.wait(batch)).counts.completed == 12


async def test_two_drivers_share_the_batches(desk):
    """Each batch is driven by one of them; when one stops, the other goes on with what it had."""
    first, second = desk.driver(), desk.driver()
    batches = [await desk.create(*(f"{tenant}{n}" for n in range(6)), tenant=tenant) for tenant in "abcd"]
    async with desk.driving(second):
        async with desk.driving(first):
            await eventually(lambda: _has_begun(desk, batches[-1]))
            await eventually(lambda: len(first._running) + len(second._running) == len(batches))
            held = [set(driver._running) for driver in (first, second)]
            assert held[0].isdisjoint(held[1])
            assert held[0] | held[1] == {batch.batch_id for batch in batches}
        async with desk.working():
            for batch in batches:
                assert (await desk.wait(batch)).counts.completed == 6
    assert len(desk.done) == len(set(desk.done)) == 24


async def test_batches_of_all_tenants_advance_side_by_side(desk):
    """One place, one tenant with three batches and one with one: tenants take turns, and a tenant's batches do."""
    desk.limits = replace(desk.limits, max_driven=1, slice_s=0.02)
    many = [await desk.create(*(f"{name}{n}" for n in range(300)), tenant="acme") for name in "xyz"]
    lone = await desk.create(*(f"l{number}" for number in range(300)), tenant="bolt")
    driver = desk.driver()

    async def take_turn():
        await driver.look()
        [(batch, turn)] = driver._running.values()
        await turn
        return batch.batch_id

    async def have_all_begun():
        await take_turn()
        return all([await _has_begun(desk, batch) for batch in (*many, lone)])

    async with desk.working():
        turns = [await take_turn() for _ in range(5)]
        states = [(await desk.read(batch)).state for batch in (*many, lone)]
        await eventually(have_all_begun)
    assert turns == [batch.batch_id for batch in (many[0], lone, many[1], lone, many[2])]
    assert not any(state.is_ended for state in states)


async def test_an_open_name_without_a_batch_is_forgotten_later(desk):
    """A process was killed before it wrote the record; another may be about to, so ten minutes are waited."""
    batch = await desk.batch("one")
    await desk.redis.zadd(keys.OPEN_KEY, {member_of("acme", batch.batch_id): batch.created_at_ms})
    await desk.redis.zadd(keys.OPEN_KEY, {"what/ever": 1})
    async with desk.driving(desk.driver()) as driver:
        for _ in range(3):

            async def was_looked_at():
                return batch.batch_id in driver._again_at_s

            await eventually(was_looked_at)
            driver._again_at_s.clear()
        assert [found.batch_id for found in await desk.batches().list_open(9)] == [batch.batch_id]
        desk.now_ms += 600_001

        async def is_forgotten():
            return not await desk.batches().list_open(9)

        await eventually(is_forgotten)
    with pytest.raises(NotFound):
        await desk.read(batch)


async def test_a_batch_that_cannot_be_read_holds_up_no_other(desk):
    """Its record is broken; it is tried again a while later, and the others go on."""
    broken, good = await desk.create("one"), await desk.create("two")
    await desk.redis.hset(keys.batch_key("acme", broken.batch_id), "batch", "{}")
    async with desk.driving(desk.driver()) as driver, desk.working():
        assert (await desk.wait(good)).state is BatchState.COMPLETED
        assert broken.batch_id in driver._again_at_s


class _AbsentInputs:
    """An object store that one process does not reach."""

    async def has(self, _key):
        """Never an answer."""
        raise StoreUnavailable("the object store does not answer")


async def test_a_batch_is_left_to_those_whose_stores_answer(desk):
    """A replica that does not reach the object store gives back what it holds, and says so once, not at each try."""
    desk.limits = replace(desk.limits, patience_s=0.3)
    batch = await desk.create("one", "two")
    absent = replace(desk.stores(), inputs=_AbsentInputs())
    lame = BatchDriver(desk.batches(), absent, desk.limits, desk.metrics, clock_ms=desk.clock_ms)
    with capture_logs() as lines:
        async with desk.driving(lame):
            await eventually(lambda: lame._running)
            async with desk.driving(desk.driver()), desk.working():
                record = await desk.wait(batch)
        assert record.counts.completed == 2
    told = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert told == ["batch_waits_for_store", "batch_left_to_others"]


class _AbsentRedis(Redis):
    """Refuses every command for a while."""

    is_away = False

    async def execute_command(self, *args, **options):
        """A command, where the server is there."""
        if self.is_away:
            raise ConnectionError("away")
        return await super().execute_command(*args, **options)


async def test_an_outage_of_redis_is_waited_for(desk, redis_url):
    """Under the same lease; what was being written is written once."""
    fickle = _AbsentRedis.from_url(redis_url, protocol=2)
    batch = await desk.create(*(f"w{number}" for number in range(40)))
    async with desk.driving(desk.driver(fickle)), desk.working():
        for _ in range(5):
            await asyncio.sleep(0.02)
            fickle.is_away = True
            await asyncio.sleep(0.03)
            fickle.is_away = False
        record = await desk.wait(batch)
    await fickle.aclose()
    assert record.counts.completed == 40
    assert sorted(desk.done) == sorted(f"w{number}" for number in range(40))
