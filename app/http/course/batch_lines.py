"""Lines of batches on the wire: what one may ask for, and what is answered to it, in the shape of the OpenAI API."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import from_json, to_json

from app.batches.keys import line_seed_bytes
from app.batches.types import LineAnswer, RawLine
from app.domain.batch import ENDPOINT, MAX_CUSTOM_ID_CHARS, Batch, BatchLine, LineFault
from app.domain.ids import JobId
from app.domain.job import JobRecord
from app.domain.request import GenerationRequest
from app.domain.result import Failure
from app.errors import InvalidValue, ServiceError
from app.http.bodies import showing
from app.http.bodies.generation import find_model, to_request
from app.http.bodies.generation_bodies import GenerationBody, WireModel
from app.http.deps import Deps
from app.http.error_table import code_of
from app.http.errors import describe_problem
from app.http.member_faults import explain_members, faults_of

CustomId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)]


class LineEnvelope(WireModel):
    """A line of the input, but for its body."""

    custom_id: CustomId = Field(description="A name of your own, one for each line.")
    method: Literal["POST"]
    url: Literal["/v1/images/generations"] = Field(description="The endpoint of the batch.")


@dataclass(frozen=True, slots=True)
class WireForms:
    """The forms of lines, over the catalogue, the settings and the signer of an API process."""

    deps: Deps

    def read(self, batch: Batch, raw: RawLine) -> BatchLine:
        """The request of a line, or its fault. A seed that it does not name follows from batch and line."""
        if raw.data is None:
            message = f"a line has at most {self.deps.settings.max_body_bytes} bytes"
            return _bad(raw, None, Failure("request_too_large", message))
        try:
            value = from_json(raw.data, allow_inf_nan=False)
        except ValueError as error:
            return _bad(raw, None, Failure("invalid_json", f"the line is not valid JSON: {error}"))
        custom_id = _custom_id_of(value)
        try:
            body = _open_envelope(value)
        except (ValidationError, ServiceError) as error:
            return _bad(raw, custom_id, _explain(error))
        try:
            return BatchLine(raw.number, custom_id, self._to_request(batch, raw.number, body))
        except (ValidationError, ServiceError) as error:
            told = _explain(error)
            return _bad(raw, custom_id, replace(told, param=f"body.{told.param}" if told.param else "body"))

    def _to_request(self, batch: Batch, line: int, members: dict[str, Any]) -> GenerationRequest:
        if members.get("stream") is True:
            raise InvalidValue(
                "stream must be false in a batch: nobody listens; leave it out, or say false", param="stream"
            )
        body = GenerationBody.model_validate(members)
        if body.response_format == "b64_json":
            raise InvalidValue(
                "response_format must be 'url' in a batch: its answers are URLs; leave it out, or say 'url'",
                param="response_format",
            )
        spec = find_model(body.model, self.deps.catalogue)
        return to_request(body, spec, partial(line_seed_bytes, batch, line))

    def answer(self, batch: Batch, line: BatchLine, record: JobRecord, *, expires_at_s: int) -> LineAnswer:
        """The answer that `ENDPOINT` would have given, or its error."""
        job_id = record.job.job_id
        request_id = f"req_{_digits(job_id)}"
        clock_at_expiry = replace(self.deps, now_ms=lambda: expires_at_s * 1000)
        try:
            shown = showing.show_by_url(record, clock_at_expiry, base_url=batch.base_url, ttl_s=0)
        except ServiceError as error:
            status, body = describe_problem(error, request_id)
            is_error = True
        else:
            status, body = 200, from_json(showing.to_json(shown))
            is_error = False
        response = {"status_code": status, "request_id": request_id, "body": body}
        return _line(job_id, is_error, custom_id=line.custom_id, response=response, error=None)

    def refuse(self, line: BatchLine, fault: LineFault, job_id: JobId) -> LineAnswer:
        """A line without a response. Beside the API's members it has the line's number."""
        error = {"code": fault.code, "message": fault.message, "param": fault.param}
        return _line(job_id, True, custom_id=line.custom_id, response=None, error=error, line=line.number)


def _custom_id_of(value: object) -> str | None:
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and 1 <= len(found) <= MAX_CUSTOM_ID_CHARS else None


def _open_envelope(value: object) -> dict[str, Any]:
    """The body of a line. Raises ValidationError, and InvalidValue where there is none."""
    if not isinstance(value, dict):
        raise InvalidValue(
            f"a line must be a JSON object with custom_id, method 'POST', url '{ENDPOINT}' and body"
        )
    body = value.pop("body", None)
    LineEnvelope.model_validate(value)
    if not isinstance(body, dict):
        raise InvalidValue(f"body: expected an object, as {ENDPOINT} takes it", param="body")
    return body


def _explain(error: ValidationError | ServiceError) -> Failure:
    if isinstance(error, ServiceError):
        return Failure(code_of(error), error.message, error.param)
    model = LineEnvelope if error.title == LineEnvelope.__name__ else GenerationBody
    return explain_members(faults_of(error, model))


def _bad(raw: RawLine, custom_id: str | None, told: Failure) -> BatchLine:
    fault = LineFault(told.code, told.message, told.param, raw.number)
    return BatchLine(raw.number, custom_id, fault=fault)


def _line(job_id: JobId, is_error: bool, **members: object) -> LineAnswer:  # noqa: FBT001 - its second half
    return LineAnswer(to_json({"id": f"batch_req_{_digits(job_id)}", **members}) + b"\n", is_error)


def _digits(job_id: JobId) -> str:
    return job_id.removeprefix("job_")
