"""Jobs and their events as they go out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tunesmith.models.resolve import short_name
from tunesmith.record.job_events import JobEvent
from tunesmith.record.jobs import Job, State
from tunesmith.rest.paging import WireObject

WireState = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]


class WireJobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class WireJobSettings(BaseModel):
    """What this server adds: the base that the model's name means here, the job's place in line, its own settings."""

    base: str
    priority: int
    settings: dict[str, Any]


class WireJob(WireObject):
    """A fine-tuning job on the wire."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: WireState
    hyperparameters: dict[str, Any] | None
    method: dict[str, Any]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: WireJobError | None
    seed: int
    estimated_finish: int | None
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    usage_metrics: None = None
    shared_with_openai: Literal[False] = False
    tunesmith: WireJobSettings


class WireJobEvent(WireObject):
    """An event of a job on the wire."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: str
    data: dict[str, Any] | None


def wire_job(job: Job, organization_id: str) -> WireJob:
    """Return a job as it goes out."""
    return WireJob(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        model=job.model,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=organization_id,
        status=wire_state(job.state),
        hyperparameters=job.hyperparameters,
        method=job.method,
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files or [],
        trained_tokens=job.trained_tokens,
        error=None if job.error is None else WireJobError(**job.error),
        seed=job.seed,
        estimated_finish=job.estimated_finish,
        integrations=[_with_run_id(one, job.id) for one in job.integrations or ()],
        metadata=job.metadata,
        user_provided_suffix=job.suffix,
        tunesmith=WireJobSettings(base=base_name(job.base), priority=job.priority, settings=job.spec),
    )


def wire_event(event: JobEvent) -> WireJobEvent:
    """Return an event as it goes out."""
    return WireJobEvent(
        id=event.id,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )


def wire_state(state: State) -> WireState:
    """Return a state as users see it: one that is being paused is paused for them, as the service says it."""
    return "paused" if state == "pausing" else state


def _with_run_id(integration: Mapping[str, Any], job_id: str) -> dict[str, Any]:
    """Return an integration with the id under which its program knows the job's run, which is the job's own."""
    kind = str(integration["type"])
    return {**integration, kind: {**integration[kind], "run_id": job_id}}


def base_name(source: str) -> str:
    """Return what a base is called, without this machine's folders and without a revision."""
    path = Path(source)
    if path.is_absolute():
        return short_name(path.stem if path.suffix.lower() == ".gguf" else path.name)
    return source.partition("@")[0]
