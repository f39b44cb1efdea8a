"""Server-sent events in the OpenAPI document: the form of each event, and of the JSON in its data."""

from typing import Any

from app.domain.job import JobState
from app.http.bodies.answers import DiversityAnswer, ErrorMember, Usage
from app.http.bodies.job_answers import JobAnswer

_WHOLE = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "contentMediaType": "image/png",
    "description": "The PNG file in base64.",
}
_TYPE = {"description": "The type of the event, as `event` has it."}
_ENDS = [state.value for state in JobState if state.is_terminal]


def _ref(model: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "additionalProperties": False,
    }


def _stream(kinds: list[str], data: dict[str, Any], *, has_ids: bool) -> dict[str, Any]:
    event = {
        "event": {"type": "string", "enum": kinds},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": data,
            "description": "What is told of it, as JSON.",
        },
    }
    given = (
        {"id": {**_TEXT, "description": "What `Last-Event-ID` takes to go on after it."}} if has_ids else {}
    )
    return {"itemSchema": _object(event | given)}


def _image_event(of: str, kind: str, members: dict[str, Any]) -> dict[str, Any]:
    shared = {
        "type": {"const": f"{of}.{kind}", **_TYPE},
        "index": {**_WHOLE, "description": "Which of the images."},
        "b64_json": _BASE64,
        "created_at": _WHOLE,
        "size": _TEXT,
        "background": {"const": "opaque"},
        "output_format": {"const": "png"},
        "quality": {"const": "auto"},
    }
    return _object(shared | members)


def _image_stream(of: str) -> dict[str, Any]:
    shown = {
        "id": _TEXT,
        "seed": {**_WHOLE, "description": "The seed of its noise."},
        "model": _TEXT,
        "memory_version": {**_WHOLE, "description": "The version of the memory that was read."},
        "usage": _ref(Usage),
        "diversity": _ref(DiversityAnswer),
    }
    return _stream(
        [f"{of}.partial_image", f"{of}.completed", "error"],
        {
            "anyOf": [
                _image_event(
                    of,
                    "partial_image",
                    {"partial_image_index": {**_WHOLE, "description": "Which of its previews it is."}},
                ),
                _image_event(of, "completed", shown),
                _object({"error": _ref(ErrorMember)}),
            ]
        },
        has_ids=False,
    )


IMAGE_STREAM = _image_stream("image_generation")
EDIT_STREAM = _image_stream("image_edit")

JOB_STREAM: dict[str, Any] = _stream(
    ["queued", "running", "progress", "preview", "cancel_requested", *_ENDS],
    _object(
        {
            "type": {**_TEXT, **_TYPE},
            "job_id": _TEXT,
            "at_ms": {**_WHOLE, "description": "Unix milliseconds."},
        },
        {
            "step": {**_WHOLE, "description": "How many steps are done."},
            "num_steps": {**_WHOLE, "description": "How many there are."},
            "attempt": {**_WHOLE, "description": "The how manyth worker begins it, from 1."},
            "image": {**_WHOLE, "description": "Which of the images a preview shows."},
            "number": {**_WHOLE, "description": "Which of its previews it is."},
            "b64_json": {
                "anyOf": [_BASE64, {"type": "null"}],
                "description": "The preview's PNG file in base64; null where it is removed already.",
            },
            "job": _ref(JobAnswer),
        },
    ),
    has_ids=True,
)
