"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tunesmith import __version__
from tunesmith.errors import TunesmithError
from tunesmith.rest.bodies import check_content_type
from tunesmith.rest.chat import AnswerStream, find_model, open_session, whole_answer
from tunesmith.rest.errors import WireFault, tell_error, tell_http_error, tell_invalid
from tunesmith.rest.guard import Guard
from tunesmith.rest.reading import read_chat_request
from tunesmith.rest.translate import model_of
from tunesmith.rest.wire import ChatCompletion, ChatRequest, WireModel, WireModels
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec


def create_app(pool: ModelPool, spec: ServeSpec) -> FastAPI:
    """Return the server's application; the pool is closed with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(pool.close)

    app = FastAPI(
        title="Tunesmith",
        version=__version__,
        lifespan=lifespan,
        # The pages would load scripts from elsewhere; the schema alone is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Guard, spec=spec)
    app.add_exception_handler(HTTPException, tell_http_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(TunesmithError, tell_error)
    app.add_exception_handler(WireFault, tell_error)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models() -> WireModels:
        models = await asyncio.to_thread(pool.catalogue.models)
        return WireModels(data=[model_of(model) for model in models])

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> WireModel:
        return model_of(await find_model(name, pool))

    @app.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=_body_schema())
    async def create_chat_completion(http: Request) -> Response:
        check_content_type(http)
        request = await asyncio.to_thread(read_chat_request, await http.body())
        session = await open_session(request, pool, spec.default_max_tokens)
        return AnswerStream(session) if request.stream else await whole_answer(session, http)

    return app


def _body_schema() -> dict[str, object]:
    """Return the chat request's schema, for `/openapi.json`; the body itself is read by `read_chat_request`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline_schema()}}}}


def _inline_schema() -> dict[str, object]:
    return ChatRequest.model_json_schema()
