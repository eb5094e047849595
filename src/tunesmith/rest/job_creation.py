"""From a request that is right in itself to a job: the model is there, the files are, and their content stays."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import Request
from sqlalchemy import Connection

from tunesmith.errors import RequestError
from tunesmith.models.versions import find_version
from tunesmith.record.files import FileRecord
from tunesmith.record.jobs import Job, NewJob, job_here
from tunesmith.rest.caller import caller_of
from tunesmith.rest.errors import WireFault
from tunesmith.rest.files import FINE_TUNE
from tunesmith.rest.idempotency import id_for
from tunesmith.rest.intake import in_thread
from tunesmith.rest.job_request import JobRequest
from tunesmith.rest.model_lookup import find_model
from tunesmith.rest.platform import Platform, platform_of
from tunesmith.runs.queue import submit_job
from tunesmith.serve.catalogue import ServedModel


async def create_job(http: Request, request: JobRequest) -> Job:
    """Create a job for a request's caller; one that the same request has created already is returned as it is.

    Raises:
        RequestError: the model or a file isn't there, or can't be used for it.
    """
    model = await _model(http, request)
    platform = platform_of(http)
    create = partial(_create, platform, caller_of(http).project_id, request, model, id_for(http, "ftjob-"))
    return await in_thread(platform.keeping_threads, create)


async def _model(http: Request, request: JobRequest) -> ServedModel:
    """Return the model to start from.

    Raises:
        RequestError: the caller has no such model, or it doesn't fit the job's settings.
    """
    name = request.body.model
    try:
        model = await find_model(http, name)
    except WireFault as fault:
        # A 404 would say that the address is wrong.
        raise RequestError(
            f"The model '{name[:200]}' can't be fine-tuned here: it does not exist, or you do not have access to it.",
            code="model_not_found",
            param="model",
        ) from fault
    wanted, found = request.settings.revision, model.source.partition("@")[2]
    if wanted is not None and not found.startswith(wanted):
        raise RequestError(
            f"This server's '{model.name}' {f'is at revision {found}' if found else 'has no revision'}.",
            code="revision_mismatch",
            param="tunesmith.revision",
        )
    if "adapter" in request.settings.model_fields_set and await asyncio.to_thread(_has_adapter, http, model):
        raise RequestError(
            f"'{model.name}' is tuned further as it is: its adapter has its own settings already.",
            fix="Leave 'tunesmith.adapter' out, or start from the base.",
            code="invalid_value",
            param="tunesmith.adapter",
        )
    return model


def _has_adapter(http: Request, model: ServedModel) -> bool:
    """Whether a model is an adapter, which a job would tune further."""
    return model.is_tuned and find_version(model.source, platform_of(http).home).made.kind == "adapter"


def _create(platform: Platform, project_id: str, request: JobRequest, model: ServedModel, job_id: str) -> Job:
    body = request.body
    is_alias = body.model in platform.pool.catalogue.aliases

    def create(connection: Connection) -> Job:
        here = job_here(connection, job_id, project_id)
        if here is not None:
            return here
        training = _file(platform, connection, project_id, body.training_file, "training_file")
        validation = None
        if body.validation_file is not None:
            validation = _file(platform, connection, project_id, body.validation_file, "validation_file")
        new = NewJob(
            id=job_id,
            project_id=project_id,
            # What a server was started with may name a folder; callers see the model's name.
            model=body.model if is_alias else model.name,
            base=model.source,
            seed=request.seed,
            method=request.method,
            hyperparameters=request.hyperparameters,
            spec=request.settings.asked(),
            training_file=training.id,
            training_sha256=training.sha256,
            validation_file=validation.id if validation else None,
            validation_sha256=validation.sha256 if validation else None,
            suffix=body.suffix,
            integrations=request.integrations,
            metadata=request.metadata,
            priority=request.settings.priority,
        )
        return submit_job(connection, new)

    # The files are read in the block that names their content, so it can't be deleted between.
    return platform.database.retry(create)


def _file(platform: Platform, connection: Connection, project_id: str, file_id: str, param: str) -> FileRecord:
    """Return a file to learn from.

    Raises:
        RequestError: the project has none of that id, or it was uploaded for something else.
    """
    file = platform.files.here(connection, project_id, file_id)
    if file is None:
        raise RequestError(f"invalid {param}: {file_id}", param=param)
    if file.purpose != FINE_TUNE:
        raise RequestError(
            f"invalid {param}: {file_id}. Its purpose is '{file.purpose}', not '{FINE_TUNE}'.", param=param
        )
    return file
