"""Stored chat completions: kept where a request says `store`, and listed, read, labelled and deleted afterwards."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from tunesmith.record.completions import NewCompletion, StoredCompletion, StoredMessage
from tunesmith.rest.bodies import read_body
from tunesmith.rest.caller import caller_of
from tunesmith.rest.errors import WireError, WireFault
from tunesmith.rest.files import FromCaller, FromPlatform
from tunesmith.rest.intake import in_thread
from tunesmith.rest.metadata import METADATA_PARAMETER, METADATA_SCHEMA, check_metadata, metadata_filter
from tunesmith.rest.model_lookup import pool_of
from tunesmith.rest.paging import After, Limit, WireList, WireObject, list_of, page_of
from tunesmith.rest.platform import platform_of
from tunesmith.rest.reading import unsupported
from tunesmith.rest.schema import json_body
from tunesmith.rest.wire import ChatCompletion, ChatRequest, Wire

router = APIRouter(prefix="/v1/chat/completions")

_ID = re.compile("chatcmpl-[0-9A-Za-z]{24}")
#: The oldest come first here, unlike in other lists.
Ascending = Annotated[Literal["asc", "desc"], Query(description="`asc`: the oldest first.")]


class WireStoredCompletion(ChatCompletion, WireObject):
    """A stored completion: the answer as it was sent, and what was asked."""

    request_id: str
    tool_choice: Any
    seed: int | None
    top_p: float
    temperature: float
    presence_penalty: float
    frequency_penalty: float
    input_user: str | None
    tools: list[Any] | None
    metadata: dict[str, str]
    response_format: Any


class WireStoredMessage(WireObject):
    """A message of a stored completion's prompt; `content_parts` are its parts, where it was sent in parts."""

    role: str
    content: str | None
    name: str | None
    content_parts: list[Any] | None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: Any = None

    @model_serializer(mode="wrap")
    def _without_what_isnt_there(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        message: dict[str, Any] = serialize(self)
        for name in ("tool_calls", "tool_call_id", "function_call"):
            if message[name] is None:
                del message[name]
        return message


class ChangeStored(Wire):
    """What can be changed of a stored completion."""

    metadata: Any = Field(json_schema_extra=METADATA_SCHEMA)


class DeletedCompletion(BaseModel):
    """Word that a completion is gone."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


def check_can_store(http: Request, request: ChatRequest) -> None:
    """Refuse to store on a server that keeps no record.

    Raises:
        RequestError: it is asked for all the same.
    """
    if request.store and http.app.state.platform is None:
        raise unsupported("store", "This server keeps no record, so it can't store answers.")


async def keep_answer(http: Request, request: ChatRequest, answer: ChatCompletion) -> None:
    """Store an answer, where that was asked for; once this returns, it is durable.

    That happens in threads that answers without `store` never wait for.

    Raises:
        StorageError: it can't be stored.
    """
    if not request.store:
        return
    platform = platform_of(http)
    new = NewCompletion(
        id=answer.id,
        created_at=answer.created,
        project_id=caller_of(http).project_id,
        model=answer.model,
        request_id=http.state.request_id,
        messages=[message.model_dump(exclude_unset=True) for message in request.messages],
        request=_settings(request),
        response=answer.model_dump(mode="json"),
        metadata=request.metadata or {},
    )
    await in_thread(platform.keeping_threads, partial(platform.completions.add, new))


def _settings(request: ChatRequest) -> dict[str, Any]:
    """Return what a stored completion tells of its request."""
    tools = [tool.model_dump(exclude_unset=True) for tool in request.tools]
    form = request.response_format
    return {
        "tool_choice": request.tool_choice,
        "seed": request.seed,
        "top_p": request.top_p,
        "temperature": request.temperature,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "input_user": request.user,
        "tools": tools or None,
        "response_format": None if form is None else form.model_dump(exclude_unset=True, by_alias=True),
    }


@router.get("", openapi_extra={"parameters": [METADATA_PARAMETER]})
async def list_chat_completions(
    http: Request,
    platform: FromPlatform,
    caller: FromCaller,
    limit: Limit = 20,
    after: After = None,
    order: Ascending = "asc",
    model: str | None = None,
) -> WireList[WireStoredCompletion]:
    """List the stored completions of the caller's project."""
    asked = metadata_filter(http)
    # What was asked by an alias says which model answered.
    name = None if model is None else pool_of(http).catalogue.aliases.get(model, model)
    find = partial(
        platform.completions.list,
        caller.project_id,
        page_of(limit, after, order),
        model=name,
        metadata=asked.pairs,
        without_metadata=asked.without,
    )
    found = await in_thread(platform.keeping_threads, find)
    return list_of([_wire(one) for one in found.items], has_more=found.has_more)


@router.get("/{completion_id}")
async def retrieve_chat_completion(
    completion_id: str, platform: FromPlatform, caller: FromCaller
) -> WireStoredCompletion:
    """Show one stored completion."""
    _check_id(completion_id)
    find = partial(platform.completions.get, caller.project_id, completion_id)
    return _found(await in_thread(platform.keeping_threads, find), completion_id)


@router.post("/{completion_id}", openapi_extra=json_body(ChangeStored))
async def update_chat_completion(
    completion_id: str, http: Request, platform: FromPlatform, caller: FromCaller
) -> WireStoredCompletion:
    """Give a stored completion other metadata."""
    _check_id(completion_id)
    metadata = check_metadata((await read_body(http, ChangeStored)).metadata) or {}
    change = partial(platform.completions.set_metadata, caller.project_id, completion_id, metadata)
    return _found(await in_thread(platform.keeping_threads, change), completion_id)


@router.delete("/{completion_id}")
async def delete_chat_completion(completion_id: str, platform: FromPlatform, caller: FromCaller) -> DeletedCompletion:
    """Delete a stored completion."""
    _check_id(completion_id)
    delete = partial(platform.completions.delete, caller.project_id, completion_id)
    if not await in_thread(platform.keeping_threads, delete):
        raise WireFault(_not_found(completion_id))
    return DeletedCompletion(id=completion_id)


@router.get("/{completion_id}/messages")
async def list_chat_completion_messages(
    completion_id: str,
    platform: FromPlatform,
    caller: FromCaller,
    limit: Limit = 20,
    after: After = None,
    order: Ascending = "asc",
) -> WireList[WireStoredMessage]:
    """List the messages that a stored completion answers."""
    _check_id(completion_id)
    page = page_of(limit, after, order)
    find = partial(platform.completions.messages, caller.project_id, completion_id, page)
    found = await in_thread(platform.keeping_threads, find)
    if found is None:
        raise WireFault(_not_found(completion_id))
    return list_of([_wire_message(one) for one in found.items], has_more=found.has_more)


def _check_id(completion_id: str) -> None:
    """Refuse what can't be a completion's id, without asking the record."""
    if not _ID.fullmatch(completion_id):
        raise WireFault(_not_found(completion_id))


def _not_found(completion_id: str) -> WireError:
    message = f"No such stored chat completion: {completion_id[:200]}"
    return WireError(404, message, "completion_not_found", "completion_id")


def _found(stored: StoredCompletion | None, completion_id: str) -> WireStoredCompletion:
    if stored is None:
        raise WireFault(_not_found(completion_id))
    return _wire(stored)


def _wire(stored: StoredCompletion) -> WireStoredCompletion:
    facts = {**stored.response, **stored.request, "request_id": stored.request_id, "metadata": stored.metadata}
    return WireStoredCompletion.model_validate(facts)


def _wire_message(stored: StoredMessage) -> WireStoredMessage:
    sent = stored.message
    content = sent.get("content")
    parts = content if isinstance(content, list) else None
    if parts is not None:
        content = "".join(part.get("text") or part.get("refusal") or "" for part in parts)
    facts = {name: sent.get(name) for name in WireStoredMessage.model_fields}
    return WireStoredMessage(**{**facts, "id": stored.id, "content": content, "content_parts": parts})
