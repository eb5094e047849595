"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, always all four."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from tunesmith.errors import RequestError, StorageError, TunesmithError
from tunesmith.rest.invalid import invalid_value

#: What a caller who was refused for the moment should wait.
_RETRY_SECONDS = 2

#: Statuses of refusals that pass on their own; any other refusal is the request's fault.
_PASSING = {"overloaded": 429, "stopping": 503}

#: What becomes of a request when the record or the disk fails: status and message. The rest is in the server's log.
_STORAGE = {
    "busy": (503, "The server is busy: too many requests want to change something at once."),
    "unavailable": (503, "The server can't reach its database at the moment."),
    "disk_full": (507, "The server has no space left to store this."),
    "uncertain": (
        503,
        "The server lost its database while it stored this; look whether it is there before you repeat it.",
    ),
}
#: Where a repetition by itself helps. One after `uncertain` might do everything twice.
_STORAGE_PASSING = frozenset({"busy", "unavailable"})

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
    if isinstance(error, StorageError):
        return _storage_error(error)
    if isinstance(error, TunesmithError) and error.code == "answer_failed":
        return WireError(500, error.message, error.code, can_retry=True)
    _log.error("unexpected fault", exc_info=error)
    return INTERNAL


def _storage_error(error: StorageError) -> WireError:
    """Return what a caller is told about a record or a disk that fails."""
    if error.code not in _STORAGE:
        _log.error("the record or the disk failed: %s", error, exc_info=error)
        return INTERNAL
    _log.warning("a request was refused: %s", error.message)
    status, message = _STORAGE[error.code]
    if error.code in _STORAGE_PASSING:
        return WireError(status, message, error.code, can_retry=True, headers={"retry-after": str(_RETRY_SECONDS)})
    return WireError(status, message, error.code)


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
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(sorted(methods_at(request.app.routes, request.scope)))
        message = f"Not allowed to {request.method} on {request.url.path[:200]}."
        return WireError(405, message, "method_not_allowed", headers=headers).response()
    return WireError(error.status_code, str(error.detail), headers=headers).response()


async def tell_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer with a parameter of path or query that the framework refuses."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    # The first step says whether it is in the path, the query or the body.
    finding = ErrorDetails(
        type=found["type"],
        loc=tuple(found["loc"][1:]),
        msg=found["msg"],
        input=found["input"],
        ctx=found.get("ctx", {}),
    )
    return wire_error(invalid_value(finding)).response()


def methods_at(routes: Sequence[BaseRoute], scope: Scope) -> set[str]:
    """Return the methods that any route takes at a request's path."""
    found = [route for route in iter_route_contexts(routes) if route.matches(scope)[0] is not Match.NONE]
    return {method for route in found for method in route.methods or ()}
