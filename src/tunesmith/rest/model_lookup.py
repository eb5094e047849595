"""A model that a request names: one that its caller may use, or the same answer as for one that was never there."""

from __future__ import annotations

import asyncio

from fastapi import Request

from tunesmith.errors import ModelError
from tunesmith.record.job_models import may_use, usable_models
from tunesmith.rest.caller import caller_of
from tunesmith.rest.errors import WireFault, model_not_found
from tunesmith.rest.platform import Platform
from tunesmith.serve.catalogue import Catalogue, ServedModel
from tunesmith.serve.pool import ModelPool


def pool_of(http: Request) -> ModelPool:
    """Return the models of the application that a request came to."""
    pool: ModelPool = http.app.state.pool
    return pool


async def find_model(http: Request, name: str) -> ServedModel:
    """Return the model that a request means: a base, a tuned model, or what an alias stands for.

    Bases, and models that this machine's owner tuned, are everybody's. A job's model is its project's, and theirs with
    whom it was shared.

    Args:
        http: the request, for its caller.
        name: as the request has it.

    Raises:
        WireFault: there is none of that name that the caller may use; 404 `model_not_found`.
    """
    return await asyncio.to_thread(_find, pool_of(http).catalogue, _platform(http), caller_of(http).project_id, name)


async def usable_by_caller(http: Request) -> list[ServedModel]:
    """Return all models that a request's caller may use: bases first, then tuned ones, the latest first."""
    return await asyncio.to_thread(_usable, pool_of(http).catalogue, _platform(http), caller_of(http).project_id)


def _find(catalogue: Catalogue, platform: Platform | None, project_id: str, name: str) -> ServedModel:
    try:
        model = catalogue.find(name)
    except ModelError as error:
        raise WireFault(model_not_found(name)) from error
    if model.job is not None and platform is not None:
        with platform.database.read() as connection:
            if not may_use(connection, model.name, project_id):
                raise WireFault(model_not_found(name))
    return model


def _usable(catalogue: Catalogue, platform: Platform | None, project_id: str) -> list[ServedModel]:
    models = catalogue.models()
    if platform is None:
        return models
    with platform.database.read() as connection:
        usable = usable_models(connection, project_id)
    return [model for model in models if model.job is None or model.name in usable]


def _platform(http: Request) -> Platform | None:
    """Return the record and what stands on it; a server without one has one caller, who may use everything."""
    platform: Platform | None = http.app.state.platform
    return platform
