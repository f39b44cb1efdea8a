"""From a body to an accepted job: what all routes that ask for images share."""

import asyncio
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import structlog
from fastapi import Depends, Header, Request
from pydantic import BaseModel

from app.domain.encoding import EncodeRequest
from app.domain.ids import JobId, TenantId, make_job_id
from app.domain.job import Job, JobKind
from app.domain.request import GenerationRequest
from app.errors import InvalidValue, StoreUnavailable
from app.http.bodies.generation import find_model, to_request
from app.http.bodies.generation_bodies import ImagesBody
from app.http.course.origin import accept
from app.http.course.replays import check_replay
from app.http.deps import Deps
from app.jobs.types import Accepted, Idempotency

_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_IDEMPOTENCY_KEY = "Idempotency-Key"


def read_idempotency_key(
    given: Annotated[
        str | None,
        Header(
            alias=_IDEMPOTENCY_KEY,
            description="A key of your own for this request: sent again with it, it is the same job, with one answer.",
            json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
        ),
    ] = None,
) -> str | None:
    """The header, or InvalidValue."""
    if given is not None and _KEY.fullmatch(given) is None:
        raise InvalidValue(
            f"an {_IDEMPOTENCY_KEY} is 1 to 255 printable ASCII characters, got {given[:80]!r}",
            param=_IDEMPOTENCY_KEY,
        )
    return given


_log = structlog.get_logger(__name__)

IdempotencyKey = Annotated[str | None, Depends(read_idempotency_key)]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job gets beside its images: how long it may wait, what stands for it, names of the client's own, previews."""

    deadline_s: float
    idempotency: Idempotency | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_previews: int = 0


def idempotency_of(
    request: Request, body: BaseModel, key: str | None, *, files: Sequence[str] = ()
) -> Idempotency | None:
    """The key with a fingerprint of where it was sent and what was asked for there; `files` are digests of what came along."""
    if key is None:
        return None
    asked = f"{request.method} {request.url.path}\n{body.model_dump_json(exclude_unset=True)}"
    asked = "\n".join((asked, *files))
    return Idempotency(key, hashlib.sha256(asked.encode()).hexdigest())


async def submit(tenant_id: TenantId, body: ImagesBody, wish: Wish, deps: Deps) -> Accepted:
    """Makes a job of the body and accepts it; the job that stands for it, an earlier one where its key has one.

    Raises what is wrong with the body, VersionGone, QueueFull, IdempotencyMismatch, StoreUnavailable.
    """
    generation = to_request(body, find_model(body.model, deps.catalogue), deps.randomness)
    job_id = make_job_id(deps.now_ms(), deps.randomness(8))
    return await accept_job(tenant_id, generation, wish, kind=JobKind.GENERATE, job_id=job_id, deps=deps)


async def accept_job(
    tenant_id: TenantId,
    asked: GenerationRequest | EncodeRequest,
    wish: Wish,
    *,
    kind: JobKind,
    job_id: JobId,
    deps: Deps,
) -> Accepted:
    """Accepts a job; the job that stands for it, as `submit` has it. Raises QueueFull, IdempotencyMismatch, StoreUnavailable."""
    if wish.idempotency is None and isinstance(asked, GenerationRequest):
        # what a key stands for may be of a time before something was forgotten
        space = deps.catalogue[asked.model].latent_space
        await check_replay(tenant_id, space, asked.diversity, deps)
    now_ms = deps.now_ms()
    job: Job = Job(
        tenant_id=tenant_id,
        job_id=job_id,
        kind=kind,
        request=asked,
        created_at_ms=now_ms,
        deadline_at_ms=now_ms + int(wish.deadline_s * 1000),
        metadata=wish.metadata,
        num_previews=wish.num_previews,
    )
    return await accept(job, deps, wish.idempotency)


async def cancel_job(tenant_id: TenantId, job_id: JobId, deps: Deps) -> None:
    """Cancels a job; one that has ended stays as it is. Raises NotFound, StoreUnavailable."""
    await deps.jobs.cancel(tenant_id, job_id)


async def discard_pictures(job_id: JobId, keys: Iterable[str], deps: Deps) -> None:
    """Removes pictures that came for a job and belong to none; what cannot be removed now is left to the sweep."""
    try:
        await asyncio.gather(*(deps.images.delete(key) for key in keys))
    except StoreUnavailable as error:
        deps.metrics.store_errors.labels("images").inc()
        _log.warning("picture_left_to_sweep", job_id=job_id, error=error.message)
