"""The API as an ASGI application."""

import time
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.http.deps import Deps
from app.http.errors import install_error_handlers
from app.http.guard.heads import HeadMiddleware
from app.http.guard.middleware import RequestMiddleware
from app.http.openapi.document import build_openapi
from app.http.openapi.operation_docs import operation_name
from app.http.routes import (
    admin,
    archives,
    audit,
    batches,
    docs,
    edits,
    files,
    health,
    images,
    jobs,
    memories,
    memory_making,
    models,
    questions,
    references,
    usage,
    webhooks,
)

_DESCRIPTION = (
    "Text to image and edits of images, with a memory: new images are pushed away from the tenant's past images of similar prompts. "
    "The official OpenAI clients work unchanged; members of our own go into `extra_body`."
)


class Api(FastAPI):
    """FastAPI with our own OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The document; built once, at the first call."""
        if self.openapi_schema is None:
            self.openapi_schema = build_openapi(self)
        return self.openapi_schema


def stop_followers(app: FastAPI) -> None:
    """Ends streams of jobs' events, which could last for days. Their clients come back, to another replica."""
    app.state.deps.job_events.stop()


def let_go_of_waiters(app: FastAPI) -> None:
    """Has everybody who waits for a job told that this replica ends, in place of breaking off."""
    app.state.deps.waiter.let_go()


def announce_stop(app: FastAPI) -> None:
    """From now on `/readyz` says that this replica stops, and every answer closes its connection. All is still answered."""
    app.state.is_stopping = True


def create_app(deps: Deps) -> FastAPI:
    """The API over `deps`, which the caller opens before it and closes after it."""
    app = Api(
        title="SPARKE",
        version=version("sparke"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_name,
        # Its spans have queries, signatures of URLs among them, and its logs bodies: RequestMiddleware makes the span.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.deps = deps
    app.state.is_stopping = False
    app.state.started_at_s = deps.now_ms() // 1000
    app.add_middleware(HeadMiddleware)
    app.add_middleware(
        RequestMiddleware,
        metrics=deps.metrics,
        now_s=time.perf_counter,
        randomness=deps.randomness,
        is_tls=(deps.settings.public_url or "").startswith("https://"),
    )
    install_error_handlers(app)
    user_routes = (
        models,
        images,
        edits,
        jobs,
        files,
        batches,
        webhooks,
        archives,
        memories,
        memory_making,
        questions,
        references,
        usage,
    )
    for routes in (health, docs, *user_routes, admin, audit):
        app.include_router(routes.router)
    deps.metrics.begin_routes(_templates(app))
    return app


def _templates(app: FastAPI) -> list[tuple[str, str]]:
    """Each route's template with each of its methods."""
    return [
        (route.path, method)
        for route in iter_route_contexts(app.routes)
        if route.path is not None
        for method in sorted(route.methods or ())
    ]
