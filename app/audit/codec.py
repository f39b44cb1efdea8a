"""Records of the audit log as they lie in a stream: JSON in one field, and the token of the write."""

from collections.abc import Mapping

from pydantic import TypeAdapter

from app.domain.audit import AuditRecord
from app.redis.records import decode

RECORD_FIELD = b"record"

_RECORD = TypeAdapter(AuditRecord)


def encode_record(record: AuditRecord) -> bytes:
    """JSON of a record."""
    return _RECORD.dump_json(record, exclude_none=True)


def decode_record(fields: Mapping[bytes, bytes]) -> AuditRecord:
    """The record of a stream's entry. Raises CorruptRecord."""
    return decode(_RECORD, fields.get(RECORD_FIELD, b""), where="a record of the audit log")
