"""What the OpenAPI document says of those members of bodies, answers and events that mean the same wherever they are."""

from collections.abc import Iterator, Mapping
from typing import Any

_SCHEMAS = "#/components/schemas/"
_ALWAYS = "Always so; clients of the OpenAI API look for it."
SHARED_MEMBERS: Mapping[str, str] = {
    "background": _ALWAYS,
    "created_at": "When it was made (Unix seconds).",
    "data": "What there is, in order.",
    "deleted": "Always true: it is gone.",
    "event": "What happened: the type of the event.",
    "first_id": "The id of the first of `data`; null where there is none.",
    "has_more": "Whether there are more after the last of `data`.",
    "id": "Its id.",
    "image_id": "The id of the image.",
    "images_per_day": "Images that may be asked for on a day of UTC.",
    "job_id": "The id of the job.",
    "latent_space": "The latent space: models with the same one share their memories.",
    "max_memory_entries": "Entries in all memories.",
    "max_stored_bytes": "Bytes of files and images.",
    "max_waiting_jobs": "Jobs that may wait, for each model.",
    "model": "The id of the model.",
    "object": "What kind of thing this is.",
    "output_format": _ALWAYS,
    "quality": _ALWAYS,
    "requests_per_minute": "Requests that may be sent within a minute.",
    "size": "Width and height in pixels, as in `512x512`.",
    "tenant_id": "The name of the tenant.",
}
"""A member that is described where it is declared keeps those words."""


def describe_members(document: dict[str, Any]) -> None:
    """Adds what each member is that has no words of its own. KeyError for one that is not in the table."""
    schemas = document["components"]["schemas"]
    for name, member in members_of(document):
        if not is_described(member, schemas):
            member["description"] = SHARED_MEMBERS[name]


def members_of(part: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every member of every schema below a part of a document, with its name; what is an example is none."""
    if isinstance(part, list):
        for each in part:
            yield from members_of(each)
    elif isinstance(part, dict):
        properties = part.get("properties")
        if isinstance(properties, dict) and all(isinstance(member, dict) for member in properties.values()):
            yield from properties.items()
        for name, each in part.items():
            if name not in ("example", "examples"):
                yield from members_of(each)


def is_described(member: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    """Whether a member has words of its own, or refers to a schema that has some."""
    named = member.get("$ref", "").removeprefix(_SCHEMAS)
    return bool(member.get("description") or (named and schemas[named].get("description")))
