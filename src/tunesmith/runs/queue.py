"""What doors ask of jobs: submit, cancel, pause, resume, follow. Each call is one change that happens whole.

queue = JobQueue(database)
job = queue.submit(NewJob(...))
for event in queue.follow(job.id): ...
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from sqlalchemy import Connection

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.database_errors import PASSING_CODES
from tunesmith.record.job_events import JobEvent, add_events, events_after, newest_event_seq
from tunesmith.record.jobs import Job, JobStateError, NewJob, create_job, get_job, move_job
from tunesmith.runs import job_words

#: How often all followers of a process together ask the database whether anything has happened.
_LOOK_SECONDS = 0.25
_EVENTS_AT_ONCE = 500


class JobQueue:
    """The jobs of a record, as doors see them. Threads share one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.news = EventNews(database)

    def submit(self, new: NewJob) -> Job:
        """Add a job; a worker takes it from here."""
        with self._database.write() as connection:
            return submit_job(connection, new)

    def cancel(self, job_id: str, *, project_id: str | None = None) -> Job:
        """End a job at once: nothing that its attempt still does counts.

        Raises:
            RunError: there is no such job (`job_not_found`), or it is over (`JobStateError`).
        """
        with self._database.write() as connection:
            job = get_job(connection, job_id, project_id=project_id)
            job = move_job(connection, job, "cancelled", "cancelled")
            add_events(connection, job.id, [job_words.cancelled()])
            return job

    def pause(self, job_id: str, *, project_id: str | None = None) -> Job:
        """Stop a running job after its current step, with weights that can be asked and gone on from.

        Raises:
            RunError: there is no such job, or it isn't running (`JobStateError`).
        """
        with self._database.write() as connection:
            job = get_job(connection, job_id, project_id=project_id)
            job = move_job(connection, job, "pausing", "paused")
            add_events(connection, job.id, [job_words.pausing()])
            return job

    def resume(self, job_id: str, *, project_id: str | None = None) -> Job:
        """Let a paused job go on.

        Raises:
            RunError: there is no such job, or it isn't paused (`JobStateError`).
        """
        with self._database.write() as connection:
            job = get_job(connection, job_id, project_id=project_id)
            if job.state not in ("paused", "pausing"):
                raise JobStateError(job.id, job.state, "resumed")
            # One that is still stopping is queued again by its worker, as it isn't pausing any more.
            job = move_job(connection, job, "running" if job.state == "pausing" else "queued", "resumed")
            add_events(connection, job.id, [job_words.unpaused()])
            return job

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Yield the events of a job, each once and in order, until it is over and all is told.

        Args:
            job_id: whose.
            after: the `seq` of the last event that is known already.

        Raises:
            RunError: there is no such job.
        """
        while True:
            seen = self.news.latest
            with self._database.read() as connection:
                is_over = get_job(connection, job_id).is_over
                found = events_after(connection, job_id, after, limit=_EVENTS_AT_ONCE)
            for event in found:
                after = event.seq
                yield event
            if len(found) == _EVENTS_AT_ONCE:
                continue
            if is_over:
                return
            self.news.wait(seen)


def submit_job(connection: Connection, new: NewJob) -> Job:
    """Add a job in a block of the caller's."""
    job = create_job(connection, new)
    told = [job_words.created(job.id), job_words.validating(new.training_file, new.validation_file)]
    add_events(connection, job.id, told)
    return job


class EventNews:
    """Whether anything was told since: one question to the database for all who wait, and none while nobody does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = threading.Condition()
        self._looks = 0
        self._is_looking = False
        #: Grows when something is told.
        self.latest = 0

    def wait(self, seen: int, timeout_seconds: float = 30.0) -> int:
        """Wait until `latest` is another than `seen`, at most so long; return it."""
        until = time.monotonic() + timeout_seconds
        with self._changed:
            while self.latest == seen and (left := until - time.monotonic()) > 0:
                if self._is_looking:
                    self._changed.wait(left)
                else:
                    self._look(left)
            return self.latest

    def _look(self, seconds: float) -> None:
        """Ask the database for all who wait, after a pause; whoever waits first does it. The lock is held outside."""
        self._is_looking = True
        self._changed.release()
        found = None
        try:
            time.sleep(min(seconds, _LOOK_SECONDS))
            with self._database.read() as connection:
                found = newest_event_seq(connection)
        except StorageError as error:
            # The next look may find it back.
            if error.code not in PASSING_CODES:
                raise
        finally:
            self._changed.acquire()
            self._is_looking = False
            if found is not None:
                self.latest = found
            self._changed.notify_all()
