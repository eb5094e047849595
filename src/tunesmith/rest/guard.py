"""What every request passes before any route: who asks, under which name, how much; and what every answer carries."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.errors import TunesmithError
from tunesmith.record.audit import AuditEntry
from tunesmith.record.ids import new_id
from tunesmith.record.logs import request_id as logged_request_id
from tunesmith.rest.caller import Caller
from tunesmith.rest.descriptors import NO_ROOM, is_out_of_descriptors
from tunesmith.rest.errors import INTERNAL, WireError, WireFault, wire_error
from tunesmith.rest.keyring import NOBODY, Keyring, KnownKey
from tunesmith.rest.ledger import Ledger
from tunesmith.rest.limits import Allowance, Buckets
from tunesmith.rest.traffic import Answered, Traffic
from tunesmith.specs.serving import ServeSpec

#: Answers to anybody, for load balancers; they tell nothing but whether the server works.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

#: These compute answers and change nothing, so the audit log holds only their refusals.
_ANSWERING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
#: What is posted there goes to the disk as it arrives; these routes bound it themselves.
_STREAMED_PATHS = re.compile(r"/v1/(files|uploads/[^/]+/parts)")

_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSALS = frozenset({401, 403, 429})
#: Refusals of one address that the audit log takes in a minute: nobody may fill the disk with them.
_AUDITED_REFUSALS_PER_MINUTE = 60
#: Ids as the record gives them, and names of tuned models; anything else in a path may be a key that went astray.
_ID = re.compile(r"(?!sk-)[a-z]{2,12}[-_][0-9A-Za-z]{24,32}|ft:[\w.:/-]{1,200}")

#: How long a body may take to arrive; what is streamed to the disk has bounds of its own.
_BODY_SECONDS = 300.0
#: No answer is a page: whatever is in it, a browser neither guesses at it nor runs it.
_INERT = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; frame-ancestors 'none'"}
#: A body that is too large by this factor isn't read to its end before the answer.
_READ_ON_FACTOR = 4

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Visit:
    """One request on its way."""

    headers: Headers
    address: str
    request_id: str = field(default_factory=lambda: new_id("req_"))
    caller: Caller | None = None
    allowance: Allowance | None = None
    status: int | None = None


class Guard:
    """ASGI middleware: request id, `Host` and `Origin`, key, limits, size of the body, audit, and no trace outside.

    A server without a key trusts everybody on its machine, also web pages in the user's browser. They are kept out by
    the names: a page of another site sends its own `Origin`, and a name that was made to point here sends its own
    `Host` (DNS rebinding).
    """

    # Without a record, neither uses nor changes are noted: such a server only answers.
    def __init__(
        self, app: ASGIApp, spec: ServeSpec, keyring: Keyring, ledger: Ledger | None, traffic: Traffic
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._keyring = keyring
        self._ledger = ledger
        self._hosts = spec.own_hosts
        self._max_bytes = spec.max_body_bytes
        self._requests = Buckets()
        self._audited = Buckets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "There are no sockets here."})
            return
        visit = _Visit(Headers(scope=scope), (scope.get("client") or ("",))[0])
        scope.setdefault("state", {})["request_id"] = visit.request_id
        logged_request_id.set(visit.request_id)
        began = self._traffic.begin()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = visit.request_id
                for name, value in _INERT.items():
                    headers.setdefault(name, value)
                if visit.allowance is not None:
                    headers.update(visit.allowance.headers())
            await send(message)

        try:
            await self._serve(visit, scope, receive, send_marked)
        finally:
            route, targets = _route_of(scope), _targets_of(scope)
            self._traffic.end(Answered(scope["method"], route, visit.status, began, targets, visit.caller))
            self._note(visit, scope, route, targets)

    async def _serve(self, visit: _Visit, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            is_streamed = scope["method"] == "POST" and _STREAMED_PATHS.fullmatch(scope["path"]) is not None
            refusal = await self._refuse(visit, scope)
            if refusal is None:
                refusal = _refuse_path(scope)
            if not is_streamed:
                receive = _patient(receive)
                refusal = refusal or await self._refuse_size(visit.headers, receive)
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                return
            scope["state"].update(caller=visit.caller, allowance=visit.allowance)
            await self._app(scope, receive if is_streamed else self._counted(receive), send)
        except ClientDisconnect:
            return
        except (TunesmithError, WireFault) as error:
            if visit.status is not None:
                raise
            await wire_error(error).response()(scope, receive, send)
        except Exception as error:
            if visit.status is None and is_out_of_descriptors(error):
                _log.warning("no descriptors are left for %s", _route_of(scope))
                await NO_ROOM.response()(scope, receive, send)
                return
            _log.exception("unexpected fault at %s", _route_of(scope))
            if visit.status is not None:
                raise
            await INTERNAL.response()(scope, receive, send)

    async def _refuse(self, visit: _Visit, scope: Scope) -> WireError | None:
        """Find out who asks; return why they aren't let in, or None."""
        refusal = self._traffic.refuse(scope["path"])
        if refusal is not None:
            return refusal
        is_open_path = scope["path"] in OPEN_PATHS
        # Whether a server is alive is answered without asking the record.
        if not (self._keyring.is_closed if is_open_path else await self._keyring.needs_key()):
            visit.caller = NOBODY
            return self._refuse_foreign(visit.headers)
        if is_open_path:
            visit.caller = NOBODY
            return None
        found = await self._keyring.identify(visit.headers.get("authorization", ""), visit.address)
        if isinstance(found, WireError):
            return found
        visit.caller = found.caller
        if self._ledger is not None and found.caller.key_id is not None:
            visit.allowance = Allowance(found.caller.key_id, found.limits, self._requests, self._ledger)
        refusal = _refuse_project(visit.headers, found)
        return refusal if refusal is not None or visit.allowance is None else visit.allowance.refuse()

    def _refuse_foreign(self, headers: Headers) -> WireError | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name(f"//{hosts[0]}") not in self._hosts:
            return WireError(
                403,
                "This server answers under this machine's own names only (127.0.0.1, localhost). Set a key to "
                "serve others, or allow the name with allowed_hosts.",
                "foreign_host",
            )
        if any(_name(origin) not in self._hosts for origin in headers.getlist("origin")):
            return WireError(403, "Web pages of other sites can't use this server without a key.", "foreign_origin")
        return None

    async def _refuse_size(self, headers: Headers, receive: Receive) -> WireError | None:
        """Refuse a body that says it is too large. It is read and thrown away first, so that the caller listens."""
        length = headers.get("content-length", "0")
        size_bytes = int(length) if length.isascii() and length.isdigit() else 0
        if size_bytes <= self._max_bytes:
            return None
        if size_bytes <= self._max_bytes * _READ_ON_FACTOR:
            while (await receive()).get("more_body", False):
                pass
        return self._too_large()

    def _counted(self, receive: Receive) -> Receive:
        """Return `receive` with a bound on the body, for bodies that don't say how long they are."""
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                raise WireFault(self._too_large())
            return message

        return receive_counted

    def _too_large(self) -> WireError:
        return WireError(413, f"The request is larger than {self._max_bytes:,} bytes.", "request_too_large")

    def _note(self, visit: _Visit, scope: Scope, route: str | None, targets: tuple[str, ...]) -> None:
        """Note the use of the key, and what the audit log is there for."""
        if self._ledger is None:
            return
        caller, status = visit.caller, visit.status or 499
        if caller is not None and caller.key_id is not None:
            self._ledger.touch(caller.key_id)
        if status in _REFUSALS:
            if self._audited.take(visit.address, _AUDITED_REFUSALS_PER_MINUTE):
                return
        elif scope["method"] in _READING_METHODS or scope["path"] in _ANSWERING_PATHS:
            return
        self._ledger.note(
            AuditEntry(
                at=int(time.time()),
                key_id=None if caller is None else caller.key_id,
                project_id=None if caller is None else caller.project_id,
                method=scope["method"],
                route=route,
                target=" ".join(targets) or None,
                status=status,
                request_id=visit.request_id,
            )
        )


def _patient(receive: Receive) -> Receive:
    """Return `receive` that gives up on a body which takes too long; what comes behind it may take any time."""
    deadline = asyncio.get_running_loop().time() + _BODY_SECONDS
    is_whole = False

    async def receive_patiently() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise WireFault(WireError(408, "The request didn't arrive in time.", "request_timeout")) from None
        is_whole = not message.get("more_body", False)
        return message

    return receive_patiently


def _refuse_path(scope: Scope) -> WireError | None:
    """Refuse a path that names nothing for certain: the record can't even be asked for a name with NUL in it."""
    if "\0" not in scope["path"]:
        return None
    shown = scope["path"][:200].replace("\0", "\ufffd")
    return WireError(404, f"Invalid URL ({scope['method']} {shown})", "unknown_url")


def _refuse_project(headers: Headers, found: KnownKey) -> WireError | None:
    """Refuse a project that isn't the key's. There is one organisation, so that header changes nothing."""
    asked = headers.get("openai-project")
    own = (found.caller.project_id, found.project_name)
    # Keys that the server was started with belong to nobody's project in particular.
    if asked is None or found.project_name is None or asked in own:
        return None
    return WireError(401, "OpenAI-Project header should match project for API key.", "mismatched_project")


def _route_of(scope: Scope) -> str | None:
    """Return the template of the route that answered, None where none did."""
    found: str | None = getattr(scope.get("route"), "path", None)
    return found


def _targets_of(scope: Scope) -> tuple[str, ...]:
    """Return the ids in a request's path, and nothing else of it."""
    values = [str(value) for value in scope.get("path_params", {}).values()]
    return tuple(value for value in values if _ID.fullmatch(value))


def _name(address: str) -> str | None:
    """Return the host name in an address, in lower case and without port and brackets."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
