"""What `/v1/admin` takes, and the documentation of it."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.domain.quota import MAX_QUOTA, MAX_REQUESTS_PER_MINUTE, QuotaOverrides
from app.domain.scope import Scope
from app.http.bodies.generation_bodies import WireModel
from app.tenants.keys import DEFAULT_GRACE_S, MAX_GRACE_S, MAX_KEY_LIFE_S, MAX_NAME_CHARS

ScopeName = Annotated[str, Field(json_schema_extra={"enum": [scope.value for scope in Scope]})]
_Life = Annotated[int | None, Field(ge=1, le=MAX_KEY_LIFE_S)]


class KeyBody(WireModel):
    """A new key."""

    name: str | None = Field(
        default=None,
        max_length=MAX_NAME_CHARS,
        description="What to know it by.",
        json_schema_extra={"pattern": "^[ -~]*$"},
    )
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=len(Scope))] | None = Field(
        default=None, description="What it may be used for; absent: everything but `admin`."
    )
    expires_in_s: _Life = Field(default=None, description="How long it works; absent: for ever.")


class RotateBody(WireModel):
    """A key in place of another."""

    grace_s: int | None = Field(
        default=None,
        ge=0,
        le=MAX_GRACE_S,
        description=f"How long the old key goes on to work (default {DEFAULT_GRACE_S}).",
    )
    expires_in_s: _Life = Field(
        default=None, description="How long the new one works; absent: as long as the old one was to."
    )


class QuotasBody(WireModel):
    """What one tenant may use. What is absent or null is the service's default; a very large number is no bound."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=MAX_REQUESTS_PER_MINUTE)
    images_per_day: int | None = Field(default=None, ge=0, le=MAX_QUOTA)
    max_waiting_jobs: int | None = Field(default=None, ge=1, le=MAX_QUOTA)
    max_memory_entries: int | None = Field(default=None, ge=0, le=MAX_QUOTA)
    max_stored_bytes: int | None = Field(default=None, ge=0, le=MAX_QUOTA)

    def overrides(self) -> QuotaOverrides:
        """The same as a value of the service."""
        return QuotaOverrides(
            requests_per_minute=self.requests_per_minute,
            images_per_day=self.images_per_day,
            max_waiting_jobs=self.max_waiting_jobs,
            max_memory_entries=self.max_memory_entries,
            max_stored_bytes=self.max_stored_bytes,
        )


def body_docs(kind: type[BaseModel], summary: str, value: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its own body."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    examples = {"plain": {"summary": summary, "value": value}}
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


KEY_DOCS = body_docs(
    KeyBody,
    "A key for a program that only looks, for 90 days",
    {"name": "dashboard", "scopes": ["read"], "expires_in_s": 7_776_000},
)
ROTATE_DOCS = body_docs(RotateBody, "The old key works for an hour still", {"grace_s": 3600})
QUOTAS_DOCS = body_docs(
    QuotasBody,
    "Ten requests a second, 5,000 images a day; all else as for everybody",
    {"requests_per_minute": 600, "images_per_day": 5000},
)
