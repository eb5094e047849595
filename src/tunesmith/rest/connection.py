"""HTTP/1.1 for callers who mean it: a request must have arrived in good time, and what is none is refused as JSON."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.rest.errors import WireError

#: How long the line and the headers of a request may take, from the first byte on or from the connection's beginning.
HEADER_SECONDS = 20.0


class Connection(H11Protocol):
    """One connection. Without this, a caller who sends a byte now and then would keep it for ever."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]  # it is one for reading and writing
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what isn't HTTP, in the form of all other refusals."""
        self._refuse(WireError(400, msg, "invalid_http"))

    def _watch(self) -> None:
        """Be patient as long as a request's headers are missing, but no longer."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_watching()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_watching(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self._refuse(WireError(408, "The request didn't arrive in time.", "request_timeout"))
        else:
            self.transport.close()  # nothing was asked

    def _refuse(self, error: WireError) -> None:
        """Answer with an error and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                **error.all_headers,
            }
            reason = HTTPStatus(error.status).phrase.encode()
            events = (
                h11.Response(status_code=error.status, headers=list(headers.items()), reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
