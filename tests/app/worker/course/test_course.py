"""A job of whatever kind begins where it is wanted, and ends once: with its result, or with what came in between."""

import asyncio
from dataclasses import dataclass, field

import pytest

from app.domain.ids import WorkerId
from app.domain.job import JobState
from app.domain.question import SearchResult
from app.errors import PictureGone, StoreUnavailable
from app.jobs.types import Cancelled, Committed, ReservedJob, Standing
from app.telemetry.metrics import Metrics
from app.worker.course.committing import Finished
from app.worker.course.course import JobCourse, NotWanted, TooLate
from app.worker.patience import Patience

pytestmark = pytest.mark.anyio

RESULT = SearchResult((), "toy", "default", 3)
DEADLINE_MS = 2_000


@dataclass
class Jobs:
    """Where jobs begin and end, with answers that tests set; what was asked for."""

    standings: list[Standing] = field(default_factory=lambda: [Standing.OURS])
    committed: Committed | Cancelled | None = field(default_factory=lambda: Committed(3))
    num_away: int = 0  # calls that find nobody
    asked: list[object] = field(default_factory=list)

    def _answer(self, asked, answer):
        if self.num_away:
            self.num_away -= 1
            raise StoreUnavailable("away")
        self.asked.append(asked)
        return answer

    async def begin(self, _reserved):
        """As the queue's."""
        return self._answer("begin", self.standings[0])

    async def standing(self, _reserved, _progress=None):
        """As the queue's."""
        return self._answer("standing", self.standings[-1])

    async def commit(self, _reserved, _result, entries, *, seen_version=None):
        """As the queue's."""
        return self._answer(("commit", len(entries), seen_version), self.committed)

    async def fail(self, _reserved, failure):
        """As the queue's."""
        return self._answer(("fail", failure.code), JobState.FAILED)


@dataclass
class Bench:
    """A course on a clock that tests set."""

    jobs: Jobs
    reserved: ReservedJob
    now_ms: int = 1_500

    def __post_init__(self):
        self.stop, self.metrics = asyncio.Event(), Metrics()
        patience = Patience(self.stop, lambda: self.now_ms, self.metrics)
        self.course = JobCourse(self.jobs, patience, self.metrics, lambda: self.now_ms)

    def counted(self, name, **labels):
        """A counter's value; 0 where there is none."""
        return self.metrics.registry.get_sample_value(f"sparke_{name}", labels) or 0

    async def carry_out(self, work):
        """The work as one of the runners does it."""
        with self.course.ender.spans.during([self.reserved]):
            return await self.course.carry_out(self.reserved, "work_not_done", work)


@pytest.fixture
def bench(make_job):
    """A course with a job that is this worker's."""
    return Bench(Jobs(), ReservedJob(make_job(1, deadline_at_ms=DEADLINE_MS), 1, WorkerId("w1"), "1-0"))


async def test_what_went_well_is_committed(bench):
    """What the work gives comes out; entries are counted where the memory took them."""

    async def work():
        await bench.course.begin(bench.reserved)
        await bench.course.check_wanted(bench.reserved)
        return await bench.course.commit(bench.reserved, Finished(RESULT, (b"e", b"f"), 2))

    assert await bench.carry_out(work) is True
    assert bench.jobs.asked == ["begin", "standing", ("commit", 2, 2)]
    assert bench.counted("memory_entries_appended_total", model="toy") == 2


@pytest.mark.parametrize(
    ("committed", "lost"),
    [(Committed(None), 0), (Cancelled(), 0), (None, 1)],
    ids=["unkept", "cancelled", "lost"],
)
async def test_a_commit_that_remembers_nothing(bench, committed, lost):
    """It is true where the job has ended with its result, and no entry is counted."""
    bench.jobs.committed = committed
    done = await bench.carry_out(lambda: bench.course.commit(bench.reserved, Finished(RESULT, (b"e",))))
    assert done is isinstance(committed, Committed)
    assert bench.counted("memory_entries_appended_total", model="toy") == 0
    assert bench.counted("jobs_fence_lost_total", model="toy") == lost


@pytest.mark.parametrize("step", ["begin", "check_wanted"])
async def test_what_nobody_wants_is_not_gone_on_with(bench, step):
    """A cancelled job is ended so; one of another worker's is only let go."""
    for standing, asked in ((Standing.CANCELLED, [("fail", "cancelled")]), (Standing.LOST, [])):
        bench.jobs.standings, bench.jobs.asked = [standing], []
        assert await bench.carry_out(lambda: getattr(bench.course, step)(bench.reserved)) is None
        assert bench.jobs.asked[1:] == asked
    assert bench.counted("jobs_fence_lost_total", model="toy") == 1


@pytest.mark.parametrize("step", ["begin", "check_wanted"])
async def test_after_its_deadline_a_job_expires(bench, step):
    """Whether it was to begin or on its way."""
    bench.now_ms = DEADLINE_MS
    assert await bench.carry_out(lambda: getattr(bench.course, step)(bench.reserved)) is None
    assert bench.jobs.asked[-1] == ("fail", "expired")
    assert "begin" not in bench.jobs.asked


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("broken"), "generation_failed"), (PictureGone("gone"), "picture_gone")],
)
async def test_an_error_ends_the_job_by_its_kind(bench, error, code):
    """And goes no further; the job's mates are not touched."""

    async def work():
        raise error

    assert await bench.carry_out(work) is None
    assert bench.jobs.asked == [("fail", code)]


async def test_what_a_runner_tidies_up_before_it_ends(bench):
    """The course's own errors pass through the work, which may catch them and raise them again."""
    bench.jobs.standings, tidied = [Standing.LOST], []

    async def work():
        try:
            await bench.course.check_wanted(bench.reserved)
        except (NotWanted, TooLate):
            tidied.append(list(bench.jobs.asked))
            raise

    assert await bench.carry_out(work) is None
    assert tidied == [["standing"]]


async def test_a_cancelled_worker_ends_no_job(bench):
    """Its jobs are given back by the loop."""

    async def work():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await bench.carry_out(work)
    assert bench.jobs.asked == []


async def test_an_outage_is_waited_for_until_the_deadline(bench):
    """Beginning is repeated; past the deadline the job fails, as soon as that can be written."""
    bench.jobs.num_away = 1
    await bench.carry_out(lambda: bench.course.begin(bench.reserved))
    assert bench.jobs.asked == ["begin"]
    bench.jobs.num_away, bench.jobs.asked = 2, []

    async def begin_late():
        begun = asyncio.create_task(bench.course.begin(bench.reserved))
        await asyncio.sleep(0.01)
        bench.now_ms = DEADLINE_MS
        await begun

    assert await bench.carry_out(begin_late) is None
    [(ended, _)] = bench.jobs.asked
    assert ended == "fail"
