"""Answers one question of a memory: its prompt on the device, the rest in threads, the answer by the commit of every job."""

import asyncio
from dataclasses import asdict
from functools import partial

from torch import Tensor

from app.domain.job import JobResult
from app.domain.question import (
    PreviewRequest,
    PreviewResult,
    SearchRequest,
    SearchResult,
    Similar,
    StatsRequest,
    StatsResult,
)
from app.jobs.types import ReservedJob
from app.memory.keys import MemoryKey
from app.worker.course.committing import Finished
from app.worker.course.parts import RunnerParts
from app.worker.memory.host_memory import NearestQuery
from app.worker.memory.memory_reader import MemoryReader
from app.worker.memory.neighbours import prompt_row, reference_query
from app.worker.memory.reckoning import estimate, score
from app.worker.memory.references import ReferenceReader
from app.worker.model.models import LoadedModel, embed_on_device


class QuestionRunner:
    """Ends the jobs of questions, each by its own merit."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._course = parts.course
        self._reader = MemoryReader(parts.versions, parts.memories, parts.metrics)
        self._references = ReferenceReader(self._reader)
        self._scoring = asyncio.Lock()

    async def run(self, reserved: ReservedJob) -> None:
        """End the job with its answer, or with what went wrong. Raises nothing for its sake.

        Redis away: what reads or writes it is repeated, until the job's deadline or the worker's end.
        """
        with self._course.ender.spans.during([reserved]):
            await self._course.carry_out(reserved, "question_not_answered", partial(self._run, reserved))

    async def _run(self, reserved: ReservedJob) -> None:
        course = self._course
        await course.begin(reserved)
        result = await course.patiently(reserved, lambda: self._answer(reserved))
        await course.commit(reserved, Finished(result, ()))

    async def _answer(self, reserved: ReservedJob) -> JobResult:
        request = reserved.job.request
        if isinstance(request, SearchRequest):
            return await self._search(reserved, request)
        if isinstance(request, PreviewRequest):
            return await self._preview(reserved, request)
        if isinstance(request, StatsRequest):
            return await self._stats(reserved, request)
        raise TypeError(f"expected a question, got {reserved.job.job_id} of the kind {reserved.job.kind}")

    async def _search(self, reserved: ReservedJob, request: SearchRequest) -> SearchResult:
        model = self._parts.models[request.model]
        embedding = await self._embed(reserved, model, request.prompt)
        key = MemoryKey(reserved.job.tenant_id, model.spec.latent_space, request.memory)
        reading = await self._reader.open(key, request.version, member="")
        query = NearestQuery(
            prompt_embedding=prompt_row(embedding),
            version=reading.version,
            limit=request.limit,
            min_cosine=-1.0 if request.min_similarity is None else request.min_similarity,
        )
        found = await self._reader.ask(reading, model.dimensions, lambda memory: memory.nearest(query))
        return SearchResult(
            found=tuple(Similar(version, similarity) for version, similarity in found),
            latent_space=key.latent_space,
            memory_name=key.name,
            memory_version=reading.version,
        )

    async def _preview(self, reserved: ReservedJob, request: PreviewRequest) -> PreviewResult:
        """Chosen by what chooses for images, and pushed by nothing."""
        model, diversity = self._parts.models[request.model], request.diversity
        tenant_id = reserved.job.tenant_id
        embedding = await self._embed(reserved, model, request.prompt)
        read = await self._reader.read(tenant_id, diversity, model, embedding)
        chosen = read.chosen
        references = await self._references.read(tenant_id, diversity, model)
        guidance = await asyncio.to_thread(estimate, chosen, embedding, model.engine.preset, request)
        return PreviewResult(
            num_qualified=0 if chosen is None else chosen.num_qualified,
            num_neighbours=0 if chosen is None else len(chosen.versions),
            neighbours=guidance.neighbours,
            expected_push=guidance.expected_push,
            latent_space=model.spec.latent_space,
            memory_name=diversity.memory.name,
            memory_version=read.point.version,
            novelty_version=references.novelty_version,
            context_version=references.context_version,
        )

    async def _stats(self, reserved: ReservedJob, request: StatsRequest) -> StatsResult:
        """Without the device. One at a time: spectra of thousands of entries take a core for some seconds."""
        model = self._parts.models[request.model]
        key = MemoryKey(reserved.job.tenant_id, model.spec.latent_space, request.memory)
        reading = await self._reader.open(key, None, member="")
        query = reference_query(request.sample, model.dimensions, version=reading.version)
        async with self._scoring:
            chosen = await self._reader.choose(reading, model.dimensions, query)
            await self._course.check_wanted(reserved)
            scores = await asyncio.to_thread(score, chosen, model.engine.preset)
        return StatsResult(
            num_entries=chosen.num_qualified,
            num_sampled=len(chosen.versions),
            **asdict(scores),
            latent_space=key.latent_space,
            memory_name=key.name,
            memory_version=reading.version,
        )

    async def _embed(self, reserved: ReservedJob, model: LoadedModel, prompt: str) -> Tensor:
        """The prompt's embedding, after whatever the device was at. Nothing more is done for a job that nobody wants."""
        embedding = await self._parts.device.run(partial(embed_on_device, model, prompt))
        await self._course.check_wanted(reserved)
        return embedding
