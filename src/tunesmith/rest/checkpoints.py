"""`GET /v1/fine_tuning/jobs/{id}/checkpoints`: the models that a job has made so far."""

from __future__ import annotations

from functools import partial
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from tunesmith.record.database import Database
from tunesmith.record.job_events import JobCheckpoint, list_checkpoints
from tunesmith.record.pages import Listed, Page
from tunesmith.rest.files import FromPlatform
from tunesmith.rest.intake import in_thread
from tunesmith.rest.jobs_lookup import find_job
from tunesmith.rest.paging import After, Limit, WireList, WireObject, list_of, page_of

router = APIRouter(prefix="/v1/fine_tuning/jobs")


class WireMetrics(BaseModel):
    """The figures of a checkpoint's step; those that weren't measured are left out."""

    model_config = ConfigDict(extra="allow")

    step: float


class WireCheckpoint(WireObject):
    """A checkpoint on the wire; `fine_tuned_model_checkpoint` is the name of a model that answers."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: WireMetrics


@router.get("/{job_id}/checkpoints")
async def list_fine_tuning_checkpoints(
    job_id: str, http: Request, platform: FromPlatform, limit: Limit = 10, after: After = None
) -> WireList[WireCheckpoint]:
    """List a job's checkpoints, that of the highest step first; the result is one of them."""
    job = await find_job(http, job_id)
    find = partial(_listed, platform.database, job.id, page_of(limit, after, "desc"))
    found = await in_thread(platform.keeping_threads, find)
    return list_of([_wire_checkpoint(one) for one in found.items], has_more=found.has_more)


def _wire_checkpoint(checkpoint: JobCheckpoint) -> WireCheckpoint:
    return WireCheckpoint(
        id=checkpoint.id,
        created_at=checkpoint.created_at,
        fine_tuned_model_checkpoint=checkpoint.model,
        fine_tuning_job_id=checkpoint.job_id,
        step_number=checkpoint.step,
        metrics=WireMetrics(**{"step": checkpoint.step, **checkpoint.metrics}),
    )


def _listed(database: Database, job_id: str, page: Page) -> Listed[JobCheckpoint]:
    with database.read() as connection:
        return list_checkpoints(connection, job_id, page)
