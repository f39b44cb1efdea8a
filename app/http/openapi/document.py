"""The OpenAPI document: bodies and errors as they are on the wire, and examples that the tests run."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.domain.file import MAX_FILE_TTL_S, MIN_FILE_TTL_S
from app.http.bodies.admin_bodies import KeyBody, QuotasBody, RotateBody
from app.http.bodies.answers import NotReady, Problem
from app.http.bodies.batch_answers import BatchBody
from app.http.bodies.generation_bodies import GenerationBody, JobBody
from app.http.bodies.memory_answers import ForgetBody, ShapeBody
from app.http.bodies.memory_bodies import CreateBody, ForkBody
from app.http.bodies.question_answers import PreviewBody, SearchBody
from app.http.bodies.webhook_answers import WebhookBody
from app.http.error_table import all_codes
from app.http.errors import PROBLEM_JSON
from app.http.openapi.body_docs import SCHEMA_REF, json_body
from app.http.openapi.error_docs import ALLOWANCE_DOCS, EXHAUSTED_DOCS, common_errors
from app.http.openapi.event_docs import IMAGE_STREAM, JOB_STREAM
from app.http.openapi.member_docs import describe_members
from app.http.openapi.operation_docs import describe_path_members

_QUERIES = (
    "\n\nWhat needs a key takes the members of a query that are listed there, each of them once; another is refused with 400 and the"
    " code `unknown_parameter`, as one of a body is. So is a body where there is none, with `invalid_request`."
)
_ERRORS = "\n\nEvery error has the one body `Problem`. Its code is one of {codes}, or a failed job's own."
_REQUEST_ID: dict[str, Any] = {
    "description": "The request's id in the log: the client's own, if it sent a sane one.",
    "required": True,
    "schema": {"type": "string"},
}

GENERATION_EXAMPLES: dict[str, dict[str, Any]] = {
    "plain": {
        "summary": "One image",
        "value": {"prompt": "a red circle on a blue background"},
    },
    "diverse": {
        "summary": "Four images, pushed away from the tenant's past and from each other",
        "value": {
            "prompt": "a star",
            "n": 4,
            "size": "auto",
            "diversity": {"strength": 0.5, "memory": {"name": "campaign"}},
        },
    },
    "untouched": {
        "summary": "The plain model: no push, nothing remembered",
        "value": {
            "prompt": "a green square",
            "seed": 7,
            "diversity": {"strength": 0, "memory": {"read": False, "write": False}},
        },
    },
    "by_url": {
        "summary": "Every other member that shapes an image; the answer holds a signed URL",
        "value": {
            "prompt": "a striped triangle",
            "negative_prompt": "a blue background",
            "response_format": "url",
            "seed": 42,
            "steps": 10,
            "guidance_scale": 4.0,
            "reproducible": True,
            "diversity": {"num_neighbours": 64, "latent_bandwidth": 0.8, "prompt_bandwidth": 0.3},
        },
    },
    "novel": {
        "summary": "Unlike the images of one memory, like those of another; the plain model but for that",
        "value": {
            "prompt": "a red shape",
            "diversity": {
                "strength": 0,
                "novelty": {"reference": "published", "weight": 0.75},
                "context": {"reference": "brand", "weight": 0.5},
            },
        },
    },
    "replay": {
        "summary": "A replay: the seed and memory_version of an earlier answer",
        "value": {"prompt": "a star", "seed": 42, "diversity": {"memory": {"version": 0}}},
    },
}

GENERATION_DOCS: dict[str, Any] = {
    "responses": {
        "200": {"headers": ALLOWANCE_DOCS, "content": {"text/event-stream": IMAGE_STREAM}},
        "429": {"headers": EXHAUSTED_DOCS},
    },
    "requestBody": json_body(GenerationBody, GENERATION_EXAMPLES),
}

JOB_DOCS: dict[str, Any] = {
    "responses": {
        "202": {
            "headers": {
                "Location": {
                    "description": "Where the job is shown.",
                    "required": True,
                    "schema": {"type": "string"},
                },
                **ALLOWANCE_DOCS,
            }
        },
        "429": {"headers": EXHAUSTED_DOCS},
    },
    "requestBody": json_body(
        JobBody,
        {
            "plain": {
                "summary": "Four images, whenever a worker is free within the hour",
                "value": {
                    "prompt": "a star",
                    "n": 4,
                    "deadline_s": 3600,
                    "metadata": {"campaign": "spring"},
                },
            }
        },
    ),
}

EVENTS_DOCS: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "Events `queued`, `running`, `progress`, `preview`, `cancel_requested`, and at the end `succeeded`,"
            " `failed`, `cancelled` or `expired`",
            "content": {"text/event-stream": JOB_STREAM},
        },
        "204": {"description": "The job has ended, and `Last-Event-ID` names its last event"},
    }
}

BATCH_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        BatchBody,
        {
            "plain": {
                "summary": "All lines of an uploaded file",
                "value": {
                    "input_file_id": "file-0199f2c4a7e0a1b2c3d4e5f60718293a4b5c",
                    "endpoint": "/v1/images/generations",
                    "completion_window": "24h",
                    "metadata": {"campaign": "spring"},
                },
            }
        },
    )
}

WEBHOOK_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        WebhookBody,
        {
            "plain": {
                "summary": "Tell this URL how jobs and batches end",
                "value": {"url": "https://example.org/sparke"},
            }
        },
    )
}

IMAGE_DOCS: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "The image",
            "content": {
                media_type: {"schema": {"type": "string", "format": "binary"}}
                for media_type in ("image/png", "image/webp")
            },
        }
    }
}

UPLOAD_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file", "purpose"],
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "minLength": 1,
                            "description": "The file, with its name. Not empty.",
                        },
                        "purpose": {
                            "type": "string",
                            "enum": ["batch"],
                            "description": "What it is for.",
                        },
                        "expires_after[anchor]": {
                            "type": "string",
                            "enum": ["created_at"],
                            "description": "From when `expires_after[seconds]` counts.",
                        },
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_FILE_TTL_S,
                            "maximum": MAX_FILE_TTL_S,
                            "description": "When it goes by itself; the server's own time to live if absent.",
                        },
                    },
                }
            }
        },
    }
}

CONTENT_DOCS: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "The file's bytes",
            "headers": {
                "Content-Disposition": {
                    "description": "The file's name, as a download.",
                    "required": True,
                    "schema": {"type": "string"},
                }
            },
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    }
}

READY_DOCS: dict[str, Any] = {
    "responses": {
        "503": {
            "content": {PROBLEM_JSON: {"schema": {"$ref": SCHEMA_REF.format(model=NotReady.__name__)}}},
        }
    }
}

METRICS_DOCS: dict[str, Any] = {
    "responses": {
        "200": {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
}


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """The document of the app's routes, with the one error body in place of the framework's own."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, schemas = models_json_schema(
        [
            (GenerationBody, "validation"),
            (JobBody, "validation"),
            (BatchBody, "validation"),
            (WebhookBody, "validation"),
            (ForgetBody, "validation"),
            (ShapeBody, "validation"),
            (SearchBody, "validation"),
            (CreateBody, "validation"),
            (ForkBody, "validation"),
            (PreviewBody, "validation"),
            (KeyBody, "validation"),
            (RotateBody, "validation"),
            (QuotasBody, "validation"),
            (Problem, "serialization"),
            (NotReady, "serialization"),
        ],
        ref_template=SCHEMA_REF,
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    document["info"]["description"] += _QUERIES + _ERRORS.format(
        codes=", ".join(f"`{code}`" for code in all_codes())
    )
    components["headers"] = {"RequestId": _REQUEST_ID}
    for path in document["paths"].values():
        for operation in path.values():
            describe_path_members(operation)
            _complete(operation)
    describe_members(document)
    return document


def _complete(operation: dict[str, Any]) -> None:
    """Adds the errors and the header that every operation has, and takes away the framework's own error body."""
    responses = operation["responses"]
    unused = "#/components/schemas/HTTPValidationError"
    if unused in str(responses.get("422")):
        del responses["422"]
    for status, response in common_errors(needs_key="security" in operation).items():
        responses.setdefault(status, response)
    for response in responses.values():
        response.setdefault("headers", {})["x-request-id"] = {"$ref": "#/components/headers/RequestId"}
    operation["responses"] = dict(sorted(responses.items()))
