"""A job that a request names: one of the caller's project, or the same answer as for one that was never there."""

from __future__ import annotations

import re
from functools import partial

from fastapi import Request

from tunesmith.errors import RunError
from tunesmith.record.jobs import Job, get_job
from tunesmith.rest.caller import caller_of
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.intake import in_thread
from tunesmith.rest.platform import Platform, platform_of

_ID = re.compile("ftjob-[0-9A-Za-z]{24}")


async def find_job(http: Request, job_id: str) -> Job:
    """Return the job of an id in the project of a request's caller.

    Raises:
        WireFault: there is none; 404 `fine_tune_not_found`.
    """
    check_job_id(job_id)
    platform = platform_of(http)
    return await in_thread(platform.keeping_threads, partial(_find, platform, caller_of(http).project_id, job_id))


def check_job_id(job_id: str) -> None:
    """Refuse what can't be a job's id, without asking the record.

    Raises:
        WireFault: it can't.
    """
    if not _ID.fullmatch(job_id):
        raise WireFault(job_not_found(job_id))


def job_not_found(job_id: str) -> WireError:
    """Return the error for a job that the caller's project doesn't have."""
    return WireError(404, f"Could not find fine tune: {job_id[:200]}", "fine_tune_not_found", "fine_tune_id")


def _find(platform: Platform, project_id: str, job_id: str) -> Job:
    try:
        with platform.database.read() as connection:
            return get_job(connection, job_id, project_id=project_id)
    except RunError as error:
        raise WireFault(job_not_found(job_id)) from error
