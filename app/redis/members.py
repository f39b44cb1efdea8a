"""How a thing of a tenant is named outside the tenant's slot: `<tenant>/<id>`. Neither has a slash."""

from collections.abc import Callable
from typing import TypeVar

from app.domain.ids import TenantId, parse_tenant_id

_T = TypeVar("_T")


def member_of(tenant_id: TenantId, thing_id: str) -> str:
    """The name."""
    return f"{tenant_id}/{thing_id}"


def parse_member(member: bytes, parse_id: Callable[[str], _T]) -> tuple[TenantId, _T]:
    """The tenant and the id that a name holds. Raises InvalidId."""
    tenant_id, _, thing_id = member.decode(errors="replace").partition("/")
    return parse_tenant_id(tenant_id), parse_id(thing_id)
