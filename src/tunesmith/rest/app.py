"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tunesmith import __version__
from tunesmith.errors import TunesmithError
from tunesmith.rest import (
    chat_route,
    checkpoints,
    completions,
    embeddings,
    files,
    jobs,
    model_deletion,
    models,
    operation,
    permissions,
    responses,
    stored,
    uploads,
    webhook_endpoints,
)
from tunesmith.rest.errors import WireFault, tell_error, tell_http_error, tell_invalid
from tunesmith.rest.guard import Guard
from tunesmith.rest.housekeeping import keep_house
from tunesmith.rest.idempotency import IdempotencyKeys
from tunesmith.rest.job_stream import EventWatch
from tunesmith.rest.keyring import Keyring
from tunesmith.rest.metrics import Metrics
from tunesmith.rest.operation import Readiness, RecordAsker
from tunesmith.rest.platform import Platform
from tunesmith.rest.queries import refuse_unknown_query
from tunesmith.rest.schema import ERROR_RESPONSES, DescribedApp
from tunesmith.rest.traffic import Traffic, watch_lag
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec


def create_app(pool: ModelPool, spec: ServeSpec, platform: Platform | None = None) -> FastAPI:
    """Return the server's application; the pool and the platform are closed with it.

    Args:
        pool: the models that answer.
        spec: what the server was asked for.
        platform: the record and what stands on it; without one, the server answers with models and does nothing else.
    """
    traffic = Traffic(Metrics(pool, None if platform is None else RecordAsker(platform.database)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with watch_lag(traffic), keep_house(platform) if platform is not None else nullcontext():
            yield
        await asyncio.to_thread(pool.close)
        if platform is not None:
            await asyncio.to_thread(platform.close)

    app = DescribedApp(
        title="Tunesmith",
        version=__version__,
        lifespan=lifespan,
        responses=ERROR_RESPONSES,
        dependencies=[Depends(refuse_unknown_query)],
        # The pages would load scripts from elsewhere; the schema alone is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_guard(app, spec, platform, traffic)
    app.add_exception_handler(HTTPException, tell_http_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(TunesmithError, tell_error)
    app.add_exception_handler(WireFault, tell_error)
    app.state.pool = pool
    app.state.platform = platform
    app.state.traffic = traffic
    app.state.event_watch = app.state.readiness = None
    if platform is not None:
        app.state.event_watch = EventWatch(platform.database, traffic)
        app.state.readiness = Readiness(platform.database, platform.store, platform.looking_threads)
    app.include_router(operation.router)
    app.state.spec = spec
    for answering in (models, chat_route, completions, embeddings):
        app.include_router(answering.router)
    if platform is not None:
        for part in (
            files,
            uploads,
            jobs,
            checkpoints,
            permissions,
            model_deletion,
            stored,
            responses,
            webhook_endpoints,
        ):
            app.include_router(part.router)

    return app


def _add_guard(app: FastAPI, spec: ServeSpec, platform: Platform | None, traffic: Traffic) -> None:
    """Let every request pass the guard; what is added last comes first."""
    if platform is None:
        app.add_middleware(Guard, spec=spec, keyring=Keyring(spec), ledger=None, traffic=traffic)
        return
    app.add_middleware(IdempotencyKeys, platform=platform)
    keyring = Keyring(spec, platform.access, platform.ledger)
    app.add_middleware(Guard, spec=spec, keyring=keyring, ledger=platform.ledger, traffic=traffic)
