"""What `/v1/batches` takes and answers with."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.domain.batch import BatchRecord, BatchState, LineCounts, LineFault
from app.domain.file import MAX_FILE_TTL_S, MIN_FILE_TTL_S
from app.http.bodies.generation_bodies import MetadataName, MetadataValue, WireModel


class OutputExpiresAfter(WireModel):
    """When the files of answers and errors go by themselves."""

    anchor: Literal["created_at"] = Field(description="From when `seconds` counts.")
    seconds: int = Field(ge=MIN_FILE_TTL_S, le=MAX_FILE_TTL_S, description="So long in seconds.")


class BatchBody(WireModel):
    """The body of `POST /v1/batches`."""

    input_file_id: str = Field(max_length=80, description="A file of yours with purpose `batch`.")
    endpoint: Literal["/v1/images/generations"] = Field(description="Where its lines go.")
    completion_window: Literal["24h"] = Field(description="What is not done by then has expired.")
    metadata: Annotated[dict[MetadataName, MetadataValue], Field(max_length=16)] | None = Field(
        default=None, description="Up to 16 names and values of your own, shown with the batch."
    )
    output_expires_after: OutputExpiresAfter | None = Field(
        default=None, description="The server's own time to live of files if absent."
    )


class BatchErrorMember(BaseModel):
    """What is wrong with a line, or with the file."""

    code: str = Field(description="What a program goes by, as of an error.")
    message: str = Field(description="What is wrong, in words.")
    param: str | None = Field(description="The member at fault; null where it is none.")
    line: int | None = Field(description="From 1; null where the file as a whole is at fault.")


class BatchErrors(BaseModel):
    """The first 100 faults; the error file has all of them."""

    object: Literal["list"] = "list"
    data: list[BatchErrorMember]


class RequestCounts(BaseModel):
    """Lines of the batch."""

    total: int = Field(description="All of them.")
    completed: int = Field(description="Those with images.")
    failed: int = Field(description="Those with an error.")


class BatchAnswer(BaseModel):
    """A batch. Times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Literal["/v1/images/generations"] = Field(
        default="/v1/images/generations", description="Where its lines go."
    )
    errors: BatchErrors | None = Field(
        description="Why it failed, or which lines are no requests; null without any."
    )
    input_file_id: str = Field(description="The file of its requests.")
    completion_window: Literal["24h"] = Field(
        default="24h", description="What is not done by then has expired."
    )
    status: BatchState = Field(
        description="validating → in_progress → finalizing → completed or expired; failed, cancelling → cancelled."
    )
    output_file_id: str | None = Field(
        description="Answers, in the order of the lines. Null while there are none."
    )
    error_file_id: str | None = Field(
        description="Errors, in the order of the lines. Null while there are none."
    )
    created_at: int
    in_progress_at: int | None = Field(description="When its file had been looked through; null before.")
    expires_at: int = Field(description="What is not done by then has expired.")
    finalizing_at: int | None = Field(description="When its files began to be written; null before.")
    completed_at: int | None = Field(description="When it was completed; else null.")
    failed_at: int | None = Field(description="When it failed; else null.")
    expired_at: int | None = Field(description="When it expired; else null.")
    cancelling_at: int | None = Field(description="When it was asked to end; else null.")
    cancelled_at: int | None = Field(description="When it had ended for that; else null.")
    request_counts: RequestCounts
    metadata: dict[str, str] | None = Field(description="Names and values of your own; null without any.")
    held_up: BatchErrorMember | None = Field(
        description="Why a line has to wait: a quota that is spent, a memory or a queue that is full. Null where none does."
    )


class BatchesAnswer(BaseModel):
    """Some batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


def describe_batch(record: BatchRecord) -> BatchAnswer:
    """The batch as `/v1/batches` shows it."""
    batch, counts = record.batch, record.counts or LineCounts()
    reached_at = {
        f"{state.value}_at": record.reached_at_ms[state] // 1000 if state in record.reached_at_ms else None
        for state in BatchState
        if state is not BatchState.VALIDATING
    }
    faults = [_show_fault(fault) for fault in record.faults]
    members = {
        "id": batch.batch_id,
        "errors": BatchErrors(data=faults) if faults else None,
        "input_file_id": batch.input_file_id,
        "status": record.state,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": batch.created_at_ms // 1000,
        "expires_at": batch.expires_at_ms // 1000,
        "request_counts": RequestCounts(total=counts.total, completed=counts.completed, failed=counts.failed),
        "metadata": None if batch.metadata is None else dict(batch.metadata),
        "held_up": None if record.held_up is None else _show_fault(record.held_up),
    }
    return BatchAnswer.model_validate(members | reached_at)


def _show_fault(fault: LineFault) -> BatchErrorMember:
    return BatchErrorMember(code=fault.code, message=fault.message, param=fault.param, line=fault.line)
