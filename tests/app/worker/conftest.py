"""Jobs to hand to the worker's parts."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from app.domain.ids import MemoryName, ModelId, TenantId, make_job_id
from app.domain.job import Job, JobKind
from app.domain.request import Diversity, GenerationRequest, MemorySelection

MakeJob = Callable[..., Job]


@dataclass(frozen=True)
class Held:
    """The least that a batcher needs."""

    job: Job


def _make_job(
    number: int,
    *,
    tenant: str = "acme",
    prompt: str = "a red circle",
    negative_prompt: str = "",
    num_images: int = 1,
    size_px: int = 64,
    steps: int = 2,
    guidance_scale: float = 5.0,
    seed: int = 7,
    strength: float = 0.5,
    memory: MemorySelection | None = None,
    num_neighbours: int | None = None,
    reproducible: bool = False,
    model: str = "toy",
    created_at_ms: int = 1_000,
    deadline_at_ms: int = 2**45,
) -> Job:
    memory = memory or MemorySelection(name=MemoryName("default"))
    request = GenerationRequest(
        model=ModelId(model),
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_images=num_images,
        width_px=size_px,
        height_px=size_px,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        diversity=Diversity(strength=strength, memory=memory, num_neighbours=num_neighbours),
        reproducible=reproducible,
    )
    job_id = make_job_id(created_at_ms, number.to_bytes(8, "big"))
    return Job(TenantId(tenant), job_id, JobKind.GENERATE, request, created_at_ms, deadline_at_ms)


@pytest.fixture(scope="session")
def make_job() -> MakeJob:
    """A function that makes a valid job; its first argument tells jobs apart."""
    return _make_job


@pytest.fixture(scope="session")
def hold() -> Callable[..., Held]:
    """Like `make_job`, wrapped as the queue wraps a reserved job."""
    return lambda number, **members: Held(_make_job(number, **members))
