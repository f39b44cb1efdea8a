"""Reading a JSON body: bounded in size and depth, strict in form, with every fault named."""

import asyncio
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from app.http.bodies.body import read_body, too_slow
from app.http.deps import deps_of
from app.http.member_faults import faults_of

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model], *, max_bytes: int) -> Model:
    """The request's body as a `model`.

    Raises:
        HTTPException: 408 where it does not come in time, 413 above `max_bytes`, 415 for a content type other than JSON,
            and for one that is compressed.
        RequestValidationError: no JSON (also NaN, lone surrogates, over 200 levels), or members at fault.
    """
    _check_content_type(request.headers.get("content-type", ""))
    body = await _read_bounded(request, max_bytes)
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body",), "msg": f"the body is not valid JSON: {error}"}]
        ) from error
    if not isinstance(value, dict):
        raise RequestValidationError(
            [{"type": "object_type", "loc": ("body",), "msg": "the body must be a JSON object"}]
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(faults_of(error, model)) from error


def _check_content_type(header: str) -> None:
    kind = header.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HTTPException(415, f"expected content-type application/json, got {kind[:80] or 'none'}")


async def _read_bounded(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise HTTPException(413, f"a body has at most {max_bytes} bytes")
    timeout_s = deps_of(request).settings.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            chunks = read_body(request, max_bytes=max_bytes, idle_timeout_s=timeout_s)
            return b"".join([chunk async for chunk in chunks])
    except TimeoutError as error:
        raise too_slow(f"a body of JSON must have come within {timeout_s:g} s") from error
