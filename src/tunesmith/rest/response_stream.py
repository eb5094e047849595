"""A response as a stream of typed events, numbered from 0."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tunesmith.rest.errors import wire_error
from tunesmith.rest.response_output import Answer, Head
from tunesmith.rest.session import KEEP_ALIVE, Session, SessionStream

#: Stores a finished response before its caller hears that it is finished.
Keep = Callable[[dict[str, Any]], Awaitable[None]]


class ResponseStream(SessionStream):
    """The events of one response.

    Args:
        session: what is being answered.
        head: what is known of the response already.
        answer: takes in what comes.
        keep: stores the response.
    """

    def __init__(self, session: Session, head: Head, answer: Answer, keep: Keep) -> None:
        super().__init__(session, self._events())
        self._session = session
        self._head = head
        self._answer = answer
        self._keep = keep
        self._number = 0

    async def _events(self) -> AsyncIterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event({"type": kind, "response": self._head.response("in_progress")})
        try:
            async for step in self._session.steps():
                if step is None:
                    yield KEEP_ALIVE
                    continue
                for event in self._answer.add(step):
                    yield self._event(event)
            response = self._head.finished(self._answer)
            await self._keep(response)
        # The status is out already; this event says what became of the answer.
        except Exception as error:
            why = {"code": "server_error", "message": wire_error(error).message}
            failed = self._head.response("failed", self._answer, why)
            yield self._event({"type": "response.failed", "response": failed})
            return
        yield self._event({"type": f"response.{response['status']}", "response": response})

    def _event(self, event: dict[str, Any]) -> bytes:
        """Return an event with its number, as it goes out."""
        kind: str = event["type"]
        numbered = {"type": kind, "sequence_number": self._number, **event}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + json.dumps(numbered).encode() + b"\n\n"
