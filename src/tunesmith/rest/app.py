"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tunesmith import __version__
from tunesmith.errors import TunesmithError
from tunesmith.rest import checkpoints, files, jobs, model_deletion, models, permissions, uploads
from tunesmith.rest.bodies import check_content_type
from tunesmith.rest.chat import AnswerStream, whole_answer
from tunesmith.rest.errors import WireFault, tell_error, tell_http_error, tell_invalid
from tunesmith.rest.guard import Guard
from tunesmith.rest.housekeeping import keep_house
from tunesmith.rest.idempotency import IdempotencyKeys
from tunesmith.rest.keyring import Keyring
from tunesmith.rest.platform import Platform
from tunesmith.rest.reading import read_chat_request
from tunesmith.rest.session import open_session
from tunesmith.rest.wire import ChatCompletion, ChatRequest
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec


def create_app(pool: ModelPool, spec: ServeSpec, platform: Platform | None = None) -> FastAPI:
    """Return the server's application; the pool and the platform are closed with it.

    Args:
        pool: the models that answer.
        spec: what the server was asked for.
        platform: the record and what stands on it; without one, the server answers with models and does nothing else.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with keep_house(platform) if platform is not None else nullcontext():
            yield
        await asyncio.to_thread(pool.close)
        if platform is not None:
            await asyncio.to_thread(platform.close)

    app = FastAPI(
        title="Tunesmith",
        version=__version__,
        lifespan=lifespan,
        # The pages would load scripts from elsewhere; the schema alone is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_guard(app, spec, platform)
    app.add_exception_handler(HTTPException, tell_http_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(TunesmithError, tell_error)
    app.add_exception_handler(WireFault, tell_error)
    app.state.pool = pool
    app.state.platform = platform
    app.include_router(models.router)
    if platform is not None:
        for part in (files, uploads, jobs, checkpoints, permissions, model_deletion):
            app.include_router(part.router)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=_body_schema())
    async def create_chat_completion(http: Request) -> Response:
        check_content_type(http)
        request = await asyncio.to_thread(read_chat_request, await http.body())
        session = await open_session(http, request, spec.default_max_tokens)
        return AnswerStream(session) if request.stream else await whole_answer(session, http)

    return app


def _add_guard(app: FastAPI, spec: ServeSpec, platform: Platform | None) -> None:
    """Let every request pass the guard; what is added last comes first."""
    if platform is None:
        app.add_middleware(Guard, spec=spec, keyring=Keyring(spec), ledger=None)
        return
    app.add_middleware(IdempotencyKeys, database=platform.database)
    keyring = Keyring(spec, platform.access, platform.ledger)
    app.add_middleware(Guard, spec=spec, keyring=keyring, ledger=platform.ledger)


def _body_schema() -> dict[str, object]:
    """Return the chat request's schema, for `/openapi.json`; the body itself is read by `read_chat_request`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline_schema()}}}}


def _inline_schema() -> dict[str, object]:
    return ChatRequest.model_json_schema()
