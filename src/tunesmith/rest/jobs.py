"""`/v1/fine_tuning/jobs`: create, list, retrieve, cancel, pause, resume, and what happened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request

from tunesmith.errors import RequestError, RunError
from tunesmith.record.database import Database
from tunesmith.record.job_events import JobEvent, list_events
from tunesmith.record.jobs import Job, JobFilter, JobStateError, list_jobs
from tunesmith.record.pages import Listed, Page
from tunesmith.rest.bodies import read_body
from tunesmith.rest.caller import Caller
from tunesmith.rest.chat_schema import STREAM_RESPONSE
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.files import FromCaller, FromPlatform
from tunesmith.rest.intake import in_thread
from tunesmith.rest.job_creation import create_job
from tunesmith.rest.job_request import CreateJob, check_request
from tunesmith.rest.job_stream import JobEventStream
from tunesmith.rest.jobs_lookup import check_job_id, find_job, job_not_found
from tunesmith.rest.jobs_wire import WireJob, WireJobEvent, wire_event, wire_job
from tunesmith.rest.metadata import METADATA_PARAMETER, metadata_filter
from tunesmith.rest.paging import After, Limit, WireList, list_of, page_of
from tunesmith.rest.platform import Platform
from tunesmith.rest.schema import json_body

Stream = Annotated[
    bool,
    Query(description="Whether to follow the job: its events as server-sent events, the oldest first, to its end."),
]

router = APIRouter(prefix="/v1/fine_tuning/jobs")


@router.post("", openapi_extra=json_body(CreateJob))
async def create_fine_tuning_job(http: Request, caller: FromCaller) -> WireJob:
    """Create a job: its files are looked at, then it waits for a worker."""
    request = check_request(await read_body(http, CreateJob))
    return wire_job(await create_job(http, request), caller.organization_id)


@router.get("", openapi_extra={"parameters": [METADATA_PARAMETER]})
async def list_fine_tuning_jobs(
    http: Request, platform: FromPlatform, caller: FromCaller, limit: Limit = 20, after: After = None
) -> WireList[WireJob]:
    """List the jobs of the caller's project, the newest first."""
    asked = metadata_filter(http)
    wanted = JobFilter(caller.project_id, asked.pairs, without_metadata=asked.without)
    find = partial(_listed, platform.database, wanted, page_of(limit, after, "desc"))
    found = await in_thread(platform.keeping_threads, find)
    jobs = [wire_job(job, caller.organization_id) for job in found.items]
    return list_of(jobs, has_more=found.has_more)


@router.get("/{job_id}")
async def retrieve_fine_tuning_job(job_id: str, http: Request, caller: FromCaller) -> WireJob:
    """Show one job."""
    return wire_job(await find_job(http, job_id), caller.organization_id)


@router.post("/{job_id}/cancel")
async def cancel_fine_tuning_job(job_id: str, platform: FromPlatform, caller: FromCaller) -> WireJob:
    """End a job that isn't over yet; at once."""
    return await _changed(platform, platform.queue.cancel, job_id, caller)


@router.post("/{job_id}/pause")
async def pause_fine_tuning_job(job_id: str, platform: FromPlatform, caller: FromCaller) -> WireJob:
    """Stop a running job after its current step, with weights that can be asked."""
    return await _changed(platform, platform.queue.pause, job_id, caller)


@router.post("/{job_id}/resume")
async def resume_fine_tuning_job(job_id: str, platform: FromPlatform, caller: FromCaller) -> WireJob:
    """Let a paused job go on where it stopped."""
    return await _changed(platform, platform.queue.resume, job_id, caller)


@router.get("/{job_id}/events", response_model=WireList[WireJobEvent], responses=STREAM_RESPONSE)
async def list_fine_tuning_events(
    job_id: str, http: Request, platform: FromPlatform, limit: Limit = 20, after: After = None, stream: Stream = False
) -> WireList[WireJobEvent] | JobEventStream:
    """List what happened to a job, the newest first; or follow it, from the first or from behind `after` on."""
    job = await find_job(http, job_id)
    if stream:
        return await _follow(http, platform, job.id, after)
    find = partial(_events, platform.database, job.id, page_of(limit, after, "desc"))
    found = await in_thread(platform.keeping_threads, find)
    return list_of([wire_event(event) for event in found.items], has_more=found.has_more)


async def _follow(http: Request, platform: Platform, job_id: str, after: str | None) -> JobEventStream:
    """Return a job's events as a stream.

    Raises:
        RequestError: there is no event `after`, or what is for lists was asked for.
    """
    if "limit" in http.query_params:
        raise RequestError(
            "'limit' is for lists; a stream has no end but the job's.", code="invalid_value", param="limit"
        )
    # Who reconnects as browsers do says in a header what was seen.
    after = after or http.headers.get("last-event-id")
    if after is not None:
        await in_thread(platform.keeping_threads, partial(_events, platform.database, job_id, Page(1, after)))
    return JobEventStream(platform.database, http.app.state.event_watch, job_id, after)


async def _changed(platform: Platform, change: Callable[..., Job], job_id: str, caller: Caller) -> WireJob:
    """Change a job's state, and return it.

    Raises:
        WireFault: there is no such job, or its state doesn't allow it. That is a 400: clients would repeat a 409.
    """
    check_job_id(job_id)
    try:
        job = await in_thread(platform.keeping_threads, partial(change, job_id, project_id=caller.project_id))
    except JobStateError as error:
        raise WireFault(WireError(400, error.message, "job_state")) from error
    except RunError as error:
        raise WireFault(job_not_found(job_id)) from error
    return wire_job(job, caller.organization_id)


def _listed(database: Database, wanted: JobFilter, page: Page) -> Listed[Job]:
    with database.read() as connection:
        return list_jobs(connection, wanted, page)


def _events(database: Database, job_id: str, page: Page) -> Listed[JobEvent]:
    with database.read() as connection:
        return list_events(connection, job_id, page)
