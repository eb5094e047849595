"""`DELETE /v1/models/{model}`: a model goes for good, by who owns it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from tunesmith.errors import ModelError
from tunesmith.models.versions import find_version
from tunesmith.record.access import DEFAULT_PROJECT
from tunesmith.record.job_models import find_job_model
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError, WireFault, model_not_found
from tunesmith.rest.files import FromCaller, FromPlatform
from tunesmith.rest.intake import in_thread
from tunesmith.rest.model_lookup import find_model, pool_of
from tunesmith.rest.platform import Platform
from tunesmith.runs.model_removal import remove_model
from tunesmith.serve.catalogue import ServedModel

_NOT_TUNED = "Only tuned models can be deleted here; bases and aliases are the server's own."

router = APIRouter(prefix="/v1/models")


class DeletedModel(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


@router.delete("/{name:path}")
async def delete_model(name: str, http: Request, platform: FromPlatform, caller: FromCaller) -> DeletedModel:
    """Delete a tuned model, or one checkpoint. Answers that have begun are finished.

    A job's model belongs to its project, one that was tuned by hand on this machine to the default project.
    """
    catalogue = pool_of(http).catalogue
    if name in catalogue.aliases or await asyncio.to_thread(catalogue.find_encoder, name) is not None:
        raise WireFault(_not_yours(name, _NOT_TUNED))
    model = await find_model(http, name)
    if model.is_tuned and name != model.name:
        # A label, or the beginning of a name, may mean another model tomorrow.
        raise WireFault(model_not_found(name))
    if not model.is_tuned:
        raise WireFault(_not_yours(name, _NOT_TUNED))
    await in_thread(platform.file_threads, partial(_delete, platform, caller, model))
    return DeletedModel(id=model.name)


def _delete(platform: Platform, caller: Caller, model: ServedModel) -> None:
    """Delete a model that the caller may use.

    Raises:
        WireFault: it belongs to another project, is gone already, or a job still needs it.
    """
    with platform.database.read() as connection:
        owned = find_job_model(connection, model.name)
    owner = DEFAULT_PROJECT if owned is None else owned.project_id
    if caller.project_id != owner:
        raise WireFault(_not_yours(model.name, "It belongs to another project, which shares it with yours."))
    try:
        was_there = remove_model(find_version(model.name, platform.home), platform.home, platform.database)
    except ModelError as error:
        if error.code != "model_in_use":
            raise WireFault(model_not_found(model.name)) from error
        raise WireFault(WireError(400, f"{error.message} {error.fix}", error.code, "model")) from error
    if not was_there:
        raise WireFault(model_not_found(model.name))


def _not_yours(name: str, why: str) -> WireError:
    return WireError(403, f"You can't delete the model `{name[:200]}`. {why}", "insufficient_permissions", "model")
