"""The bodies of requests about memories in the OpenAPI document, each with examples."""

from typing import Any

from app.http.bodies.memory_answers import ForgetBody, ShapeBody
from app.http.bodies.memory_bodies import CreateBody, ForkBody
from app.http.bodies.question_answers import PreviewBody, SearchBody
from app.http.openapi.body_docs import json_body

FORGET_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        ForgetBody,
        {
            "versions": {"summary": "Two entries", "value": {"versions": [3, 17]}},
            "before": {"summary": "All from before a time", "value": {"before": 1700000000}},
            "like": {
                "summary": "All of nearly one prompt",
                "value": {"like": {"prompt": "a red star", "min_similarity": 0.95}},
            },
            "all": {"summary": "Everything", "value": {"all": True}},
            "everywhere": {
                "summary": "An image, in forks and all other memories of yours too",
                "value": {"images": ["job_0199f2c4a7e0a1b2c3d4e5f60718-0"], "everywhere": True},
            },
        },
    )
}

SHAPE_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        ShapeBody,
        {
            "caps": {
                "summary": "A thousand images, none older than thirty days",
                "value": {"max_entries": 1000, "max_age_s": 2_592_000},
            },
            "frozen": {"summary": "Nothing new", "value": {"frozen": True}},
            "prompts": {"summary": "Entries with their prompts", "value": {"keep_prompts": True}},
            "name": {"summary": "Another name", "value": {"name": "spring-2027"}},
        },
    )
}

SEARCH_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        SearchBody,
        {
            "plain": {"summary": "The ten nearest", "value": {"prompt": "a star"}},
            "near": {
                "summary": "Up to a hundred that are near",
                "value": {"prompt": "a star", "limit": 100, "min_similarity": 0.8},
            },
        },
    )
}

PREVIEW_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        PreviewBody,
        {
            "plain": {"summary": "At the model's default strength", "value": {"prompt": "a star"}},
            "strong": {
                "summary": "At full strength, by 64 entries, as the memory was at a version",
                "value": {
                    "prompt": "a star",
                    "limit": 5,
                    "diversity": {"strength": 1, "num_neighbours": 64, "memory": {"version": 0}},
                },
            },
        },
    )
}

CREATE_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        CreateBody,
        {
            "plain": {"summary": "For the first model", "value": {"name": "autumn"}},
            "told": {
                "summary": "The last thousand images, with their prompts",
                "value": {"name": "winter", "max_entries": 1000, "keep_prompts": True},
            },
        },
    )
}
FORK_DOCS: dict[str, Any] = {
    "requestBody": json_body(
        ForkBody,
        {
            "now": {"summary": "All that it holds", "value": {"name": "trial"}},
            "then": {"summary": "As it was", "value": {"name": "before", "version": 1}},
        },
    )
}
