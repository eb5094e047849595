"""What an example of a job's file must be: what rows must be in general, and OpenAI's rules on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.chat_rows import RowCheck, check_calls, read_chat, read_messages, read_tools
from tunesmith.data.examples import Message
from tunesmith.data.rows import Row

Form = Literal["chat", "preference", "prompt"]

_TOP_KEYS: Mapping[Form, frozenset[str]] = {
    "chat": frozenset({"messages", "tools", "parallel_tool_calls", "functions"}),
    "preference": frozenset({"input", "preferred_output", "non_preferred_output"}),
    "prompt": frozenset({"prompt", "completion"}),
}
_NEEDED: Mapping[Form, tuple[str, ...]] = {
    "chat": ("messages",),
    "preference": ("input", "preferred_output", "non_preferred_output"),
    "prompt": ("prompt", "completion"),
}
_INPUT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})
_OUTPUTS = ("preferred_output", "non_preferred_output")
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


def look_at(row: Row, method: str) -> Looked:
    """Return what is wrong with an example to learn from by a method, which takes examples of this form."""
    form = form_of(row.values)
    missing = [key for key in _NEEDED[form] if key not in row.values]
    if missing:
        return Looked([Fault(f" is missing key '{missing[0]}'")])
    # What else an example for reinforcement holds is for its grader.
    extra = () if method == "reinforcement" else row.values.keys() - _TOP_KEYS[form]
    faults = [Fault(f" contains an extra {_quoted(key)}.", EXTRA_KEY) for key in sorted(extra)]
    if form == "prompt":
        texts = [key for key in ("prompt", "completion") if not isinstance(row.values[key], str)]
        return Looked([*faults, *(Fault(f", {key}: isn't a text") for key in texts)])
    check = RowCheck(row.place)
    if form == "preference":
        messages = _read_preference(row.values, check, faults)
    elif method == "reinforcement":
        messages = _read_asked(row.values, "", check, faults)
    else:
        messages = _read_said(row.values, check, faults)
    faults += _call_faults(messages)
    faults += [Fault(f", {problem.reason}") for problem in check.problems]
    roles = {message.role for message in messages}
    return Looked(faults, has_a_question=not roles or bool(roles & {"system", "developer", "user"}))


def _read_said(values: Mapping[str, Any], check: RowCheck, faults: list[Fault]) -> tuple[Message, ...]:
    """Read a conversation whose answers are learnt; none where it can't be."""
    faults += _key_faults(values["messages"], "messages")
    faults += _end_faults(values["messages"])
    faults += _tool_faults(values.get("tools"), "tools")
    conversation = read_chat(values, check)
    return () if conversation is None else conversation.messages


def _read_asked(values: Mapping[str, Any], at: str, check: RowCheck, faults: list[Fault]) -> tuple[Message, ...]:
    """Read messages that are to be answered; `at` is where they stand, with a dot at its end."""
    faults += _key_faults(values.get("messages"), f"{at}messages")
    faults += _tool_faults(values.get("tools"), f"{at}tools")
    messages = read_messages(values.get("messages"), f"{at}messages", check)
    read_tools(values.get("tools"), check)
    if not isinstance(values.get("parallel_tool_calls"), bool | None):
        faults.append(Fault(f", {at}parallel_tool_calls: is neither true nor false"))
    check_calls(messages, f"{at}messages", check)
    return messages


def _read_preference(values: Mapping[str, Any], check: RowCheck, faults: list[Fault]) -> tuple[Message, ...]:
    """Read a prompt and two answers to it: texts, one message of the assistant each."""
    asked = values["input"]
    if not isinstance(asked, dict):
        faults.append(Fault(", input: isn't an object"))
        return ()
    extra = sorted(asked.keys() - _INPUT_KEYS)
    faults += [Fault(f", input: contains an extra {_quoted(key)}.", EXTRA_KEY) for key in extra]
    messages = _read_asked(asked, "input.", check, faults)
    for name in _OUTPUTS:
        output = values[name]
        if not isinstance(output, list) or len(output) != 1:
            faults.append(Fault(f", {name}: must be a list of one message"))
            continue
        faults += _key_faults(output, name)
        for message in read_messages(output, name, check):
            if message.role != "assistant":
                faults.append(Fault(f", {name}[0].role: must be 'assistant'"))
            elif message.content is None or message.tool_calls:
                faults.append(Fault(f", {name}[0]: must be a text, without tool calls"))
    return messages


def _key_faults(messages: Any, at: str) -> Iterator[Fault]:
    """Yield unknown keys of messages, which the reader of rows leaves to others."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            unknown = sorted(key for key in message.keys() - _MESSAGE_KEYS if message[key] is not None)
            for key in unknown:
                yield Fault(f", {at}[{index}]: contains an extra {_quoted(key)}.", EXTRA_KEY)


def _end_faults(messages: Any) -> Iterator[Fault]:
    """Yield an end that isn't an answer."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") in ("system", "developer", "user", "tool"):
        yield Fault(f", messages[{len(messages) - 1}].role: the last message must be the assistant's")


def _tool_faults(tools: Any, at: str) -> Iterator[Fault]:
    """Yield what is wrong with the tools that the reader of rows takes."""
    if not isinstance(tools, list):
        return
    if len(tools) > _MOST_TOOLS:
        yield Fault(f", {at}: {len(tools)} tools, and at most {_MOST_TOOLS} are taken")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            continue
        name, parameters = function.get("name"), function.get("parameters")
        if isinstance(name, str) and not _FUNCTION_NAME.fullmatch(name):
            yield Fault(f", {at}[{index}].function.name: must be 1 to 64 letters, digits, '_' and '-'")
        if parameters is not None and not isinstance(parameters, dict):
            yield Fault(f", {at}[{index}].function.parameters: isn't a JSON Schema object")


def _call_faults(messages: Sequence[Message]) -> Iterator[Fault]:
    for index, message in enumerate(messages):
        for number, call in enumerate(message.tool_calls):
            if not _FUNCTION_NAME.fullmatch(call.name):
                place = f"messages[{index}].tool_calls[{number}].function.name"
                yield Fault(f", {place}: must be 1 to 64 letters, digits, '_' and '-'")


def _quoted(key: str) -> str:
    return f'"{key[:60]}"'
