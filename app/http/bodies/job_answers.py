"""What `/v1/jobs` answers with."""

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from app.domain.job import JobKind, JobRecord, JobState
from app.domain.request import GenerationRequest
from app.http.bodies.answers import ErrorMember, GenerationAnswer
from app.http.bodies.loras import LoraAskedAnswer, describe_selection
from app.http.bodies.showing import error_of, show_by_url
from app.http.deps import Deps
from app.http.error_table import describe_error

_NO_B64 = {"data": {"__all__": {"b64_json"}}}


class EditAnswer(BaseModel):
    """What an edit began with."""

    strength: float = Field(description="How much of the image was given up: `edit_strength`.")
    image_sha256: str = Field(description="Of the file as it was sent.")
    mask_sha256: str | None = Field(description="Of the mask's file; null without one.")


class AskedAnswer(BaseModel):
    """What was asked for, with every default filled in."""

    prompt: str = Field(description="What the images show.")
    negative_prompt: str = Field(description="What they shall not show; empty: nothing.")
    n: int = Field(description="How many images.")
    size: str
    steps: int = Field(description="Steps of denoising.")
    guidance_scale: float = Field(description="The scale of classifier-free guidance.")
    loras: list[LoraAskedAnswer] = Field(description="In the order of their names; one of scale 0 is none.")
    seed: int = Field(description="That of the first image; each next one's is one more.")
    strength: float = Field(description="`diversity.strength`, 0 to 1.")
    memory: str = Field(description="The name of the memory that is read and written.")
    edit: EditAnswer | None = Field(description="Null where the images began with noise alone.")


class JobAnswer(BaseModel):
    """A job, its images by signed URLs. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    kind: JobKind = Field(description="`generate` or `edit`; those of other kinds are not shown here.")
    status: JobState = Field(description="queued → running → succeeded, failed, cancelled or expired.")
    model: str
    created_at: int
    started_at: int | None = Field(description="When the last worker that took it did so.")
    finished_at: int | None = Field(description="When it ended; null before.")
    deadline_at: int = Field(description="When it expires, unless a worker has begun it.")
    cancel_requested_at: int | None = Field(description="When its end was asked for; else null.")
    num_attempts: int = Field(description="How often a worker began to run it.")
    request: AskedAnswer
    metadata: dict[str, str] = Field(description="Names and values of your own.")
    result: GenerationAnswer | None = Field(description="Once it has succeeded.")
    error: ErrorMember | None = Field(description="Why it has failed, expired or was cancelled.")


class JobsAnswer(BaseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]
    first_id: str | None
    last_id: str | None = Field(description="The id of the last of `data`; null where there is none.")
    next_after: str | None = Field(
        description="What `after` takes for older ones; null where there are none."
    )
    has_more: bool


def describe_job(record: JobRecord, deps: Deps, *, base_url: str) -> JobAnswer:
    """The job as `/v1/jobs` shows it."""
    job = record.job
    has_images, is_over = record.state is JobState.SUCCEEDED, record.state.is_terminal
    return JobAnswer(
        id=job.job_id,
        kind=job.kind,
        status=record.state,
        model=job.model,
        created_at=job.created_at_ms // 1000,
        started_at=_seconds(record.started_at_ms),
        finished_at=_seconds(record.finished_at_ms),
        deadline_at=job.deadline_at_ms // 1000,
        cancel_requested_at=_seconds(record.cancel_requested_at_ms),
        num_attempts=record.num_attempts,
        request=_describe_request(job.generation),
        metadata=dict(job.metadata),
        result=show_by_url(record, deps, base_url=base_url) if has_images else None,
        error=describe_error(error_of(record)) if is_over and not has_images else None,
    )


def job_json(answer: JobAnswer) -> str:
    """The job's JSON."""
    return answer.model_dump_json(exclude={"result": _NO_B64})


def jobs_json(answer: JobsAnswer) -> str:
    """The list's JSON."""
    return answer.model_dump_json(exclude={"data": {"__all__": {"result": _NO_B64}}})


def _describe_request(request: GenerationRequest) -> AskedAnswer:
    edit = request.edit
    return AskedAnswer(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        n=request.num_images,
        size=f"{request.width_px}x{request.height_px}",
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        loras=[describe_selection(lora) for lora in request.loras],
        seed=request.seed,
        strength=request.diversity.strength,
        memory=request.diversity.memory.name,
        edit=None if edit is None else EditAnswer(**asdict(edit)),
    )


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
