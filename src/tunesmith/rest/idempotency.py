"""`Idempotency-Key`: a request that creates something, sent again after its answer was lost, creates nothing more.

The first request with a key is carried out; others with the same key wait for it and get its answer. A refused request
leaves nothing, so its key may be used again. Keys belong to one API key and one route, and are kept for a day.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from contextlib import suppress
from functools import partial

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.errors import StorageError
from tunesmith.record.idempotency import CLAIM_SECONDS, Claim, Idempotency, KeptAnswer, claim_key
from tunesmith.record.ids import new_id
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError, WireFault, wire_error
from tunesmith.rest.intake import FORM_BYTES, SILENCE_SECONDS, in_thread, too_large
from tunesmith.rest.platform import Platform

#: Routes below these create what lasts. Elsewhere the header means nothing: answers of models aren't kept.
_PATHS = ("/v1/files", "/v1/uploads", "/v1/fine_tuning", "/v1/webhook_endpoints", "/v1/evals")
_MOST_CHARACTERS = 255
#: How long a request waits for the one before it.
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1
_RENEW_SECONDS = CLAIM_SECONDS / 4
#: Longer answers aren't kept; what creates something answers with one object.
_MOST_KEPT_BYTES = 1 << 20
_BOUNDARY = re.compile(r'boundary="?([^";]+)', re.IGNORECASE)

_log = logging.getLogger(__name__)


class IdempotencyKeys:
    """ASGI middleware behind the guard."""

    def __init__(self, app: ASGIApp, platform: Platform) -> None:
        self._app = app
        self._record = Idempotency(platform.database)
        self._threads = platform.keeping_threads
        self._most_bytes = platform.spec.max_file_bytes + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry a request out, or answer it as before."""
        key = _key_of(scope)
        if key is None:
            await self._app(scope, receive, send)
        elif not key or len(key) > _MOST_CHARACTERS:
            await _bad_key().response()(scope, receive, send)
        else:
            await self._once(key, scope, receive, send)

    async def _once(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope["state"]["caller"]
        name = claim_key(caller.key_id or "", scope["method"], scope["path"], key)
        body = _HashedBody(receive, Headers(scope=scope).get("content-type", ""), self._most_bytes)
        try:
            claimed = await self._claim(caller.project_id, name)
            if isinstance(claimed, Claim):
                await self._carry_out(claimed, body, scope, send)
                return
        except StorageError as error:
            await wire_error(error).response()(scope, receive, send)
            return
        # Read to its end in any case, so that the caller listens.
        await body.drain()
        answer = _in_progress() if claimed is None else _again(claimed, body.sha256)
        await answer(scope, receive, send)

    async def _claim(self, project_id: str, name: str) -> Claim | KeptAnswer | None:
        """Claim the key, or wait for the request that has it."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            claimed = await in_thread(self._threads, partial(self._record.claim, project_id, name))
            if claimed is not None or time.monotonic() > give_up:
                return claimed
            await asyncio.sleep(_POLL_SECONDS)

    async def _carry_out(self, claim: Claim, body: _HashedBody, scope: Scope, send: Send) -> None:
        scope["state"]["claim"] = claim
        answer = _Recorded(send)
        renewing = asyncio.create_task(self._renew(claim))
        try:
            await self._app(scope, body.receive, answer.send)
            if answer.is_worth_keeping:
                await body.drain()
        except BaseException:
            await in_thread(self._threads, partial(self._record.release, claim))
            raise
        finally:
            renewing.cancel()
        await in_thread(self._threads, partial(self._settle, claim, answer, body.sha256))
        await answer.pass_on()

    def _settle(self, claim: Claim, answer: _Recorded, request_sha256: str) -> None:
        """Keep the answer, or give the key free."""
        try:
            if answer.is_worth_keeping:
                self._record.finish(claim, answer.kept(request_sha256))
            else:
                self._record.release(claim)
        except StorageError as error:
            # The request was carried out and its caller hears so; a repetition finds the object by its id.
            _log.warning("the answer to an Idempotency-Key isn't kept: %s", error.message)

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            # The next renewal comes before the claim is over.
            with suppress(StorageError):
                await in_thread(self._threads, partial(self._record.renew, claim))


def id_for(request: Request, prefix: str) -> str:
    """Return the id of a new object: with an Idempotency-Key it is the same when the request is repeated.

    Where a process died behind the creation, the repetition finds an object of this id: that is then the answer.
    """
    claim: Claim | None = getattr(request.state, "claim", None)
    return new_id(prefix) if claim is None else claim.id_for(prefix)


class _HashedBody:
    """A request's body that is hashed as it is read. The boundary of a form counts as nothing: clients draw it anew."""

    def __init__(self, receive: Receive, content_type: str, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._read_bytes = 0
        self._hash = hashlib.sha256()
        found = _BOUNDARY.search(content_type)
        self._boundary = found[1].encode("latin-1") if found else b""
        self._held = b""
        self._has_ended = False

    async def receive(self) -> Message:
        """Receive the next message."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._read_bytes += len(message.get("body", b""))
            self._add(message.get("body", b""))
        if not message.get("more_body", False):
            self._has_ended = True
        return message

    async def drain(self) -> None:
        """Read what nobody has read, which no route bounds.

        Raises:
            WireFault: it is larger than anything that is taken, or stopped arriving.
        """
        while not self._has_ended:
            if self._read_bytes > self._most_bytes:
                raise WireFault(too_large(self._most_bytes))
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self.receive()
            except TimeoutError:
                raise WireFault(WireError(408, "The request stopped arriving.", "request_timeout")) from None

    @property
    def sha256(self) -> str:
        """The hash of all that was read."""
        whole = self._hash.copy()
        whole.update(self._held)
        return whole.hexdigest()

    def _add(self, content: bytes) -> None:
        if self._boundary:
            content = (self._held + content).replace(self._boundary, b"")
            # The end may be the beginning of a boundary.
            keep = min(len(content), len(self._boundary) - 1)
            content, self._held = content[: len(content) - keep], content[len(content) - keep :]
        self._hash.update(content)


class _Recorded:
    """An answer on its way: one that may be kept is held back until it is, so that nobody gets one that is lost."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._body = b""
        self._is_held = True

    async def send(self, message: Message) -> None:
        """Take the next message of the answer."""
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self._is_held = 200 <= message["status"] < 300 and kind.startswith("application/json")
        if not self._is_held:
            await self._send(message)
            return
        self._held.append(message)
        self._body += message.get("body", b"")
        if len(self._body) > _MOST_KEPT_BYTES:
            self._is_held = False
            await self.pass_on()

    @property
    def is_worth_keeping(self) -> bool:
        """Whether the request was carried out and its whole answer is held."""
        return self._is_held and bool(self._held)

    def kept(self, request_sha256: str) -> KeptAnswer:
        """Return the answer as it is kept."""
        start = self._held[0]
        kind = Headers(raw=start["headers"]).get("content-type", "")
        return KeptAnswer(request_sha256, start["status"], kind, self._body.decode())

    async def pass_on(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, []
        for message in held:
            await self._send(message)


def _key_of(scope: Scope) -> str | None:
    """Return the key that a request carries, or None for one that needs none."""
    if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(_PATHS):
        return None
    return Headers(scope=scope).get("idempotency-key")


def _bad_key() -> WireError:
    return WireError(
        400,
        f"Invalid 'Idempotency-Key': expected 1 to {_MOST_CHARACTERS} characters.",
        "invalid_idempotency_key",
        "Idempotency-Key",
    )


def _in_progress() -> Response:
    return WireError(
        503,
        "A request with this Idempotency-Key is still being carried out.",
        "idempotency_in_progress",
        can_retry=True,
        headers={"retry-after": "5"},
    ).response()


def _again(kept: KeptAnswer, request_sha256: str) -> Response:
    if kept.request_sha256 != request_sha256:
        return WireError(
            409,
            "This Idempotency-Key was used for another request. Take a new key for each new request.",
            "idempotency_key_reused",
            "Idempotency-Key",
        ).response()
    response = Response(kept.body, kept.status)
    MutableHeaders(raw=response.raw_headers).update({"content-type": kept.content_type, "idempotent-replayed": "true"})
    return response
