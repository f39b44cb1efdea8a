"""What it means that a line was refused when it was to become a job: for itself, and for the lines behind it. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from app.domain.batch import BatchLine, LineFault
from app.domain.request import GenerationRequest
from app.errors import ImagesSpent, InvalidRequest, MemoryFull, QueueFull, StorageFull, TooManyMemories

REFUSED = (QueueFull, MemoryFull, TooManyMemories, StorageFull)


class Reach(StrEnum):
    """Which lines a refusal concerns: all that follow too, this one alone, or this one for ever."""

    ALL = "all"
    LINE = "line"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a line is no job now; `fault` is None where only the batch's share of the queue is used up."""

    reach: Reach
    fault: LineFault | None = None


SHARE_USED = Refusal(Reach.ALL)


def judge(error: QueueFull | InvalidRequest, line: BatchLine, request: GenerationRequest) -> Refusal:
    """What one of the errors `REFUSED` means for a line.

    A line that asks for more than a whole quota never fits. Where the quota is nothing no line does, so it waits for the
    operator. A memory concerns only the lines that write to it; whatever else is full, no line goes by.
    """
    fault = LineFault(
        error.code, error.message, f"body.{error.param}" if error.param else "body", line.number
    )
    if isinstance(error, (ImagesSpent, MemoryFull)) and error.limit and request.num_images > error.limit:
        what = "images a day" if isinstance(error, ImagesSpent) else "entries in your memories"
        message = (
            f"this line asks for {request.num_images} images, and you may have {error.limit} {what}: it can never be"
            " done; ask for fewer in a line"
        )
        return Refusal(Reach.NEVER, LineFault(error.code, message, fault.param, line.number))
    is_own = isinstance(error, (MemoryFull, TooManyMemories))
    return Refusal(Reach.LINE if is_own else Reach.ALL, fault)
