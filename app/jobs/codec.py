"""JSON of jobs and results, and the record's hash. A value that does not fit the schema is CorruptRecord.

The kind, which is read first, says which schema that is: no job is taken for one of another kind.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from app.domain.encoding import EncodeRequest, EncodeResult
from app.domain.ids import ImageId, JobId, TenantId, WorkerId
from app.domain.job import Job, JobKind, JobRecord, JobResult, JobState
from app.domain.question import (
    PreviewRequest,
    PreviewResult,
    SearchRequest,
    SearchResult,
    StatsRequest,
    StatsResult,
)
from app.domain.request import GenerationRequest
from app.domain.result import Failure, GenerationResult
from app.errors import CorruptRecord
from app.jobs.types import DeadLetter, WorkerInfo
from app.redis.records import decode


@dataclass(frozen=True, slots=True)
class _Kind:
    kind: JobKind


_KIND: TypeAdapter[_Kind] = TypeAdapter(_Kind)
_JOBS: Mapping[JobKind, TypeAdapter[Any]] = {
    JobKind.GENERATE: TypeAdapter(Job[GenerationRequest]),
    JobKind.EDIT: TypeAdapter(Job[GenerationRequest]),
    JobKind.ENCODE: TypeAdapter(Job[EncodeRequest]),
    JobKind.SEARCH: TypeAdapter(Job[SearchRequest]),
    JobKind.PREVIEW: TypeAdapter(Job[PreviewRequest]),
    JobKind.STATS: TypeAdapter(Job[StatsRequest]),
}
_RESULT_TYPES: Mapping[JobKind, type[JobResult]] = {
    JobKind.GENERATE: GenerationResult,
    JobKind.EDIT: GenerationResult,
    JobKind.ENCODE: EncodeResult,
    JobKind.SEARCH: SearchResult,
    JobKind.PREVIEW: PreviewResult,
    JobKind.STATS: StatsResult,
}
_RESULTS: Mapping[type[JobResult], TypeAdapter[Any]] = {
    GenerationResult: TypeAdapter(GenerationResult),
    EncodeResult: TypeAdapter(EncodeResult),
    SearchResult: TypeAdapter(SearchResult),
    PreviewResult: TypeAdapter(PreviewResult),
    StatsResult: TypeAdapter(StatsResult),
}
FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)
WORKER: TypeAdapter[WorkerInfo] = TypeAdapter(WorkerInfo)


@dataclass(frozen=True, slots=True)
class _KeptImage:
    storage_key: str


@dataclass(frozen=True, slots=True)
class _Kept:
    images: tuple[_KeptImage, ...]


_KEPT: TypeAdapter[_Kept] = TypeAdapter(_Kept)


def encode_job(job: Job) -> bytes:
    """The job's JSON. Raises ValueError for a request that is not of the job's kind."""
    return bytes(_JOBS[job.kind].dump_json(job, warnings="error"))


def decode_job(data: bytes, *, where: str) -> Job:
    """The job of some JSON. Raises CorruptRecord, also for a kind that this release does not know."""
    job: Job = decode(_JOBS[decode(_KIND, data, where=where).kind], data, where=where)
    return job


def encode_result(result: JobResult) -> bytes:
    """The result's JSON. Raises ValueError on a number that JSON cannot carry, rather than store a broken record."""
    for member, number in _floats(asdict(result), "result"):
        if not math.isfinite(number):
            raise ValueError(f"{member}: expected finite numbers, got {number}")
    return bytes(_RESULTS[type(result)].dump_json(result))


def decode_storage_keys(data: bytes, *, where: str) -> frozenset[str]:
    """Where the images of a result lie, whatever kind of job it is of that leaves images. Raises CorruptRecord."""
    kept = decode(_KEPT, data, where=where)
    return frozenset(image.storage_key for image in kept.images)


def without_images(job: bytes, result: bytes, gone: Collection[ImageId], *, where: str) -> bytes:
    """The JSON of a result without some images; empty where none is left, or nobody can read which there are."""
    try:
        read = _decode_result(decode_job(job, where=where).kind, result, where=where)
    except CorruptRecord:
        return b""
    if not isinstance(read, GenerationResult | EncodeResult):
        return b""
    if isinstance(read, GenerationResult):
        read = replace(read, images=tuple(image for image in read.images if image.image_id not in gone))
    else:
        read = replace(read, images=tuple(image for image in read.images if image.image_id not in gone))
    return encode_result(read) if read.images else b""


def decode_record(found: dict[bytes, bytes], *, where: str) -> JobRecord:
    """The record of a job's hash. Raises CorruptRecord."""
    try:
        state = JobState(found[b"state"].decode())
        job = decode_job(found[b"job"], where=where)
        return JobRecord(
            job=job,
            state=state,
            fence=int(found.get(b"fence", b"0")),
            worker_id=WorkerId(found[b"worker_id"].decode()) if b"worker_id" in found else None,
            started_at_ms=_maybe_int(found, b"started_at_ms"),
            finished_at_ms=_maybe_int(found, b"finished_at_ms"),
            result=_decode_result(job.kind, found[b"result"], where=where) if b"result" in found else None,
            failure=decode(FAILURE, found[b"failure"], where=where) if b"failure" in found else None,
            num_attempts=_maybe_int(found, b"attempts") or 0,
            cancel_requested_at_ms=_maybe_int(found, b"cancel_requested_at_ms"),
            committed_version=_maybe_int(found, b"committed_version"),
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


def _decode_result(kind: JobKind, data: bytes, *, where: str) -> JobResult:
    result: JobResult = decode(_RESULTS[_RESULT_TYPES[kind]], data, where=where)
    return result


def _floats(value: object, member: str) -> Iterator[tuple[str, float]]:
    """Every float within dictionaries and sequences, with the member that it is."""
    if isinstance(value, float):
        yield member, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _floats(inner, f"{member}.{name}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _floats(inner, f"{member}.{place}")


def _maybe_int(found: dict[bytes, bytes], name: bytes) -> int | None:
    return int(found[name]) if found.get(name) else None
