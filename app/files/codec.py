"""JSON of a file's record. A value that does not fit the schema is CorruptRecord."""

from pydantic import TypeAdapter

from app.domain.file import StoredFile
from app.redis.records import decode

_FILE = TypeAdapter(StoredFile)


def encode_file(file: StoredFile) -> bytes:
    """The record's JSON."""
    return _FILE.dump_json(file)


def decode_file(data: bytes, *, where: str) -> StoredFile:
    """The record of some JSON. `where` begins the message of CorruptRecord."""
    return decode(_FILE, data, where=where)
