"""The first look at all of an input: how many lines there are, and which have a fault."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from anyio import to_thread

from app.batches.inputs import InputReader
from app.batches.types import LineForms, RawLine
from app.domain.batch import MAX_FAULTS_SHOWN, Batch, BatchLine, LineFault

_LINES_AT_ONCE = 500
DUPLICATE = "duplicate_custom_id"


class LineScanner:
    """Reads lines in order, in a thread. A `custom_id` that an earlier line had is a fault of the later one.

    Holds 16 bytes for each line so far.
    """

    def __init__(self, forms: LineForms, batch: Batch) -> None:
        self._forms = forms
        self._batch = batch
        self._seen: set[bytes] = set()

    async def scan(self, lines: Sequence[RawLine]) -> list[BatchLine]:
        """The lines, each with its request or its fault."""
        return await to_thread.run_sync(self._scan, lines)

    def _scan(self, lines: Sequence[RawLine]) -> list[BatchLine]:
        return [self._check(self._forms.read(self._batch, line)) for line in lines]

    def _check(self, line: BatchLine) -> BatchLine:
        if line.custom_id is None:
            return line
        name = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        if name not in self._seen:
            self._seen.add(name)
            return line
        message = f"custom_id {line.custom_id[:80]!r} is that of an earlier line; give each line its own"
        fault = line.fault or LineFault(DUPLICATE, message, "custom_id", line.number)
        return replace(line, request=None, fault=fault)


@dataclass(slots=True)
class Survey:
    """What is known of an input once it has been read: `failure` where the batch as a whole cannot be done."""

    num_lines: int = 0
    bad_lines: list[int] = field(default_factory=list)
    faults: list[LineFault] = field(default_factory=list)
    failure: LineFault | None = None


async def survey_input(reader: InputReader, scanner: LineScanner, max_lines: int) -> Survey:
    """Reads all of an input. Raises NotFound and StoreUnavailable."""
    survey = Survey()
    while lines := await reader.take(_LINES_AT_ONCE):
        survey.num_lines += len(lines)
        if survey.num_lines > max_lines or reader.next_number > 2 * max_lines + 1:
            survey.failure = LineFault(
                "too_many_lines",
                f"a batch has at most {max_lines} lines, and as many empty ones; divide it among several",
                "input_file_id",
            )
            return survey
        for line in await scanner.scan([raw for raw, _ in lines]):
            if line.fault is not None:
                survey.bad_lines.append(line.number)
                survey.faults += [line.fault][: MAX_FAULTS_SHOWN - len(survey.faults)]
    if not survey.num_lines:
        survey.failure = LineFault("empty_file", "the file has no line that says anything", "input_file_id")
    elif len(survey.bad_lines) == survey.num_lines:
        survey.failure = LineFault(
            "no_valid_line", "every line of the file has a fault; the first ones follow", "input_file_id"
        )
    return survey
