"""JSON of batches and faults, and the record's hash. A value that does not fit the schema is CorruptRecord."""

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from app.domain.batch import Batch, BatchRecord, BatchState, Cursor, LineCounts, LineFault, RefusedLine
from app.domain.ids import FileId
from app.errors import CorruptRecord
from app.redis.records import decode

REACHED = "at:"  # field `at:<state>` of the hash: when the batch came into it

_BATCH: TypeAdapter[Batch] = TypeAdapter(Batch)
_FAULT: TypeAdapter[LineFault | None] = TypeAdapter(LineFault | None)
_REFUSED: TypeAdapter[RefusedLine] = TypeAdapter(RefusedLine)
_FAULTS: TypeAdapter[tuple[LineFault, ...]] = TypeAdapter(tuple[LineFault, ...])


def encode_batch(batch: Batch) -> bytes:
    """The JSON of what never changes."""
    return _BATCH.dump_json(batch)


def encode_faults(faults: tuple[LineFault, ...]) -> bytes:
    """The faults' JSON."""
    return _FAULTS.dump_json(faults)


def encode_held_up(fault: LineFault | None) -> bytes:
    """The JSON of what holds lines up, `null` where nothing does."""
    return _FAULT.dump_json(fault)


def encode_refused(line: RefusedLine) -> bytes:
    """The JSON of a refusal."""
    return _REFUSED.dump_json(line)


def decode_refused(value: bytes, *, where: str) -> RefusedLine:
    """The refusal of its JSON. `where` begins the message of CorruptRecord."""
    return decode(_REFUSED, value, where=where)


def decode_record(found: Mapping[bytes, bytes], *, where: str) -> BatchRecord:
    """The record of a batch's hash. `where` begins the message of CorruptRecord."""
    texts = {name.decode(errors="replace"): value for name, value in found.items()}
    try:
        return BatchRecord(
            batch=_BATCH.validate_json(texts["batch"]),
            state=BatchState(texts["state"].decode()),
            reached_at_ms={
                BatchState(name.removeprefix(REACHED)): int(value)
                for name, value in texts.items()
                if name.startswith(REACHED)
            },
            counts=_counts(texts),
            faults=_FAULTS.validate_json(texts.get("faults", b"[]")),
            cursor=Cursor(int(texts.get("next_line", b"1")), int(texts.get("next_byte", b"0"))),
            held_up=_FAULT.validate_json(texts.get("held_up", b"null")),
            outcome=BatchState(texts["outcome"].decode()) if "outcome" in texts else None,
            output_file_id=_maybe_file(texts.get("output_file_id")),
            error_file_id=_maybe_file(texts.get("error_file_id")),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptRecord(f"{where}: {place}: {first['msg']}") from error
    except (KeyError, ValueError) as error:
        raise CorruptRecord(f"{where}: {error!r}") from error


def _counts(texts: Mapping[str, bytes]) -> LineCounts | None:
    if "total" not in texts:
        return None
    return LineCounts(int(texts["total"]), int(texts.get("completed", b"0")), int(texts.get("failed", b"0")))


def _maybe_file(text: bytes | None) -> FileId | None:
    return FileId(text.decode()) if text else None
