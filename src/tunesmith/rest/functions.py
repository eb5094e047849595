"""Functions as requests named them before there were tools: they become tools, and calls of tools calls of functions.

`functions` and `function_call` in a request, messages of the role `function`, `function_call` in an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import RequestError
from tunesmith.rest.wire import ChatRequest, Choice, WireMessage, WireTool, WireToolCall


def with_functions(request: ChatRequest) -> ChatRequest:
    """Return a request with tools in place of its functions, of which an answer calls one at most.

    Raises:
        RequestError: it has both, or chooses a function in a way that isn't OpenAI's.
    """
    if not request.functions:
        if request.function_call is not None:
            raise _wrong("'function_call' is only allowed when 'functions' are specified.", "function_call")
        return request
    if request.tools or request.tool_choice is not None:
        raise _wrong("'functions' and 'tools' can't be given together.", "functions")
    tools = [WireTool(type="function", function=function) for function in request.functions]
    choice = _choice(request)
    return request.model_copy(update={"tools": tools, "tool_choice": choice, "parallel_tool_calls": False})


def as_tool_messages(messages: Sequence[WireMessage]) -> list[WireMessage]:
    """Return messages with calls of tools, and their replies, in place of those of functions.

    Raises:
        RequestError: a call has no reply behind it, or a reply no call before it.
    """
    shown: list[WireMessage] = []
    waiting: tuple[int, str] | None = None  # the place of the last call, and its function
    for place, message in enumerate(messages):
        at = f"messages[{place}]"
        if waiting is not None and message.role != "function":
            raise _unanswered(waiting[0])
        if message.role == "function":
            if waiting is None or message.name != waiting[1]:
                raise _wrong(
                    "A message with role 'function' must have the 'name' of the function that the one before it calls.",
                    f"{at}.name",
                )
            changes: dict[str, Any] = {"role": "tool", "tool_call_id": _call_id(waiting[0]), "name": None}
            shown.append(message.model_copy(update=changes))
            waiting = None
        elif message.function_call is not None:
            if message.role != "assistant" or message.tool_calls:
                raise _wrong(
                    "Only an assistant's message can call a function, or tools, not both.", f"{at}.function_call"
                )
            call = WireToolCall(id=_call_id(place), function=message.function_call)
            shown.append(message.model_copy(update={"tool_calls": [call], "function_call": None}))
            waiting = place, message.function_call.name
        else:
            shown.append(message)
    if waiting is not None:
        raise _unanswered(waiting[0])
    return shown


def as_function_call(choice: Choice) -> Choice:
    """Return a choice with its call of a tool told as a call of a function."""
    calls = choice.message.tool_calls
    if not calls:
        return choice
    message = choice.message.model_copy(update={"tool_calls": None, "function_call": calls[0].function})
    reason = function_reason(choice.finish_reason)
    return choice.model_copy(update={"message": message, "finish_reason": reason})


def function_delta(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the delta of a stream that tells a piece of a tool's call as one of a function's."""
    return {"function_call": call["function"]}


def function_reason(reason: str) -> str:
    """Return why an answer ended, in the words of functions."""
    return "function_call" if reason == "tool_calls" else reason


def _choice(request: ChatRequest) -> Any:
    said = request.function_call
    if said is None or said in ("none", "auto"):
        return said
    name = said.get("name") if isinstance(said, dict) else None
    if not isinstance(name, str) or len(said) > 1:
        raise _wrong("Invalid 'function_call': expected 'none', 'auto', or {\"name\": ...}.", "function_call")
    if name not in {function.name for function in request.functions}:
        raise _wrong(f"Invalid 'function_call': there is no function '{name[:100]}' in 'functions'.", "function_call")
    return {"type": "function", "function": {"name": name}}


def _call_id(place: int) -> str:
    return f"call_{place}"


def _unanswered(place: int) -> RequestError:
    return _wrong(
        "A call of a function needs a message with role 'function', and its name, behind it.",
        f"messages[{place}].function_call",
    )


def _wrong(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid_value", param=param)
