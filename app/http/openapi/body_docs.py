"""A JSON body in the OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

SCHEMA_REF = "#/components/schemas/{model}"


def json_body(model: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """The `requestBody` of an operation whose body is of a model, which the document's components have."""
    schema = {"$ref": SCHEMA_REF.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
