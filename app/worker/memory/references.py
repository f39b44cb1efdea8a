"""Novelty and context: from the memories that a request names to the engine's references."""

from dataclasses import dataclass

from app.domain.ids import TenantId
from app.domain.request import Diversity, ReferenceSelection
from app.errors import ReferenceNotFound
from app.memory.keys import MemoryKey
from app.worker.memory.memory_reader import MemoryReader
from app.worker.memory.neighbours import reference_query, to_entries
from app.worker.model.models import LoadedModel
from sparke_engine.guidance.push import Reference


@dataclass(frozen=True, slots=True)
class ReadReferences:
    """What a job's references are to the engine, and the version of each that was read (None where there is none)."""

    sets: tuple[Reference, ...]
    novelty_version: int | None
    context_version: int | None


@dataclass(frozen=True, slots=True)
class ReferenceReader:
    """Reads references: memories of one tenant in its model's latent space."""

    reader: MemoryReader

    async def read(self, tenant_id: TenantId, diversity: Diversity, model: LoadedModel) -> ReadReferences:
        """Novelty at its weight, context at minus its own; a weight of 0 is looked up like any, and left out.

        Raises ReferenceNotFound for a memory that holds nothing, InvalidRequest for a version that is not there yet, VersionGone for
        one of which something was forgotten.
        """
        found: list[Reference] = []
        numbers: list[int | None] = []
        for member, selection, sign in (
            ("novelty", diversity.novelty, 1),
            ("context", diversity.context, -1),
        ):
            if selection is None:
                numbers.append(None)
                continue
            version, reference = await self._read_one(tenant_id, model, selection, f"diversity.{member}")
            numbers.append(version)
            if selection.weight > 0:
                found.append(reference._replace(weight=sign * selection.weight))
        return ReadReferences(tuple(found), *numbers)

    async def _read_one(
        self, tenant_id: TenantId, model: LoadedModel, selection: ReferenceSelection, member: str
    ) -> tuple[int, Reference]:
        """The version that is read, and the reference at the weight 1."""
        key = MemoryKey(tenant_id, model.spec.latent_space, selection.name)
        reading = await self.reader.open(key, selection.version, member=member)
        version = reading.version
        if version == 0:
            raise _nothing_in(selection, model, member)
        query = reference_query(model.engine.preset.max_reference_entries, model.dimensions, version=version)
        entries = to_entries(await self.reader.choose(reading, model.dimensions, query))
        if entries.num_entries == 0:
            raise _nothing_in(selection, model, member)
        return version, Reference(entries, 1.0)


def _nothing_in(selection: ReferenceSelection, model: LoadedModel, member: str) -> ReferenceNotFound:
    return ReferenceNotFound(
        f"{member}.reference names the memory {selection.name!r}, which holds nothing in the latent space"
        f" {model.spec.latent_space!r} of {model.spec.model_id}: make images with"
        f" diversity.memory.name {selection.name!r} first, or send pictures by POST /v1/references",
        param=f"{member}.reference",
    )
