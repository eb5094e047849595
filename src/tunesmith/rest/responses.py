"""`/v1/responses`: create (whole or streamed), retrieve, delete, and the items that a response was asked with.

An answer is computed by the same code as a chat completion; what is here are other words for it, and its memory.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from tunesmith.errors import RequestError
from tunesmith.record.ids import new_id
from tunesmith.record.responses import MOST_BYTES, MOST_LINKS, Responses, StoredResponse
from tunesmith.rest.bodies import check_content_type
from tunesmith.rest.caller import Caller
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.files import FromCaller, FromPlatform
from tunesmith.rest.intake import in_thread
from tunesmith.rest.paging import After, Limit, Order
from tunesmith.rest.platform import Platform
from tunesmith.rest.reading import unsupported
from tunesmith.rest.response_input import Turn, join_turns, read_items, turns_of
from tunesmith.rest.response_output import Answer, Head, whole_step
from tunesmith.rest.response_request import blame, chat_request_of, functions_of, read_response_request
from tunesmith.rest.response_schema import INPUT_ITEMS, RESPONSE, RESPONSE_OR_STREAM
from tunesmith.rest.response_stream import ResponseStream
from tunesmith.rest.response_wire import LOGPROBS, FunctionTool, Include, ResponseRequest
from tunesmith.rest.schema import json_body
from tunesmith.rest.session import Session, open_session
from tunesmith.rest.wire import ChatRequest, WireMessage

router = APIRouter(prefix="/v1/responses")

Includes = Annotated[list[Include] | None, Query(alias="include[]")]
_ID = re.compile("resp_[0-9A-Za-z]{24}")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was understood.

    Attributes:
        request: as it was read.
        functions: that the model may call.
        items: its own input.
        before: the response that it goes on from.
        turns: the whole prompt.
        first: how many turns at the beginning are kept where the rest is shortened.
    """

    request: ResponseRequest
    functions: Sequence[FunctionTool]
    items: list[dict[str, Any]]
    before: StoredResponse | None
    turns: list[Turn]
    first: int

    def chat(self, cut: int = 0) -> ChatRequest:
        """Return the chat request that says the same; with `cut`, without the turns between the first ones and it."""
        turns = [*self.turns[: self.first], *self.turns[cut:]] if cut else self.turns
        return chat_request_of(self.request, self.functions, [turn.message for turn in turns])

    def shorter(self) -> list[int]:
        """Return where the prompt may begin instead if it is too long: at a message of the user's."""
        if self.request.truncation == "disabled":
            return []
        return [i for i, turn in enumerate(self.turns) if i > self.first and turn.message.role == "user"]


@router.post("", responses=RESPONSE_OR_STREAM, openapi_extra=json_body(ResponseRequest))
async def create_response(http: Request, platform: FromPlatform, caller: FromCaller) -> Response:
    """Answer, whole or as a stream of events; the response is stored unless `store` is false."""
    check_content_type(http)
    stored = Responses(platform.database)
    understand = partial(_understand, await http.body(), stored, caller.project_id)
    asked = await in_thread(platform.keeping_threads, understand)
    session = await _open(http, asked, platform.spec.default_max_tokens)
    head = Head(
        id=new_id("resp_"),
        created=int(time.time()),
        model=session.model,
        request=asked.request,
        functions=asked.functions,
    )
    answer = Answer(with_logprobs=LOGPROBS in asked.request.include)

    async def keep(response: dict[str, Any]) -> None:
        if asked.request.store:
            add = partial(stored.add, caller.project_id, asked.items, response, asked.before)
            await in_thread(platform.keeping_threads, add)

    if asked.request.stream:
        return ResponseStream(session, head, answer, keep)
    try:
        completions = await session.completions(http)
    finally:
        session.close()
    if completions is None:
        return Response(status_code=499)  # nobody reads it
    for _ in answer.add(whole_step(completions[0], session.tools)):
        pass  # nobody hears of its growing
    response = head.finished(answer)
    await keep(response)
    return _json(response)


@router.get("/{response_id}", responses=RESPONSE)
async def retrieve_response(
    response_id: str,
    platform: FromPlatform,
    caller: FromCaller,
    include: Includes = None,  # noqa: ARG001 - what there is to tell is told in any case
    stream: bool = False,
) -> Response:
    """Show a stored response as it was sent."""
    found = await _find(platform, caller, response_id)
    if stream:
        raise unsupported("stream", "A finished response can't be streamed again.")
    return _json(found.response)


@router.delete("/{response_id}")
async def delete_response(response_id: str, platform: FromPlatform, caller: FromCaller) -> dict[str, Any]:
    """Delete a stored response with its input. Those that went on from it can't be gone on from any more."""
    _check_id(response_id)
    delete = partial(Responses(platform.database).delete, caller.project_id, response_id)
    if not await in_thread(platform.keeping_threads, delete):
        raise _not_found(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, platform: FromPlatform, caller: FromCaller) -> None:
    """Refuse: only responses in the background can be cancelled, and there are none."""
    await _find(platform, caller, response_id)
    raise RequestError("Only responses that were created with 'background' can be cancelled.", code="not_background")


@router.get("/{response_id}/input_items", responses=INPUT_ITEMS)
async def list_input_items(
    response_id: str,
    platform: FromPlatform,
    caller: FromCaller,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    include: Includes = None,  # noqa: ARG001 - see above
) -> dict[str, Any]:
    """List the items that a response was asked with, those of the conversation before it included."""
    found = await _find(platform, caller, response_id)
    read = partial(Responses(platform.database).conversation, caller.project_id, found)
    chain = await in_thread(platform.keeping_threads, read)
    items = [
        item for link in chain for item in (*link.input, *(link.response["output"] if link is not chain[-1] else ()))
    ]
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise RequestError(
                "Invalid 'after': there is no such object. Start again from the first page.",
                code="invalid_cursor",
                param="after",
            )
        start = ids.index(after) + 1
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(items),
    }


def _understand(body: bytes, stored: Responses, project_id: str) -> _Asked:
    """Read a request, with the conversation that it goes on from.

    Raises:
        RequestError: it can't be answered as it is.
    """
    request = read_response_request(body)
    functions = functions_of(request)
    items = read_items(request.input)
    before = None
    groups: list[list[Turn]] = []
    if request.instructions is not None:
        groups.append([Turn(WireMessage(role="system", content=request.instructions), "instructions")])
    if request.previous_response_id is not None:
        before, said = _conversation(stored, project_id, request.previous_response_id)
        groups.append(turns_of(said, "previous_response_id"))
    groups.append(turns_of(items))
    turns = join_turns(groups)
    first = next((i for i, turn in enumerate(turns) if turn.message.role not in ("system", "developer")), len(turns))
    return _Asked(request, functions, items, before, turns, first)


def _conversation(stored: Responses, project_id: str, response_id: str) -> tuple[StoredResponse, list[dict[str, Any]]]:
    """Return a response, and all items up to its end.

    Raises:
        RequestError: it isn't there, or one before it isn't any more, or they are too long.
    """
    before = stored.get(project_id, response_id) if _ID.fullmatch(response_id) else None
    if before is None:
        raise _gone(response_id)
    if before.links >= MOST_LINKS or before.bytes > MOST_BYTES:
        raise RequestError(
            "This conversation is too long to go on.",
            fix="Begin a new one with what matters of it.",
            code="conversation_too_long",
            param="previous_response_id",
        )
    chain = stored.conversation(project_id, before)
    if chain[0].previous_id is not None:
        raise _gone(chain[0].previous_id)
    return before, [item for link in chain for item in (*link.input, *link.response["output"])]


async def _open(http: Request, asked: _Asked, default_max_tokens: int) -> Session:
    """Hand a request to its model.

    Raises:
        WireFault: there is no such model, or it can't be loaded.
        RequestError: it can't be answered; in the words of this route.
    """
    chat = asked.chat()
    shorter = [partial(asked.chat, cut) for cut in asked.shorter()]
    try:
        return await open_session(http, chat, default_max_tokens, shorter)
    except RequestError as error:
        raise blame(error, asked.turns) from error


async def _find(platform: Platform, caller: Caller, response_id: str) -> StoredResponse:
    """Return a response of the caller's project.

    Raises:
        WireFault: there is none.
    """
    _check_id(response_id)
    find = partial(Responses(platform.database).get, caller.project_id, response_id)
    found = await in_thread(platform.keeping_threads, find)
    if found is None:
        raise _not_found(response_id)
    return found


def _check_id(response_id: str) -> None:
    if not _ID.fullmatch(response_id):
        raise _not_found(response_id)


def _not_found(response_id: str) -> WireFault:
    message = f"Response with id '{response_id[:200]}' not found."
    return WireFault(WireError(404, message, "response_not_found", "response_id"))


def _gone(response_id: str) -> RequestError:
    return RequestError(
        f"Previous response with id '{response_id[:200]}' not found.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")
