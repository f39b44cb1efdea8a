"""What a tenant is told of an error. Nothing of the worker's inside leaves it; the log has the rest.

| error | code | message |
|---|---|---|
| InvalidRequest and below | its own | its own: it speaks of the request |
| StoreUnavailable, Unavailable | its own | a part of the service is away |
| CorruptRecord | corrupt_record | a stored record could not be read |
| the engine's InvalidArgument and below | invalid_request | its own: it speaks of the request |
| the engine's LoraNotLoadable | its own | which LoRA the worker could not load |
| the engine's BrokenOutput and below | its own | the model's output was broken |
| everything below, in a question | question_failed | the log has the cause under the job's id |
| everything below, of pictures to be remembered | encoding_failed | the log has the cause under the job's id |
| out of memory, host or device | out_of_memory | ask for fewer or smaller images |
| everything else | generation_failed | the log has the cause under the job's id |
"""

import torch

from app.domain.ids import JobId
from app.domain.job import Job, JobKind
from app.domain.result import Failure
from app.errors import CorruptRecord, InvalidRequest, Unavailable
from sparke_engine.errors import BrokenOutput, InvalidArgument, LoraNotLoadable

GENERATION_FAILED = "generation_failed"
QUESTION_FAILED = "question_failed"
ENCODING_FAILED = "encoding_failed"
OUT_OF_MEMORY = "out_of_memory"
_NO_ROOM = (
    "DefaultCPUAllocator: ",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def failure_of(error: BaseException, job: Job) -> Failure:
    """The stable code and the message for the tenant."""
    if isinstance(error, InvalidRequest):
        return Failure(error.code, error.message, error.param)
    if isinstance(error, Unavailable):
        return Failure(error.code, "A part of the service did not answer while the job ran; try again.")
    if isinstance(error, CorruptRecord):
        return Failure(error.code, f"A stored record could not be read; {_see_log(job.job_id)}")
    return _engine_failure(error, job)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no room. Torch has a type for that only where its own CUDA allocator found it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_ROOM)


def _engine_failure(error: BaseException, job: Job) -> Failure:
    if isinstance(error, InvalidArgument):
        return Failure(InvalidRequest.code, str(error))
    if isinstance(error, LoraNotLoadable):
        return Failure(
            error.code,
            f"The LoRA {error.name!r} does not fit the model {job.model}: its operator has to correct the "
            "catalogue; images without it can be made.",
        )
    if isinstance(error, BrokenOutput):
        advice = (
            "try other pictures"
            if job.kind is JobKind.ENCODE
            else "try another seed or a lower guidance scale"
        )
        return Failure(error.code, f"The model's output was broken; {advice}.")
    return _unexpected(error, job)


def _unexpected(error: BaseException, job: Job) -> Failure:
    if job.kind.is_question:
        return Failure(QUESTION_FAILED, f"The question could not be answered; {_see_log(job.job_id)}")
    if job.kind is JobKind.ENCODE:
        return Failure(ENCODING_FAILED, f"The pictures could not be encoded; {_see_log(job.job_id)}")
    if is_out_of_memory(error):
        request = job.generation
        return Failure(
            OUT_OF_MEMORY,
            f"The device has no room for {request.num_images} images of {request.width_px}x{request.height_px};"
            " ask for fewer or smaller ones.",
        )
    return Failure(GENERATION_FAILED, f"The images could not be made; {_see_log(job.job_id)}")


def _see_log(job_id: JobId) -> str:
    return f"the operator's log has the cause under {job_id}."
