"""A tenant's jobs, the newest first, page by page."""

import dataclasses

import pytest

from app.domain.ids import ModelId
from app.domain.job import JobState, Lane
from app.jobs import keys
from app.jobs.listing import JobLister
from app.jobs.types import JobLimits, JobQuery

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")


async def _pages(bench, tenant_id, query) -> list[list]:
    lister, pages, after = JobLister(bench.redis), [], None
    while True:
        page = await lister.list_jobs(tenant_id, dataclasses.replace(query, after=after))
        pages.append([record.job for record in page.records])
        after = page.next_after
        if after is None:
            return pages


@pytest.mark.parametrize(("num_jobs", "limit"), [(0, 5), (5, 5), (6, 5), (230, 100)])
async def test_pages_are_all_jobs_once(bench, num_jobs, limit):
    """Following the cursor gives every job once, the newest first, and ends without an empty page."""
    jobs = [bench.job() for _ in range(num_jobs)]
    for job in jobs:
        await bench.store().accept(job)
    await bench.store().accept(bench.job("other"))
    pages = await _pages(bench, bench.job().tenant_id, JobQuery(limit))
    assert [job for page in pages for job in page] == jobs[::-1]
    assert all(len(page) == limit for page in pages[:-1])
    assert bool(pages[-1]) == bool(jobs)


async def test_filters_by_state_and_model(bench):
    """Only jobs of that state, and of that model."""
    cancelled, waiting, other = bench.job(), bench.job(), bench.job(model=ModelId("other"))
    for job in (cancelled, waiting, other):
        await bench.store().accept(job)
    await bench.store().cancel(cancelled.tenant_id, cancelled.job_id)
    tenant_id = waiting.tenant_id
    assert await _pages(bench, tenant_id, JobQuery(9, state=JobState.CANCELLED)) == [[cancelled]]
    assert await _pages(bench, tenant_id, JobQuery(9, state=JobState.QUEUED)) == [[other, waiting]]
    assert await _pages(bench, tenant_id, JobQuery(9, model=MODEL)) == [[waiting, cancelled]]


async def test_lines_of_batches_are_not_listed(bench):
    """They are their batch's business, and there are too many."""
    line = dataclasses.replace(bench.job(), lane=Lane.BATCH)
    await bench.store().accept(line)
    assert await _pages(bench, line.tenant_id, JobQuery(9)) == [[]]


async def test_jobs_that_are_gone_leave_the_list(bench):
    """A record that has expired, or cannot be read, is passed over; the first kind is forgotten."""
    gone, broken, there = bench.job(), bench.job(), bench.job()
    for job in (gone, broken, there):
        await bench.store().accept(job)
    await bench.redis.delete(keys.job_key(gone.tenant_id, gone.job_id))
    await bench.redis.hset(keys.job_key(gone.tenant_id, broken.job_id), "job", "{}")
    assert await _pages(bench, gone.tenant_id, JobQuery(9)) == [[there]]
    assert await bench.redis.zcard(keys.jobs_key(gone.tenant_id)) == 2


async def test_the_list_forgets_what_no_record_can_outlive(bench):
    """Names older than any record can be go with the next acceptance; an idle tenant's list goes by itself."""
    bench.limits = JobLimits(job_ttl_s=60, max_deadline_s=60)
    old = bench.job()
    await bench.store().accept(old)
    bench.now_ms += 1000 * bench.limits.job_list_ttl_s + 1
    new = bench.job()
    await bench.store().accept(new)
    assert await bench.redis.zrange(keys.jobs_key(new.tenant_id), 0, -1) == [new.job_id.encode()]
    assert 0 < await bench.redis.pttl(keys.jobs_key(new.tenant_id)) <= 1000 * bench.limits.job_list_ttl_s
