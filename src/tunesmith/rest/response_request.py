"""From a request for a response to the chat request that says the same, and errors back to the caller's own fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunesmith.errors import RequestError
from tunesmith.generate.form_checks import check_form
from tunesmith.rest.bodies import read_object
from tunesmith.rest.invalid import invalid_value
from tunesmith.rest.metadata import check_metadata
from tunesmith.rest.reading import known_fields, unsupported
from tunesmith.rest.response_input import Turn, within
from tunesmith.rest.response_wire import (
    IGNORED,
    LOGPROBS,
    UNSUPPORTED,
    FunctionTool,
    ResponseRequest,
    TextFormat,
)
from tunesmith.rest.tools import check_parameters, tool_choice_of
from tunesmith.rest.wire import (
    ChatRequest,
    WireFunction,
    WireJsonSchema,
    WireMessage,
    WireResponseFormat,
    WireTool,
)
from tunesmith.specs.generation import JsonSchemaSpec

#: What this route calls the fields of a chat request that errors blame.
_NAMES = {
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "max_completion_tokens": "max_output_tokens",
    "n": "input",
}
_MESSAGE = re.compile(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\]\.function)?(.*)", re.DOTALL)
_FUNCTION = re.compile(r"tools\[(\d+)\]\.function\.(.*)", re.DOTALL)


def read_response_request(body: bytes) -> ResponseRequest:
    """Return the request that a body holds; its items are still as they came.

    Raises:
        RequestError: it isn't JSON, lacks a field, or holds one that is wrong, unknown or not offered here.
    """
    given = known_fields(read_object(body), ResponseRequest, IGNORED, UNSUPPORTED)
    try:
        request = ResponseRequest.model_validate(given)
    except ValidationError as error:
        raise invalid_value(error.errors()[0]) from error
    check_metadata(request.metadata)
    if request.stream_options is not None and not request.stream:
        raise RequestError(
            "'stream_options' is only allowed when 'stream' is true.", code="invalid_value", param="stream_options"
        )
    return request


def functions_of(request: ResponseRequest) -> list[FunctionTool]:
    """Return the functions that the model may call, `strict` or not for certain.

    Raises:
        RequestError: a tool is no function.
    """
    return [_function(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)]


def chat_request_of(
    request: ResponseRequest, functions: Sequence[FunctionTool], messages: Sequence[WireMessage]
) -> ChatRequest:
    """Return the chat request that says the same.

    Args:
        request: as it was read.
        functions: its `functions_of`.
        messages: the whole prompt.

    Raises:
        RequestError: tools or form can't be asked for like this; in the words of this route.
    """
    with_logprobs = LOGPROBS in request.include
    try:
        chat = ChatRequest(
            model=request.model,
            messages=list(messages),
            temperature=request.temperature,
            top_p=request.top_p,
            max_completion_tokens=request.max_output_tokens,
            logprobs=with_logprobs,
            top_logprobs=request.top_logprobs if with_logprobs else 0,
            response_format=_format(request.text.format),
            tools=[_tool(function) for function in functions],
            tool_choice=_tool_choice(request.tool_choice),
            parallel_tool_calls=request.parallel_tool_calls,
            stream=request.stream,
        )
        check_parameters(chat)
        tool_choice_of(chat)
    except RequestError as error:
        raise blame(error, ()) from error
    return chat


def blame(error: RequestError, turns: Sequence[Turn]) -> RequestError:
    """Return an error about a chat request as one about the request that it was made of.

    Args:
        error: blames a field of the chat request.
        turns: its messages.
    """
    param = error.param
    if param is None:
        return error
    new = _renamed(param, turns)
    message = error.message.replace(f"'{param}'", f"'{new}'")
    fix = (error.fix or "").replace(f"'{param}'", f"'{new}'").replace("messages", "input") or None
    return RequestError(message, fix=fix, code=error.code, param=new)


def _renamed(param: str, turns: Sequence[Turn]) -> str:
    in_message, in_function = _MESSAGE.fullmatch(param), _FUNCTION.fullmatch(param)
    if in_function is not None:
        return f"tools[{in_function[1]}].{in_function[2]}"
    if in_message is not None and int(in_message[1]) < len(turns):
        turn = turns[int(in_message[1])]
        place = turn.place if in_message[2] is None else turn.call_places[int(in_message[2])]
        return place + in_message[3]
    return _NAMES.get(param, param)


def _function(said: Any, place: str) -> FunctionTool:
    kind = said.get("type") if isinstance(said, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise unsupported(place, f"Tools of type '{kind[:50]}' aren't supported by this server; functions are.")
    try:
        function = FunctionTool.model_validate(said)
    except ValidationError as error:
        raise invalid_value(within(place, _plain(error.errors()[0]))) from error
    if "strict" in function.model_fields_set:
        return function
    return function.model_copy(update={"strict": _can_promise(function)})


def _plain(found: ErrorDetails) -> ErrorDetails:
    """Return a finding about something that is no object as one in the words for it."""
    return ErrorDetails(**{**found, "type": "dict_type"}) if found["type"] == "model_type" else found


def _can_promise(function: FunctionTool) -> bool:
    try:
        check_form(JsonSchemaSpec(json_schema=function.parameters or {}))
    except RequestError:
        return False
    return True


def _tool(function: FunctionTool) -> WireTool:
    return WireTool(
        type="function",
        function=WireFunction(
            name=function.name,
            description=function.description,
            parameters=function.parameters,
            strict=function.strict,
        ),
    )


def _tool_choice(said: Any) -> Any:
    """Return a choice in the form that chat requests have, where names lie one step deeper."""
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "function":
        return {"type": "function", "function": {"name": said.get("name")}}
    if kind == "allowed_tools":
        tools = said.get("tools")
        return {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": said.get("mode"),
                "tools": [_tool_choice(tool) for tool in tools] if isinstance(tools, list) else tools,
            },
        }
    if kind is not None:
        raise unsupported("tool_choice", f"A choice of '{str(kind)[:50]}' isn't supported by this server.")
    return said


def _format(form: TextFormat | None) -> WireResponseFormat | None:
    if form is None:
        return None
    if form.type != "json_schema":
        return WireResponseFormat(type=form.type)
    if form.name is None:
        raise _missing("text.format.name")
    if form.json_schema is None:
        raise _missing("text.format.schema")
    schema = WireJsonSchema(name=form.name, description=form.description, schema=form.json_schema, strict=form.strict)
    return WireResponseFormat(type="json_schema", json_schema=schema)


def _missing(param: str) -> RequestError:
    return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
