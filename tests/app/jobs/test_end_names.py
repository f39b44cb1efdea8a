"""Names of calls: one for a job until its end is counted, and a bounded number of them."""

from app.domain.ids import JobId, ModelId, TenantId
from app.jobs.end_names import EndNames
from app.jobs.place import JobPlace


def _place(number):
    return JobPlace(TenantId("acme"), JobId(f"job_{number:028x}"), ModelId("toy"))


def test_a_name_lasts_until_its_end_is_counted():
    """Which it is once; a call after that is another's."""
    names = EndNames()
    first = names.ask(_place(1))
    assert names.ask(_place(1)) == first != names.ask(_place(2))
    assert [names.is_to_count(_place(1), first) for _ in range(2)] == [True, False]
    assert names.ask(_place(1)) != first


def test_names_of_jobs_that_others_end_go_in_the_end():
    """The longest unused first, so the one that is asked for again and again stays."""
    names = EndNames()
    used, unused = names.ask(_place(0)), names.ask(_place(1))
    for number in range(2, 10_001):
        names.ask(_place(number))
        assert names.ask(_place(0)) == used
    assert not names.is_to_count(_place(1), unused)
    assert names.is_to_count(_place(0), used)
