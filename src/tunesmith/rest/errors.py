"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, always all four."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tunesmith.errors import RequestError, TunesmithError

#: What a caller who was refused for the moment should wait.
_RETRY_SECONDS = 2

#: Statuses of refusals that pass on their own; any other refusal is the request's fault.
_PASSING = {"overloaded": 429, "stopping": 503}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WireError:
    """An error as it goes out. Clients repeat 429 and 5xx on their own unless they are told that it can't help."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    can_retry: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The envelope."""
        kind = "invalid_request_error"
        if self.status >= 500:
            kind = "server_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers, with word on whether to try again."""
        retry = {} if self.can_retry else {"x-should-retry": "false"}
        return {**self.headers, **retry}

    def response(self) -> JSONResponse:
        """Return it as a response."""
        return JSONResponse(self.body, self.status, headers=self.all_headers)

    def event(self) -> bytes:
        """Return it as an event of a stream that has begun."""
        return b"data: " + json.dumps(self.body).encode() + b"\n\n"


class WireFault(Exception):
    """Carries a `WireError` from where it is found to where it is answered."""

    def __init__(self, error: WireError) -> None:
        super().__init__(error.message)
        self.error = error


INTERNAL = WireError(500, "The server had an error while processing your request.", "internal_error", can_retry=True)


def wire_error(error: Exception) -> WireError:
    """Return what a caller is told. Paths and traces stay in the server's log."""
    if isinstance(error, WireFault):
        return error.error
    if isinstance(error, RequestError):
        message = f"{error.message} {error.fix or ''}".strip()
        status = _PASSING.get(error.code or "")
        if status is not None:
            return WireError(status, message, error.code, can_retry=True, headers={"retry-after": str(_RETRY_SECONDS)})
        return WireError(400, message, error.code, error.param)
    if isinstance(error, TunesmithError) and error.code == "answer_failed":
        return WireError(500, error.message, error.code, can_retry=True)
    _log.error("unexpected fault", exc_info=error)
    return INTERNAL


def model_not_found(name: str) -> WireError:
    """Return the error for a model that isn't on offer."""
    return WireError(
        404, f"The model `{name[:200]}` does not exist or you do not have access to it.", "model_not_found", "model"
    )


def model_unavailable(name: str) -> WireError:
    """Return the error for a model that is on offer but can't be loaded; why is in the server's log."""
    return WireError(
        500, f"The model `{name[:200]}` can't be loaded; the server's log says why.", "model_unavailable", "model"
    )


async def tell_error(_: Request, error: Exception) -> JSONResponse:
    """Answer with one of our errors."""
    return wire_error(error).response()


async def tell_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error of the framework's: no such route, not this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"Invalid URL ({request.method} {request.url.path[:200]})"
        return WireError(404, message, "unknown_url").response()
    headers = dict(error.headers or {})
    if error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path[:200]}."
        return WireError(405, message, "method_not_allowed", headers=headers).response()
    return WireError(error.status_code, str(error.detail), headers=headers).response()


async def tell_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer with a parameter of path or query that the framework refuses."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    param = ".".join(str(step) for step in found["loc"][1:]) or None
    return WireError(400, f"Invalid '{param}': {found['msg']}.", "invalid_value", param).response()
