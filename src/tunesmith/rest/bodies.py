"""Bodies of requests: JSON, strictly read, and refused in OpenAI's words.

The policy on fields that nobody knows is one for all routes: they are refused (`unknown_parameter`), because a setting
that is silently dropped is worse than an error.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.errors import RequestError
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.invalid import invalid_value

_Body = TypeVar("_Body", bound=BaseModel)


async def read_body(http: Request, model: type[_Body]) -> _Body:
    """Return a request's body as a pydantic model, which should have `extra="forbid"` and be strict.

    Raises:
        WireFault: the body doesn't say that it is JSON.
        RequestError: it isn't JSON, lacks a field, or holds one that is wrong or unknown.
    """
    check_content_type(http)
    try:
        return model.model_validate(read_object(await http.body()))
    except ValidationError as error:
        raise invalid_value(error.errors()[0]) from error


def check_content_type(http: Request) -> None:
    """Refuse a body that doesn't say that it is JSON.

    Raises:
        WireFault: it says something else, or nothing.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WireFault(
            WireError(
                415,
                f"Unsupported content type: '{kind[:100]}'. Send the header Content-Type: application/json.",
                "unsupported_content_type",
            )
        )
    if "content-encoding" in http.headers:
        raise WireFault(
            WireError(
                415, "Bodies are read as they are. Send this one without Content-Encoding.", "unsupported_encoding"
            )
        )


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises:
        RequestError: it isn't one.
    """
    try:
        values = parse_json(body)
    except JsonFault as fault:
        raise RequestError(
            f"We could not parse the JSON body of your request. {fault.message}", code=fault.code
        ) from fault
    if not isinstance(values, dict):
        raise RequestError("The body of this request must be a JSON object.", code="invalid_type")
    return values
