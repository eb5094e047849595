"""The input of a response: from items to the messages that chat completions have, and to the items that are kept.

Calls are items of their own here and parts of an assistant's message there: calls that follow each other, or the
message that they came with, are one turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.errors import RequestError
from tunesmith.record.ids import new_id
from tunesmith.rest.invalid import invalid_value
from tunesmith.rest.reading import unsupported
from tunesmith.rest.response_wire import FunctionCallItem, FunctionOutputItem, MessageItem, RefusalPart, TextPart
from tunesmith.rest.wire import WireFunctionCall, WireMessage, WireToolCall

_Item = TypeVar("_Item", bound=BaseModel)
_MOST_ITEMS = 10_000


@dataclass(slots=True)
class Turn:
    """One message of the prompt, and where in the request each part of it stands."""

    message: WireMessage
    place: str
    call_places: list[str] = field(default_factory=list)


def read_items(said: Any, place: str = "input") -> list[dict[str, Any]]:
    """Return a request's input as items in the form in which they are kept and listed, each with an id.

    Args:
        said: a text, or a list of items.
        place: what errors call it.

    Raises:
        RequestError: it isn't one of these, or holds an item that isn't offered here.
    """
    if isinstance(said, str):
        said = [{"role": "user", "content": said}]
    if not isinstance(said, list):
        raise RequestError(
            f"Invalid type for '{place}': expected a string or an array of items.", code="invalid_type", param=place
        )
    if not said:
        raise RequestError(
            f"Invalid '{place}': empty array. Expected at least one element.", code="empty_array", param=place
        )
    if len(said) > _MOST_ITEMS:
        raise RequestError(
            f"Invalid '{place}': array too long. Expected at most {_MOST_ITEMS:,} elements.",
            code="array_above_max_length",
            param=place,
        )
    return [_item(one, f"{place}[{i}]") for i, one in enumerate(said)]


def turns_of(items: Sequence[Mapping[str, Any]], place: str = "input") -> list[Turn]:
    """Return kept items as the turns of a conversation.

    Args:
        items: as `read_items` returns them, or as a response's `output` has them.
        place: what errors call the list.
    """
    turns: list[Turn] = []
    for i, item in enumerate(items):
        _add(turns, item, f"{place}[{i}]")
    return turns


def join_turns(groups: Sequence[Sequence[Turn]]) -> list[Turn]:
    """Return the turns of several lists one behind the other.

    Raises:
        RequestError: a call's output is missing, or an output's call.
    """
    turns = [turn for group in groups for turn in group]
    _check_outputs(turns)
    return turns


def _add(turns: list[Turn], item: Mapping[str, Any], place: str) -> None:
    """Add an item to the turns, or to the last of them."""
    last = turns[-1] if turns and turns[-1].message.role == "assistant" else None
    if item["type"] == "function_call":
        call = WireToolCall(
            id=item["call_id"], function=WireFunctionCall(name=item["name"], arguments=item["arguments"])
        )
        if last is None:
            last = Turn(WireMessage(role="assistant"), place)
            turns.append(last)
        last.message.tool_calls = [*(last.message.tool_calls or []), call]
        last.call_places.append(place)
    elif item["type"] == "function_call_output":
        message = WireMessage(role="tool", content=_text(item["output"]), tool_call_id=item["call_id"])
        turns.append(Turn(message, place))
    elif item["role"] == "assistant" and last is not None and last.call_places:
        last.message.content = (last.message.content or "") + _text(item["content"])
    else:
        turns.append(Turn(WireMessage(role=item["role"], content=_text(item["content"])), place))


def _text(content: Any) -> str:
    """Return the words of a kept item."""
    if isinstance(content, str):
        return content
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)


def _check_outputs(turns: Sequence[Turn]) -> None:
    """Refuse an output without its call, and a call whose output doesn't follow it.

    Raises:
        RequestError: there is one.
    """
    waiting: dict[str, str] = {}
    for turn in turns:
        if turn.message.role == "tool":
            call_id = turn.message.tool_call_id or ""
            if call_id not in waiting:
                raise RequestError(
                    f"No tool call found for function call output with call_id {call_id[:100]}.",
                    code="invalid_value",
                    param=turn.place,
                )
            del waiting[call_id]
            continue
        if waiting:
            break
        calls = turn.message.tool_calls or []
        for call, place in zip(calls, turn.call_places, strict=True):
            if call.id in waiting:
                raise RequestError(
                    f"Two function calls have the call_id {call.id[:100]}.", code="invalid_value", param=place
                )
            waiting[call.id] = place
    for call_id, place in waiting.items():
        raise RequestError(
            f"No tool output found for function call {call_id[:100]}. It must follow the call.",
            code="invalid_value",
            param=place,
        )


def _item(said: Any, place: str) -> dict[str, Any]:
    """Return one item as it is kept.

    Raises:
        RequestError: it is none, or not offered here.
    """
    if not isinstance(said, dict):
        raise RequestError(f"Invalid type for '{place}': expected an object.", code="invalid_type", param=place)
    kind = said.get("type", "message")
    if kind == "function_call":
        call = _read(FunctionCallItem, said, place)
        return {
            "id": call.id or new_id("fc_"),
            "type": "function_call",
            "call_id": call.call_id,
            "name": call.name,
            "arguments": call.arguments,
            "status": call.status or "completed",
        }
    if kind == "function_call_output":
        output = _read(FunctionOutputItem, said, place)
        return {
            "id": output.id or new_id("fco_"),
            "type": "function_call_output",
            "call_id": output.call_id,
            "output": _output(output.output, f"{place}.output"),
            "status": output.status or "completed",
        }
    if kind not in ("message", None):
        raise unsupported(place, f"Items of type '{str(kind)[:50]}' aren't supported by this server.")
    return _message(_read(MessageItem, {**said, "type": "message"}, place), place)


def _message(message: MessageItem, place: str) -> dict[str, Any]:
    kind = "output_text" if message.role == "assistant" else "input_text"
    content = message.content
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    elif not isinstance(content, list):
        raise RequestError(
            f"Invalid type for '{place}.content': expected a string or an array of parts.",
            code="invalid_type",
            param=f"{place}.content",
        )
    parts = [_part(part, message.role == "assistant", f"{place}.content[{i}]") for i, part in enumerate(content)]
    return {
        "id": message.id or new_id("msg_"),
        "type": "message",
        "role": message.role,
        "status": message.status or "completed",
        "content": parts,
    }


def _part(said: Any, is_answer: bool, place: str) -> dict[str, Any]:
    """Return a part of a message as it is kept."""
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "refusal" and is_answer:
        return {"type": "refusal", "refusal": _read(RefusalPart, said, place).refusal}
    if kind not in ("input_text", "output_text", "text"):
        raise _other_part(kind, place)
    text = _read(TextPart, said, place).text
    return {"type": "output_text", "text": text, "annotations": []} if is_answer else _input_text(text)


def _output(said: Any, place: str) -> str | list[dict[str, Any]]:
    """Return what a call came to: a text, or parts of texts."""
    if isinstance(said, str):
        return said
    if not isinstance(said, list):
        raise RequestError(
            f"Invalid type for '{place}': expected a string or an array of parts.", code="invalid_type", param=place
        )
    return [_part(part, False, f"{place}[{i}]") for i, part in enumerate(said)]


def _input_text(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def _other_part(kind: Any, place: str) -> RequestError:
    if isinstance(kind, str):
        return unsupported(place, f"Parts of type '{kind[:50]}' aren't supported by this server; texts are.")
    return RequestError(f"Invalid value for '{place}': not a text part.", code="invalid_value", param=place)


def _read(model: type[_Item], said: Mapping[str, Any], place: str) -> _Item:
    """Return an item or a part as a model of it; null stands for what is left out.

    Raises:
        RequestError: a field is missing, wrong or unknown.
    """
    try:
        return model.model_validate({key: value for key, value in said.items() if value is not None})
    except ValidationError as error:
        raise invalid_value(within(place, error.errors()[0])) from error


def within(place: str, found: ErrorDetails) -> ErrorDetails:
    """Return pydantic's finding with its place inside the request."""
    return ErrorDetails(**{**found, "loc": (place, *found["loc"])})
