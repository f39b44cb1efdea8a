"""What a job of images needs before the device makes them: its prompt's embedding, neighbours, references, a picture."""

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from app.domain.job import Job
from app.jobs.types import ReservedJob
from app.worker.course.parts import RunnerParts
from app.worker.course.pictures import read_picture
from app.worker.course.previewer import Previewer
from app.worker.memory.memory_reader import MemoryReader, ReadMemories
from app.worker.memory.references import ReadReferences, ReferenceReader
from app.worker.model.models import LoadedModel, embed_on_device
from sparke_engine.diffusion.engine import SampleGroup


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with all that its images are made of, which nothing changes from now on."""

    reserved: ReservedJob
    model: LoadedModel
    group: SampleGroup
    prompt_embedding: Tensor
    read: ReadMemories
    references: ReadReferences

    @property
    def job(self) -> Job:
        """The job."""
        return self.reserved.job

    def showing(self, previewer: Previewer) -> "Prepared":
        """The same, with the previews that the job wants."""
        return replace(self, group=replace(self.group, previews=previewer.of(self.reserved)))


class Preparer:
    """Reads for one job after the other, or for several at once."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._reader = MemoryReader(parts.versions, parts.memories, parts.metrics)
        self._references = ReferenceReader(self._reader)

    async def prepare(self, reserved: ReservedJob) -> Prepared:
        """Everything that is read for the job, as of now; safe to repeat. Raises ServiceError and what an engine raises."""
        request = reserved.job.generation
        model = self._parts.models[request.model]
        embedding = await self._parts.device.run(partial(embed_on_device, model, request.prompt))
        tenant_id = reserved.job.tenant_id
        read = await self._reader.read(tenant_id, request.diversity, model, embedding)
        references = await self._references.read(tenant_id, request.diversity, model)
        group = SampleGroup(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seeds=request.seeds,
            strength=request.diversity.strength,
            neighbours=read.neighbours,
            latent_bandwidth=request.diversity.latent_bandwidth,
            prompt_bandwidth=request.diversity.prompt_bandwidth,
            references=references.sets,
            picture=await read_picture(reserved.job, model, self._parts.images, self._parts.encoders),
        )
        return Prepared(reserved, model, group, embedding, read, references)
