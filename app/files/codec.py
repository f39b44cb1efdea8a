"""JSON of a file's record. A value that does not fit the schema is CorruptRecord."""

from pydantic import TypeAdapter, ValidationError

from app.domain.file import StoredFile
from app.errors import CorruptRecord

_FILE = TypeAdapter(StoredFile)


def encode_file(file: StoredFile) -> bytes:
    """The record's JSON."""
    return _FILE.dump_json(file)


def decode_file(data: bytes, *, where: str) -> StoredFile:
    """The record of some JSON. `where` begins the message of CorruptRecord."""
    try:
        return _FILE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptRecord(f"{where}: {place}: {first['msg']}") from error
