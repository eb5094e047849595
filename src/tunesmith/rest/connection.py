"""HTTP/1.1 for callers who mean it: a request must have arrived in good time, and what is none is refused as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.rest.descriptors import NO_ROOM
from tunesmith.rest.errors import WireError

#: How long the line and the headers of a request may take, from the first byte on or from the connection's beginning.
HEADER_SECONDS = 20.0
#: How long one of too many connections is kept, to hear what is asked and to be heard.
_SURPLUS_SECONDS = 3.0
#: So many of too many are kept at a time; further ones are closed at once.
_MOST_SURPLUS = 4
#: How much of a body, and for how long, is heard and forgotten once its request was answered. Many clients listen only
#: when they have said all, so an honest one gets to its end; nobody goes on for ever.
REST_BYTES = 2**30
REST_SECONDS = 30.0
#: Where each byte may cost (a chunk of a body may be one byte long), as much is read at once as takes about so long.
_PIECE_BYTES = range(512, 65_537)
_PIECE_SECONDS = 0.005

_log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """One connection. Without this, a caller who sends a byte now and then would keep it for ever.

    Args:
        most: how many connections there may be; whoever comes beyond that is told so and let go.
        given: what uvicorn gives a protocol.
    """

    _patience: asyncio.TimerHandle | None = None
    #: Runs while the rest of an answered request's body arrives.
    _rest: asyncio.TimerHandle | None = None
    _rest_bytes = 0
    _is_reading = False
    _is_surplus = False
    _is_refused = False

    def __init__(self, *, most: int, **given: Any) -> None:
        super().__init__(**given)
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._unread = bytearray()
        self._piece_bytes = 4096
        super().connection_made(transport)  # type: ignore[arg-type]  # it is one for reading and writing
        surplus = len(self.connections) - self._most
        if surplus > _MOST_SURPLUS:
            self.transport.abort()
        elif surplus > 0:
            self._is_surplus = True
            self._patience = self.loop.call_later(_SURPLUS_SECONDS, self.transport.abort)
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        if self._is_surplus:
            self._turn_away()
            return
        if self._rest is not None:
            self._rest_bytes += len(data)
            if self._rest_bytes > REST_BYTES:
                self.transport.close()
                return
        self._unread += data
        if not self._is_reading:
            self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._unread.clear()
        self._stop_watching()
        self._end_rest()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Be patient with what is still to come of a body that the answer didn't wait for, but no longer."""
        if self._is_in_rest and not self.transport.is_closing():
            self._rest = self.loop.call_later(REST_SECONDS, self.transport.close)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what isn't HTTP, in the form of all other refusals."""
        self._refuse(WireError(400, msg, "invalid_http"))

    def _read_on(self) -> None:
        """Read the next piece, and let others have the event loop before the one after it."""
        is_costly = self._is_costly
        count = self._piece_bytes if is_costly else len(self._unread)
        piece = bytes(self._unread[:count])
        del self._unread[:count]
        began = self.loop.time()
        super().data_received(piece)
        if is_costly and len(piece) == count:
            is_slow = self.loop.time() - began > _PIECE_SECONDS
            self._piece_bytes = min(max(count // 2 if is_slow else count * 2, _PIECE_BYTES[0]), _PIECE_BYTES[-1])
        self._watch()
        if self._unread and not self.transport.is_closing():
            self._is_reading = True
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)
            return
        self._unread.clear()
        if self._is_reading:
            self._is_reading = False
            if not (self.flow.read_paused or self.transport.is_closing()):
                self.transport.resume_reading()

    @property
    def _is_costly(self) -> bool:
        """Whether few bytes may be many events: in a body in chunks, or before it is known what comes."""
        if not self._is_in_rest:
            return True
        return any(name == b"transfer-encoding" for name, _ in self.headers)

    def _watch(self) -> None:
        """Be patient as long as a request's headers are missing, but no longer."""
        if not self._is_in_rest:
            self._end_rest()
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_watching()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_watching(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    @property
    def _is_in_rest(self) -> bool:
        """Whether a request was answered whose body isn't whole yet."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _end_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            self._rest_bytes = 0

    def _give_up(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self._refuse(WireError(408, "The request didn't arrive in time.", "request_timeout"))
        else:
            self.transport.close()  # nothing was asked

    def _turn_away(self) -> None:
        """Answer one of too many. What else it sends is heard and forgotten, lest the answer is lost on its way."""
        if self._is_refused:
            return
        self._is_refused = True
        _log.warning("one of too many connections was refused: there are %d", len(self.connections))
        self._say(NO_ROOM)
        self.transport.write_eof()

    def _refuse(self, error: WireError) -> None:
        """Answer with an error and end the connection."""
        self._say(error)
        self.transport.close()

    def _say(self, error: WireError) -> None:
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
