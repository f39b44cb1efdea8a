"""JSON of jobs and results, and the record's hash. A value that does not fit the schema is CorruptRecord."""

import math

from pydantic import TypeAdapter

from app.domain.ids import JobId, TenantId, WorkerId
from app.domain.job import Job, JobRecord, JobState
from app.domain.result import Failure, GenerationResult
from app.errors import CorruptRecord
from app.jobs.types import DeadLetter, WorkerInfo
from app.redis.records import decode

JOB: TypeAdapter[Job] = TypeAdapter(Job)
RESULT: TypeAdapter[GenerationResult] = TypeAdapter(GenerationResult)
FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)
WORKER: TypeAdapter[WorkerInfo] = TypeAdapter(WorkerInfo)


def encode_result(result: GenerationResult) -> bytes:
    """The result's JSON. Raises ValueError on a number that JSON cannot carry, rather than store a broken record."""
    for image in result.images:
        for number in (image.push, image.nearest_similarity):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"image {image.image_id}: expected finite numbers, got {number}")
    return RESULT.dump_json(result)


def decode_record(found: dict[bytes, bytes], *, where: str) -> JobRecord:
    """The record of a job's hash. Raises CorruptRecord."""
    try:
        state = JobState(found[b"state"].decode())
        return JobRecord(
            job=decode(JOB, found[b"job"], where=where),
            state=state,
            fence=int(found.get(b"fence", b"0")),
            worker_id=WorkerId(found[b"worker_id"].decode()) if b"worker_id" in found else None,
            started_at_ms=_maybe_int(found, b"started_at_ms"),
            finished_at_ms=_maybe_int(found, b"finished_at_ms"),
            result=decode(RESULT, found[b"result"], where=where) if b"result" in found else None,
            failure=decode(FAILURE, found[b"failure"], where=where) if b"failure" in found else None,
            num_attempts=_maybe_int(found, b"attempts") or 0,
            cancel_requested_at_ms=_maybe_int(found, b"cancel_requested_at_ms"),
        )
    except (KeyError, ValueError) as error:
        raise CorruptRecord(f"{where}: {error!r}") from error


def decode_letter(found: dict[bytes, bytes]) -> DeadLetter:
    """A dead letter of its stream's fields. Raises CorruptRecord."""
    try:
        return DeadLetter(
            tenant_id=TenantId(found[b"t"].decode()),
            job_id=JobId(found[b"j"].decode()),
            reason=found[b"reason"].decode(),
            num_attempts=int(found[b"attempts"]),
            worker_id=WorkerId(found[b"worker"].decode()),
            at_ms=int(found[b"at_ms"]),
        )
    except (KeyError, ValueError) as error:
        raise CorruptRecord(f"dead letter: {error!r}") from error


def _maybe_int(found: dict[bytes, bytes], name: bytes) -> int | None:
    return int(found[name]) if name in found else None
