"""Names of every Redis key of the audit log. No key carries a tenant's hash tag: a record outlives its tenant."""

from app.domain.audit import Journal


def journal_key(journal: Journal) -> str:
    """Stream of records. Bounded by number and by age; lives `audit_ttl_s` after its last record."""
    return f"sparke:audit:{journal}"
