"""What becomes of a job whose attempt ended without having ended the job."""

from __future__ import annotations

import signal
import time

from sqlalchemy import Connection

from tunesmith.record.job_events import add_events
from tunesmith.record.job_leases import Lease, is_as_seen
from tunesmith.record.jobs import HELD, Job, change_job, get_job, move_job
from tunesmith.runs import job_words
from tunesmith.runs.exit_codes import INTERRUPTED, OUT_OF_MEMORY

#: Attempts without progress, after which a job has failed.
MOST_ATTEMPTS = 3
#: How long the next attempt waits, after one and after two failures.
WAIT_SECONDS = (2, 10)
_KILLED = 128 + signal.SIGKILL


def conclude(connection: Connection, job_id: str, fence: int, exit_code: int, *, was_stopped: bool) -> Job:
    """Decide what becomes of a job after its attempt's process has ended, and return it.

    Nothing happens to one that has ended, or that another attempt has by now.
    """
    job = get_job(connection, job_id)
    if job.fence != fence or job.state not in HELD:
        return job
    if was_stopped or exit_code == INTERRUPTED:
        return give_back(connection, job)
    if job.state == "pausing":
        return _pause(connection, job)
    if job.attempts < MOST_ATTEMPTS:
        wait = WAIT_SECONDS[min(job.attempts, len(WAIT_SECONDS)) - 1]
        add_events(connection, job.id, [job_words.trying_again(wait)])
        return _wait_again(connection, job, not_before=int(time.time()) + wait)
    if exit_code in (OUT_OF_MEMORY, _KILLED):
        code, message = "out_of_memory", "The machine had no memory left for this job."
    else:
        code, message = "attempts_failed", f"{MOST_ATTEMPTS} attempts in a row ended unexpectedly."
    add_events(connection, job.id, [job_words.failed(message)])
    return move_job(connection, job, "failed", "failed", error={"code": code, "message": message, "param": None})


def give_back(connection: Connection, job: Job) -> Job:
    """Let a job wait again, or pause, through no fault of its own."""
    if job.state == "pausing":
        return _pause(connection, job)
    return _wait_again(connection, job, attempts=max(0, job.attempts - 1), not_before=0)


def take_back(connection: Connection, lease: Lease) -> Job | None:
    """Take a job from an owner who is gone, unless a sign of life came meanwhile."""
    if not is_as_seen(connection, lease):
        return None
    return give_back(connection, get_job(connection, lease.job_id))


def _pause(connection: Connection, job: Job) -> Job:
    add_events(connection, job.id, [job_words.paused()])
    return move_job(connection, job, "paused", "paused", attempts=0)


def _wait_again(connection: Connection, job: Job, **changes: int) -> Job:
    """Let a job wait for the next worker, in the state that it was taken from."""
    if job.state == "validating_files":
        return change_job(connection, job.id, lease_owner=None, fence=job.fence + 1, **changes)
    return move_job(connection, job, "queued", "queued", estimated_finish=None, **changes)
