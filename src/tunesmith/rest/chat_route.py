"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunesmith.rest.bodies import check_content_type
from tunesmith.rest.chat import AnswerStream, whole_answer
from tunesmith.rest.chat_schema import STREAM_RESPONSE, chat_body
from tunesmith.rest.reading import read_chat_request
from tunesmith.rest.session import open_session
from tunesmith.rest.stored import check_can_store
from tunesmith.rest.wire import ChatCompletion
from tunesmith.specs.serving import ServeSpec

router = APIRouter()


@router.post(
    "/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_RESPONSE, openapi_extra=chat_body()
)
async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation, whole or as a stream; `store` keeps the answer."""
    check_content_type(http)
    request = await asyncio.to_thread(read_chat_request, await http.body())
    check_can_store(http, request)
    spec: ServeSpec = http.app.state.spec
    session = await open_session(http, request, spec.default_max_tokens)
    return AnswerStream(session, http) if request.stream else await whole_answer(session, http)
