"""What the OpenAPI document calls operations, and says of the members of their paths: generated clients have it as names and help."""

from collections.abc import Mapping
from typing import Any

from fastapi.routing import APIRoute

_PATH_MEMBERS: Mapping[str, tuple[str, str]] = {
    "batch_id": ("A batch's id.", "batch_01a229eead5b9d7b31362f01c9bd465385c9"),
    "entry": ("An entry: its version, or the id of its image.", "2"),
    "file_id": ("A file's id.", "file-01a229eecb0893be4c28b092c4b4c913c4fa"),
    "image_id": ("An image's id: its job's, and its place there.", "job_01a229ebd870e061d6765cfb93c8-0"),
    "import_id": ("The id of an import, as its answer has it.", "imp_01a229ee8d6a5f6b51c30d2e4c7b"),
    "job_id": ("A job's id.", "job_01a229ebd870e061d6765cfb93c8"),
    "key_id": ("A key's id: the 8 digits after `sk-sparke-`.", "0a1b2c3d"),
    "memory_id": ("A memory's id: its latent space, a dot, its name.", "demo.default"),
    "model_id": ("A model's id, as `/v1/models` lists it.", "sparke-demo"),
    "tenant_id": ("A tenant's name.", "northwind"),
    "webhook_id": ("A webhook's id.", "wh_01a229ebd870e061d6765cfb93c8"),
}


def operation_name(route: APIRoute) -> str:
    """The route's own name: the framework's has its path and method in it, as in `show_job_v1_jobs__job_id__get`."""
    return route.name


def describe_path_members(operation: dict[str, Any]) -> None:
    """Adds what each member of the path is, and what one looks like. KeyError for one that is not in the table."""
    for member in operation.get("parameters", []):
        if member["in"] == "path":
            member["description"], member["example"] = _PATH_MEMBERS[member["name"]]
