"""The events of a job while it works: `GET /v1/fine_tuning/jobs/{id}/events?stream=true`, as server-sent events.

Each event comes once and in order, with its id, so that who lost the connection goes on behind the last one seen. The
stream ends with the job. However many follow, one question is asked for all of them, and none while nobody does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from fastapi.responses import StreamingResponse

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.job_events import JobEvent, list_events, newest_event_seq
from tunesmith.record.jobs import get_job
from tunesmith.record.pages import Listed, Page
from tunesmith.rest.errors import wire_error
from tunesmith.rest.jobs_wire import wire_event
from tunesmith.rest.session import KEEP_ALIVE
from tunesmith.rest.traffic import STOPPING, Traffic

#: How often the database is asked whether any job has told anything.
_LOOK_SECONDS = 0.25
#: After so long without an event a comment is sent, lest somebody between takes the connection for dead.
_QUIET_SECONDS = 15.0
_EVENTS_AT_ONCE = 200
_DONE = b"data: [DONE]\n\n"


class EventWatch:
    """Wakes the streams of a server when a job has told something. Only the event loop uses it.

    Args:
        database: where events are written, by workers too.
        traffic: says when the server is being stopped; that ends all streams.
    """

    def __init__(self, database: Database, traffic: Traffic) -> None:
        self._database = database
        self._traffic = traffic
        self._followers = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def news(self) -> asyncio.Event:
        """What is set once something is told after this moment, or the server is being stopped."""
        return self._news

    @property
    def is_stopping(self) -> bool:
        """Whether streams should end."""
        return self._traffic.is_stopping

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Watch until the block ends."""
        self._followers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._followers -= 1

    async def _watch(self) -> None:
        seen = None
        try:
            while self._followers:
                newest = await self._newest(seen)
                if newest != seen or self.is_stopping:
                    seen = newest
                    news, self._news = self._news, asyncio.Event()
                    news.set()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._task = None

    async def _newest(self, seen: int | None) -> int | None:
        """Return the place of the newest event; `seen` while the record can't be asked."""
        with suppress(StorageError):
            return await asyncio.to_thread(self._ask)
        return seen

    def _ask(self) -> int:
        with self._database.read() as connection:
            return newest_event_seq(connection)


class JobEventStream(StreamingResponse):
    """The events of one job, from behind one that is known on.

    Args:
        database: where they are.
        watch: says when to look for more.
        job_id: whose they are.
        after: the id of the last event that is known; None begins with the first.
    """

    def __init__(self, database: Database, watch: EventWatch, job_id: str, after: str | None) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)
        self._database = database
        self._watch = watch
        self._job_id = job_id
        self._after = after

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            with self._watch.followed():
                while True:
                    news = self._watch.news
                    found, is_over = await asyncio.to_thread(self._read)
                    for event in found.items:
                        self._after = event.id
                        yield _sent(event)
                    if found.has_more:
                        continue
                    if is_over:
                        yield _DONE
                        return
                    if self._watch.is_stopping:
                        yield STOPPING.event()
                        return
                    if not await _is_set(news):
                        yield KEEP_ALIVE
        # The status is out already; clients raise this event as an error, and may come again.
        except Exception as error:
            yield wire_error(error).event()

    def _read(self) -> tuple[Listed[JobEvent], bool]:
        """Return further events, and whether the job is over and tells nothing more."""
        with self._database.read() as connection:
            is_over = get_job(connection, self._job_id).is_over
            page = Page(_EVENTS_AT_ONCE, self._after, is_descending=False)
            return list_events(connection, self._job_id, page), is_over


def _sent(event: JobEvent) -> bytes:
    return f"id: {event.id}\ndata: {wire_event(event).model_dump_json()}\n\n".encode()


async def _is_set(news: asyncio.Event) -> bool:
    """Wait for news, and return whether they came in time."""
    with suppress(TimeoutError):
        await asyncio.wait_for(news.wait(), _QUIET_SECONDS)
    return news.is_set()
