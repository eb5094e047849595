"""The requests that a server is answering: counted, logged, and no new ones once it is being stopped.

Only the event loop uses it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tunesmith.record.logs import FACTS
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError
from tunesmith.rest.metrics import Metrics

#: Asked again and again by machines; a line is only worth it when something is wrong.
_OFTEN_ASKED = frozenset({"/healthz", "/readyz", "/metrics"})
#: Answered to the end: whether the process lives, and how the stop goes.
_ALWAYS_ANSWERED = _OFTEN_ASKED
#: When another server, or this one after its start, is likely to be there.
_RETRY_SECONDS = 5
_LAG_SECONDS = 0.25

#: What new requests hear while the server is being stopped.
STOPPING = WireError(
    503,
    "The server is being stopped. Try again later.",
    "stopping",
    can_retry=True,
    headers={"retry-after": str(_RETRY_SECONDS), "connection": "close"},
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that is over; `status` is None where the caller left before an answer began."""

    method: str
    route: str | None
    status: int | None
    began: float
    targets: tuple[str, ...] = ()
    caller: Caller | None = None


class Traffic:
    """Counts requests in and out.

    Args:
        metrics: where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.in_flight = 0
        self.is_stopping = False

    def begin(self) -> float:
        """Count a request that has come; return when that was."""
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        return time.perf_counter()

    def end(self, answered: Answered) -> None:
        """Count and log a request that is over."""
        self.in_flight -= 1
        self.metrics.in_flight.set(self.in_flight)
        seconds = time.perf_counter() - answered.began
        status = answered.status or 499
        self.metrics.count(answered.method, answered.route, status, seconds)
        level = logging.INFO if status < 500 else logging.WARNING
        if level == logging.INFO and answered.route in _OFTEN_ASKED:
            return
        if not _log.isEnabledFor(level):
            return
        route = answered.route or "an unknown route"
        who = answered.caller
        facts = {
            "method": answered.method,
            "route": answered.route,
            "status": status,
            "seconds": round(seconds, 4),
            **({"targets": list(answered.targets)} if answered.targets else {}),
            **({"key_id": who.key_id, "project_id": who.project_id} if who is not None and who.key_id else {}),
        }
        _log.log(level, "%s %s %s in %.3f s", answered.method[:20], route, status, seconds, extra={FACTS: facts})

    def refuse(self, path: str) -> WireError | None:
        """Return why a new request isn't answered any more, None as long as the server isn't being stopped."""
        if not self.is_stopping or path in _ALWAYS_ANSWERED:
            return None
        return STOPPING


@asynccontextmanager
async def watch_lag(traffic: Traffic) -> AsyncIterator[None]:
    """Measure how late the event loop comes, until the block ends."""
    task = asyncio.create_task(_measure_lag(traffic.metrics))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _measure_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_SECONDS
        await asyncio.sleep(_LAG_SECONDS)
        metrics.lag.observe(max(0.0, loop.time() - due))
