"""Which scope of an API key each route needs. A test fails on a route that is not here, and on one here that is none."""

from collections.abc import Mapping

from app.domain.scope import Scope

_GENERATE, _READ, _MANAGE, _ADMIN = Scope

NEEDED: Mapping[tuple[str, str], Scope | None] = {
    # Whoever runs the service asks these, and whoever has been given a signed URL the last one: no key.
    ("GET", "/livez"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/docs"): None,
    ("GET", "/docs/show.js"): None,
    ("GET", "/docs/swagger-ui.js"): None,
    ("GET", "/docs/swagger-ui.css"): None,
    ("GET", "/v1/images/{image_id}"): None,
    # Making images, alone and in batches, with the files that takes, and ending what was begun.
    ("POST", "/v1/images/generations"): _GENERATE,
    ("POST", "/v1/images/edits"): _GENERATE,
    ("POST", "/v1/jobs"): _GENERATE,
    ("POST", "/v1/jobs/{job_id}/cancel"): _GENERATE,
    ("POST", "/v1/references"): _GENERATE,
    ("POST", "/v1/files"): _GENERATE,
    ("DELETE", "/v1/files/{file_id}"): _GENERATE,
    ("POST", "/v1/batches"): _GENERATE,
    ("POST", "/v1/batches/{batch_id}/cancel"): _GENERATE,
    # Seeing what there is.
    ("GET", "/v1/models"): _READ,
    ("GET", "/v1/models/{model_id}"): _READ,
    ("GET", "/v1/jobs"): _READ,
    ("GET", "/v1/jobs/{job_id}"): _READ,
    ("GET", "/v1/jobs/{job_id}/events"): _READ,
    ("GET", "/v1/files"): _READ,
    ("GET", "/v1/files/{file_id}"): _READ,
    ("GET", "/v1/files/{file_id}/content"): _READ,
    ("GET", "/v1/batches"): _READ,
    ("GET", "/v1/batches/{batch_id}"): _READ,
    ("GET", "/v1/memories"): _READ,
    ("GET", "/v1/memories/{memory_id}"): _READ,
    ("GET", "/v1/memories/{memory_id}/entries"): _READ,
    ("GET", "/v1/memories/{memory_id}/export"): _READ,
    ("POST", "/v1/memories/{memory_id}/search"): _READ,
    ("POST", "/v1/memories/{memory_id}/preview"): _READ,
    ("GET", "/v1/memories/{memory_id}/stats"): _READ,
    ("GET", "/v1/usage"): _READ,
    # What lasts beyond requests.
    ("POST", "/v1/webhooks"): _MANAGE,
    ("GET", "/v1/webhooks"): _MANAGE,
    ("GET", "/v1/webhooks/{webhook_id}"): _MANAGE,
    ("POST", "/v1/webhooks/{webhook_id}/enable"): _MANAGE,
    ("POST", "/v1/webhooks/{webhook_id}/rotate"): _MANAGE,
    ("DELETE", "/v1/webhooks/{webhook_id}"): _MANAGE,
    ("POST", "/v1/memories"): _MANAGE,
    ("POST", "/v1/memories/{memory_id}/fork"): _MANAGE,
    ("POST", "/v1/memories/{memory_id}/forget"): _MANAGE,
    ("DELETE", "/v1/memories/{memory_id}/entries/{entry}"): _MANAGE,
    ("DELETE", "/v1/memories/{memory_id}"): _MANAGE,
    ("PATCH", "/v1/memories/{memory_id}"): _MANAGE,
    ("POST", "/v1/memories/import"): _MANAGE,
    ("GET", "/v1/memories/import/{import_id}"): _MANAGE,
    # Tenants, all of them.
    ("GET", "/v1/admin/tenants"): _ADMIN,
    ("GET", "/v1/admin/tenants/{tenant_id}"): _ADMIN,
    ("DELETE", "/v1/admin/tenants/{tenant_id}"): _ADMIN,
    ("PUT", "/v1/admin/tenants/{tenant_id}/quotas"): _ADMIN,
    ("GET", "/v1/admin/tenants/{tenant_id}/usage"): _ADMIN,
    ("GET", "/v1/admin/tenants/{tenant_id}/keys"): _ADMIN,
    ("POST", "/v1/admin/tenants/{tenant_id}/keys"): _ADMIN,
    ("POST", "/v1/admin/keys/{key_id}/rotate"): _ADMIN,
    ("DELETE", "/v1/admin/keys/{key_id}"): _ADMIN,
    ("GET", "/v1/admin/audit"): _ADMIN,
}


def scope_of(method: str, path: str) -> Scope:
    """The scope that a route needs which takes a key. A route that declares none is a fault: ValueError, and 500."""
    needed = NEEDED.get((method, path))
    if needed is None:
        raise ValueError(
            f"{method} {path} asks for a key and declares no scope; name it in app/http/guard/scopes.py"
        )
    return needed
