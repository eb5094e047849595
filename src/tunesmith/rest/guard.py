"""What every request passes before any route: who asks, under which name, how much; and what every answer carries."""

from __future__ import annotations

import hmac
import logging
import re
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.rest.errors import INTERNAL, WireError, WireFault
from tunesmith.specs.serving import ServeSpec

#: Answers to anybody, for load balancers; it tells nothing.
OPEN_PATHS = frozenset({"/healthz"})

#: What is posted there goes to the disk as it arrives; these routes bound it themselves.
_STREAMED_PATHS = re.compile(r"/v1/(files|uploads/[^/]+/parts)")

#: A body that is too large by this factor isn't read to its end before the answer.
_READ_ON_FACTOR = 4

_log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware: request id, `Host` and `Origin`, key, size of the body, and no trace to the outside.

    A server without a key trusts everybody on its machine, also web pages in the user's browser. They are kept out by
    the names: a page of another site sends its own `Origin`, and a name that was made to point here sends its own
    `Host` (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, spec: ServeSpec) -> None:
        self._app = app
        self._keys = [key.get_secret_value().encode() for key in spec.api_keys]
        self._hosts = spec.own_hosts
        self._max_bytes = spec.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_marked(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)["x-request-id"] = f"req_{uuid.uuid4().hex}"
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refuse(scope["path"], headers)
        is_streamed = scope["method"] == "POST" and _STREAMED_PATHS.fullmatch(scope["path"]) is not None
        if refusal is None and not is_streamed:
            refusal = await self._refuse_size(headers, receive)
        if refusal is not None:
            await refusal.response()(scope, receive, send_marked)
            return
        try:
            await self._app(scope, receive if is_streamed else self._counted(receive), send_marked)
        except Exception:
            _log.exception("unexpected fault at %s", scope["path"])
            if has_begun:
                raise
            await INTERNAL.response()(scope, receive, send_marked)

    def _refuse(self, path: str, headers: Headers) -> WireError | None:
        """Return why a caller isn't let in, or None."""
        if not self._keys:
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
        if path in OPEN_PATHS or self._is_known(headers.get("authorization", "")):
            return None
        message = "Incorrect API key provided." if "authorization" in headers else (
            "You didn't provide an API key. Send it as a header: Authorization: Bearer YOUR_KEY."
        )  # fmt: skip
        return WireError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _is_known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("latin-1")
        # Every key is compared, in constant time: the time of the answer says nothing about them.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(matches)

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


def _name(address: str) -> str | None:
    """Return the host name in an address, in lower case and without port and brackets."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
