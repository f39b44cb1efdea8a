"""What `/v1/memories/import` answers with."""

from typing import Literal

from pydantic import BaseModel, Field

from app.http.deps import Deps
from app.memory.importing import ImportRecord


class ImportAnswer(BaseModel):
    """An archive on its way to be a memory."""

    id: str
    object: Literal["memory.import"] = "memory.import"
    status: Literal["in_progress", "completed"] = Field(description="`completed` once the memory is there.")
    memory_id: str = Field(description="The memory; it is there once the status is `completed`.")
    name: str = Field(description="The name of the memory.")
    latent_space: str
    version: int = Field(
        description="The memory's version once all of the archive is there, or what the archive says that it will be. What is"
        " beyond the memory's caps goes then, which is a later version."
    )
    num_entries: int = Field(description="How many have come.")
    received_bytes: int = Field(description="What `from_byte` takes to go on: so many are kept.")
    warnings: list[str] = Field(description="What to know of it, in words; none as a rule.")


def describe_import(record: ImportRecord, deps: Deps) -> ImportAnswer:
    """The import as it is shown."""
    header = record.header
    known = {spec.latent_space for spec in deps.catalogue.values()}
    warnings = []
    if header.latent_space not in known:
        warnings.append(
            f"no model of this service has the latent space {header.latent_space!r}: the memory is kept, and nothing reads"
            " it until one has"
        )
    return ImportAnswer(
        id=record.import_id,
        status="completed" if record.is_done else "in_progress",
        memory_id=f"{header.latent_space}.{record.name}",
        name=record.name,
        latent_space=header.latent_space,
        version=record.version if record.is_done else header.version,
        num_entries=record.progress.num_entries,
        received_bytes=record.progress.offset_bytes,
        warnings=warnings,
    )
