"""The form of an edit in the OpenAPI document: the members of its body under the names that a form has for them."""

from typing import Any

from pydantic import BaseModel

from app.http.forms.edit_form import EditBody
from app.http.forms.form_fields import takes_list
from app.http.member_faults import member_model
from app.http.openapi.error_docs import ALLOWANCE_DOCS, EXHAUSTED_DOCS
from app.http.openapi.event_docs import EDIT_STREAM

_BINARY = {"type": "string", "format": "binary", "minLength": 1}


def flat_members(model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The schema of each field of a form for the model, and which fields need which others."""
    properties: dict[str, Any] = {}
    needs: dict[str, list[str]] = {}
    _add_members(model, "", properties, needs)
    return properties, needs


def _add_members(
    model: type[BaseModel], prefix: str, properties: dict[str, Any], needs: dict[str, list[str]]
) -> None:
    schemas = model.model_json_schema()["properties"]
    names = {name: f"{prefix}[{name}]" if prefix else name for name in model.model_fields}
    required = [names[name] for name, field in model.model_fields.items() if field.is_required()]
    for name, field in model.model_fields.items():
        inner = member_model(field.annotation)
        before = len(properties)
        if inner is None:
            properties[names[name]] = _without_null(schemas[name])
        elif takes_list(field.annotation):
            properties[names[name]] = _json_text(field.description or "")
        else:
            _add_members(inner, names[name], properties, needs)
        for added in list(properties)[before:] if prefix else ():
            others = [other for other in required if other != added]
            if others:
                needs[added] = sorted({*needs.get(added, []), *others})


def _json_text(description: str) -> dict[str, Any]:
    told = f"{description} As JSON, or in fields of their own such as `loras[0][name]`."
    return {"type": "string", "contentMediaType": "application/json", "description": told}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field that is absent is not null but absent."""
    kept = {key: value for key, value in schema.items() if key not in {"anyOf", "default", "title"}}
    (inner,) = [one for one in schema.get("anyOf", [{}]) if one.get("type") != "null"]
    return {**inner, **kept}


def _schema() -> dict[str, Any]:
    properties, needs = flat_members(EditBody)
    files = {
        "image": {
            **_BINARY,
            "description": "The picture to begin with: one PNG, JPEG or WebP file. What is transparent shows white."
            " The field may be called `image[]`.",
        },
        "mask": {
            **_BINARY,
            "description": "Of the image's size. Where it is fully transparent the image is repainted, elsewhere it stays.",
        },
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["image", "prompt"],
        "dependentRequired": needs,
        "properties": files | properties,
    }


EDIT_DOCS: dict[str, Any] = {
    "responses": {
        "200": {"headers": ALLOWANCE_DOCS, "content": {"text/event-stream": EDIT_STREAM}},
        "429": {"headers": EXHAUSTED_DOCS},
    },
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _schema()}}},
}
