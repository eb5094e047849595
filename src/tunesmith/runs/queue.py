"""What doors ask of jobs: submit, cancel, pause, resume. Each call is one change that happens whole.

queue = JobQueue(database)
job = queue.submit(NewJob(...))
queue.cancel(job.id)
"""

from __future__ import annotations

from sqlalchemy import Connection

from tunesmith.record.database import Database
from tunesmith.record.job_events import add_events
from tunesmith.record.jobs import Job, JobStateError, NewJob, create_job, get_job, move_job
from tunesmith.runs import job_words


class JobQueue:
    """The jobs of a record, as doors see them. Threads share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

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


def submit_job(connection: Connection, new: NewJob) -> Job:
    """Add a job in a block of the caller's."""
    job = create_job(connection, new)
    told = [job_words.created(job.id), job_words.validating(new.training_file, new.validation_file)]
    add_events(connection, job.id, told)
    return job
