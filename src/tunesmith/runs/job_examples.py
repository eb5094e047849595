"""What an example of a job's file must be: what rows must be in general, and OpenAI's rules on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.chat_rows import RowCheck, read_chat
from tunesmith.data.examples import Conversation
from tunesmith.data.rows import Row

Form = Literal["chat", "preference", "prompt"]

_TOP_KEYS: Mapping[Form, frozenset[str]] = {
    "chat": frozenset({"messages", "tools", "parallel_tool_calls", "functions"}),
    "preference": frozenset({"input", "preferred_output", "non_preferred_output"}),
    "prompt": frozenset({"prompt", "completion"}),
}
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"}
)
_FUNCTION_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
_MOST_TOOLS = 128
#: Code of the service for keys that don't belong there.
EXTRA_KEY = "invalid_file_format"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an example, as it follows "Example 3 (line 4)"; `code` where the service has one for it."""

    text: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at an example found."""

    faults: list[Fault]
    has_a_question: bool = True


def form_of(values: Mapping[str, Any]) -> Form:
    """Return which form an example has, or is nearest to."""
    if "messages" in values:
        return "chat"
    if values.keys() & _TOP_KEYS["preference"]:
        return "preference"
    return "prompt" if values.keys() & _TOP_KEYS["prompt"] else "chat"


def look_at(row: Row) -> Looked:
    """Return what is wrong with an example to learn from."""
    form = form_of(row.values)
    missing = [key for key in ("messages",) if form == "chat" and key not in row.values]
    missing += [key for key in ("prompt", "completion") if form == "prompt" and key not in row.values]
    if missing:
        return Looked([Fault(f" is missing key '{missing[0]}'")])
    faults = [Fault(f" contains an extra {_quoted(key)}.", EXTRA_KEY) for key in row.values.keys() - _TOP_KEYS[form]]
    faults.sort(key=lambda fault: fault.text)
    if form == "prompt":
        texts = [key for key in ("prompt", "completion") if not isinstance(row.values[key], str)]
        return Looked([*faults, *(Fault(f", {key}: isn't a text") for key in texts)])
    faults += _message_faults(row.values["messages"])
    faults += _tool_faults(row.values.get("tools"))
    check = RowCheck(row.place)
    conversation = read_chat(row.values, check)
    if conversation is not None:
        faults += _call_faults(conversation)
    faults += [Fault(f", {problem.reason}") for problem in check.problems]
    roles = {message.role for message in conversation.messages} if conversation is not None else {"user"}
    return Looked(faults, has_a_question=bool(roles & {"system", "developer", "user"}))


def _message_faults(messages: Any) -> Iterator[Fault]:
    """Yield what the reader of rows leaves to others: keys that are unknown, and an end that isn't an answer."""
    if not isinstance(messages, list):
        return
    for index, message in enumerate(messages):
        if isinstance(message, dict):
            unknown = sorted(key for key in message.keys() - _MESSAGE_KEYS if message[key] is not None)
            for key in unknown:
                yield Fault(f", messages[{index}]: contains an extra {_quoted(key)}.", EXTRA_KEY)
    last = messages[-1] if messages else None
    if isinstance(last, dict) and last.get("role") in ("system", "developer", "user", "tool"):
        yield Fault(f", messages[{len(messages) - 1}].role: the last message must be the assistant's")


def _tool_faults(tools: Any) -> Iterator[Fault]:
    """Yield what is wrong with the tools that the reader of rows takes."""
    if not isinstance(tools, list):
        return
    if len(tools) > _MOST_TOOLS:
        yield Fault(f", tools: {len(tools)} tools, and at most {_MOST_TOOLS} are taken")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            continue
        name, parameters = function.get("name"), function.get("parameters")
        if isinstance(name, str) and not _FUNCTION_NAME.fullmatch(name):
            yield Fault(f", tools[{index}].function.name: must be 1 to 64 letters, digits, '_' and '-'")
        if parameters is not None and not isinstance(parameters, dict):
            yield Fault(f", tools[{index}].function.parameters: isn't a JSON Schema object")


def _call_faults(conversation: Conversation) -> Iterator[Fault]:
    for index, message in enumerate(conversation.messages):
        for number, call in enumerate(message.tool_calls):
            if not _FUNCTION_NAME.fullmatch(call.name):
                place = f"messages[{index}].tool_calls[{number}].function.name"
                yield Fault(f", {place}: must be 1 to 64 letters, digits, '_' and '-'")


def _quoted(key: str) -> str:
    return f'"{key[:60]}"'
