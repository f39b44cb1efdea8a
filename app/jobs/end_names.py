"""Names under which this process asks for ends of jobs, so that each end is counted once, whatever answers are lost."""

import secrets
from collections import OrderedDict

from app.jobs.place import JobPlace

_MAX_NAMES = (
    10_000  # of some 200 bytes each; those of jobs that others end go by this alone, the longest unused first
)


class EndNames:
    """A call that may end a job has a name, which a script writes into the record with the end that it brings about.

    All calls for a job have one name here until one is told that the job has ended under it, which is to be counted. So
    whoever repeats a call whose answer was lost counts the end, and a call after that has another name, and finds that
    the end is not its own. What has ended without an answer, and nobody here asks about again, is counted by nobody.
    """

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()

    def ask(self, place: JobPlace) -> str:
        """The name for a call about a job."""
        name = self._names.setdefault(place.member, secrets.token_hex(8))
        self._names.move_to_end(place.member)
        if len(self._names) > _MAX_NAMES:
            self._names.popitem(last=False)
        return name

    def is_to_count(self, place: JobPlace, name: str) -> bool:
        """Whether the end of a job under this name is to be counted: the first time that it is asked."""
        if self._names.get(place.member) != name:
            return False
        del self._names[place.member]
        return True
