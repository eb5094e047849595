"""For those who run the server: is it alive, is it ready, what has it done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import func, select

from tunesmith.errors import TunesmithError
from tunesmith.record.database import Database
from tunesmith.record.store import Store
from tunesmith.record.tables import deliveries, jobs
from tunesmith.record.workers import WorkerWatch
from tunesmith.rest.errors import WireError
from tunesmith.rest.intake import in_thread
from tunesmith.rest.metrics import CONTENT_TYPE, RecordFigures
from tunesmith.rest.platform import Platform
from tunesmith.rest.traffic import Traffic
from tunesmith.runs.process_identity import ProcessIdentity

router = APIRouter()

#: What was found out is good for so long: anybody may ask, and looking costs something.
_BELIEVED_SECONDS = 1.0
#: What takes longer to answer isn't there.
_PATIENCE_SECONDS = 4.0
_RETRY_SECONDS = 2


class Readiness:
    """Looks whether everything that a server needs is there.

    Args:
        database: the record.
        store: the files.
        threads: where it looks. A record that hangs keeps the looks that wait for it too, and nobody else's threads.
    """

    def __init__(self, database: Database, store: Store, threads: ThreadPoolExecutor) -> None:
        self._database = database
        self._store = store
        self._threads = threads
        self._watch = WorkerWatch(_is_gone)
        self._found: dict[str, str] = {}
        self._found_at: float | None = None
        self._looking: asyncio.Task[dict[str, str]] | None = None

    async def look(self) -> dict[str, str]:
        """Return what isn't ready, in words, by its name; nothing: the server is ready."""
        if self._found_at is not None and time.monotonic() - self._found_at < _BELIEVED_SECONDS:
            return self._found
        # Many who ask at once ask once.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> dict[str, str]:
        parts = {"database": self._database.check, "store": self._store.check_usable}
        said = await asyncio.gather(*(self._said(look) for look in parts.values()))
        self._found = {name: words for name, words in zip(parts, said, strict=True) if words}
        if "database" not in self._found:
            words = await self._said(self._look_at_workers)
            if words:
                self._found["workers"] = words
        self._found_at = time.monotonic()
        return self._found

    async def _said(self, look: Callable[[], None]) -> str | None:
        """Return what a look says is wrong, None when nothing is."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await in_thread(self._threads, look)
        except TunesmithError as error:
            return error.message
        except TimeoutError:
            return "It doesn't answer in time."
        return None

    def _look_at_workers(self) -> None:
        with self._database.read() as connection:
            if self._watch.count(connection) == 0:
                raise TunesmithError("No worker is there for fine-tuning jobs; start one: tunesmith worker.")


class RecordAsker:
    """Asks the record for what Prometheus is told."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watch = WorkerWatch(_is_gone)

    def __call__(self) -> RecordFigures | None:
        """Return the figures of this moment, None when the record can't be read."""
        try:
            with self._database.read() as connection:
                by_state = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
                oldest = connection.scalar(select(func.min(jobs.c.created_at)).where(jobs.c.state == "queued"))
                # Those that arrived are many, and nobody's worry.
                unsettled = (
                    select(deliveries.c.state, func.count())
                    .where(deliveries.c.state.in_(("pending", "failed")))
                    .group_by(deliveries.c.state)
                )
                by_delivery = connection.execute(unsettled).all()
                workers = self._watch.count(connection)
        except TunesmithError:
            return None
        return RecordFigures(
            jobs={str(state): int(count) for state, count in by_state},
            oldest_queued_seconds=max(0.0, time.time() - oldest) if oldest else 0.0,
            workers=workers,
            deliveries={str(state): int(count) for state, count in by_delivery},
        )


@router.get("/healthz")
async def health() -> dict[str, str]:
    """Say that the process lives and its event loop turns."""
    return {"status": "ok"}


@router.get("/readyz", response_model=dict[str, str])
async def ready(http: Request) -> Response:
    """Say whether requests can be answered, and what is missing."""
    traffic: Traffic = http.app.state.traffic
    readiness: Readiness | None = http.app.state.readiness
    missing = {"server": "It is being stopped."} if traffic.is_stopping else {}
    if not missing and readiness is not None:
        missing = await readiness.look()
    if not missing:
        return JSONResponse({"status": "ready"})
    words = " ".join(f"{name}: {said}" for name, said in missing.items())
    headers = {"retry-after": str(_RETRY_SECONDS)}
    error = WireError(503, f"Not ready. {words}", "not_ready", can_retry=True, headers=headers)
    body = {**error.body, "status": "not ready", "missing": missing}
    return JSONResponse(body, error.status, headers=error.all_headers)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(http: Request) -> Response:
    """Tell Prometheus what was counted; a key of the server is needed where one is."""
    traffic: Traffic = http.app.state.traffic
    platform: Platform | None = http.app.state.platform
    # None: the event loop's own threads, for there is no record to wait for.
    threads = None if platform is None else platform.looking_threads
    return Response(await in_thread(threads, traffic.metrics.page), media_type=CONTENT_TYPE)


def _is_gone(owner: str) -> bool:
    process = ProcessIdentity.parse(owner)
    return process is not None and process.is_certainly_gone()
