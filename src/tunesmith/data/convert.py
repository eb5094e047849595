"""Turn a row of a recognised form into a `Conversation`, or say what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tunesmith.data.chat_rows import (
    RowCheck,
    as_text,
    check_learnable,
    check_order,
    read_chat,
    read_messages,
    read_tools,
)
from tunesmith.data.examples import Conversation, Message, Role, ToolCall
from tunesmith.data.problems import RowProblem
from tunesmith.data.recognise import CONVERSATION_KEYS, Recognition, forms_of
from tunesmith.data.rows import Row

#: ShareGPT's speakers and OpenAI's roles.
_SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "bing": "assistant", "system": "system", "developer": "developer",
    "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


class Converter:
    """Converts the rows of one file.

    `ignored` counts, by key, the rows whose messages hold something that isn't learnt from.
    """

    def __init__(self, recognition: Recognition, *, system: str | None = None) -> None:
        """Convert rows of the recognised form, with `system` put before each row that has no system turn."""
        self.recognition = recognition
        self.system = system
        self.ignored: Counter[str] = Counter()
        self._read = {
            "chat": read_chat,
            "prompt_completion": _prompt_completion,
            "alpaca": _alpaca,
            "sharegpt": _sharegpt,
            "columns": self._columns,
        }[recognition.format]

    def convert(self, row: Row) -> Conversation | tuple[RowProblem, ...]:
        """Return the row's conversation, or all the reasons why it has none."""
        check = RowCheck(row.place)
        form = self.recognition.format
        forms = forms_of(row.values)
        if form != "columns" and form not in forms:
            self._refuse_other_form(row, forms[0] if forms else None, check)
            return tuple(check.problems)
        conversation = self._read(row.values, check)
        if conversation is None or check.problems:
            return tuple(check.problems)
        self.ignored.update(check.ignored)
        return self._with_system(conversation)

    def _refuse_other_form(self, row: Row, other: str | None, check: RowCheck) -> None:
        columns = ", ".join(f"`{column}`" for column in list(row.values)[:8]) or "no columns"
        looks = f", which is the form {other}" if other else ""
        check.refuse(
            "",
            f"This row has {columns}{looks}; the file's rows are {self.recognition.format}.",
            "Keep one form a file.",
            "mixed_formats",
        )

    def _with_system(self, conversation: Conversation) -> Conversation:
        has_own = any(message.role in ("system", "developer") for message in conversation.messages)
        if self.system is None or has_own:
            return conversation
        return dataclasses.replace(conversation, messages=(Message("system", self.system), *conversation.messages))

    def _columns(self, values: Mapping[str, Any], check: RowCheck) -> Conversation | None:
        mapping = self.recognition.mapping
        system = values.get(mapping["system"]) if "system" in mapping else None
        source = _words(values, mapping["input"], check)
        answer = _words(values, mapping["output"], check)
        return _one_turn(as_text(system) if system is not None else None, source, answer, check)


def _words(values: Mapping[str, Any], column: str, check: RowCheck) -> str:
    """Return a column's value as text, never blank; a blank one is noted in `check`."""
    value = values.get(column)
    if value is None:
        check.refuse(column, "is missing or null", "Fill it in, or leave the row out.", "missing_value")
        return ""
    text = as_text(value)
    if not text.strip():
        check.refuse(column, "is empty", "Fill it in, or leave the row out.", "empty_content")
    return text


def _one_turn(system: str | None, source: str, answer: str, check: RowCheck) -> Conversation | None:
    if check.problems:
        return None
    start = (Message("system", system),) if system and system.strip() else ()
    return Conversation((*start, Message("user", source), Message("assistant", answer)), place=check.place)


def _alpaca(values: Mapping[str, Any], check: RowCheck) -> Conversation | None:
    """Join instruction and input with a blank line, as the words of the user."""
    instruction = _words(values, "instruction", check)
    answer = _words(values, "output", check)
    extra = values.get("input")
    extra = "" if extra is None else as_text(extra)
    source = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    system = values.get("system")
    return _one_turn(None if system is None else as_text(system), source, answer, check)


def _prompt_completion(values: Mapping[str, Any], check: RowCheck) -> Conversation | None:
    """Read prompt and completion as texts or as messages; only the completion is learnt."""
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, list):
        asked = tuple(
            dataclasses.replace(message, weight=0) if message.role == "assistant" else message
            for message in read_messages(prompt, "prompt", check)
        )
    else:
        asked = (Message("user", _words(values, "prompt", check)),)
    if isinstance(completion, list):
        answered = read_messages(completion, "completion", check)
    else:
        answered = (Message("assistant", _words(values, "completion", check)),)
    check_order((*asked, *answered), "prompt + completion", check)
    if not check.problems:
        check_learnable(answered, "completion", check)
    tools = read_tools(values.get("tools"), check)
    return None if check.problems else Conversation((*asked, *answered), tools, check.place)


def _sharegpt(values: Mapping[str, Any], check: RowCheck) -> Conversation | None:
    key = next(key for key in CONVERSATION_KEYS if isinstance(values.get(key), list))
    turns = values[key]
    if turns and isinstance(turns[0], dict) and "role" in turns[0] and "from" not in turns[0]:
        return read_chat({**values, "messages": turns}, check)
    messages: list[Message] = []
    system = values.get("system")
    if isinstance(system, str) and system.strip():
        messages.append(Message("system", system))
    waiting: str | None = None
    for index, turn in enumerate(turns):
        message = _sharegpt_turn(turn, f"{key}[{index}]", waiting, check)
        if message is not None:
            waiting = message.tool_calls[0].id if message.tool_calls else None
            messages.append(message)
    if not check.problems:
        check_learnable(tuple(messages), key, check)
    tools = read_tools(values.get("tools"), check)
    return None if check.problems else Conversation(tuple(messages), tools, check.place)


def _sharegpt_turn(turn: Any, at: str, waiting: str | None, check: RowCheck) -> Message | None:
    """Return one turn; `waiting` is the id of a function call that the turn before made."""
    if not isinstance(turn, dict):
        check.refuse(at, "isn't an object", 'Write {"from": ..., "value": ...}.', "wrong_type")
        return None
    speaker, words = turn.get("from"), turn.get("value")
    role = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if speaker is None:
        check.refuse(at, "has no `from`", "Add `from`: human, gpt, system or tool.", "missing_role")
    elif role is None:
        check.refuse(f"{at}.from", f"{speaker!r} is no speaker", "Write human, gpt, system or tool.", "unknown_role")
    elif words is None:
        check.refuse(f"{at}.value", "is null or missing", "Write the turn's words.", "null_content")
    elif not isinstance(words, str):
        check.refuse(f"{at}.value", "isn't a text", "Write a text in quotes.", "wrong_type")
    elif speaker.lower() == "function_call":
        return _function_call(words, at, check)
    elif not words.strip() and role != "tool":
        check.refuse(f"{at}.value", "is empty", "Write the turn's words, or leave it out.", "empty_content")
    else:
        return _weighted(Message(role, words, tool_call_id=waiting if role == "tool" else None), turn, at, check)
    return None


def _weighted(message: Message, turn: Mapping[str, Any], at: str, check: RowCheck) -> Message | None:
    weight = turn.get("weight")
    if weight is None:
        return message
    if message.role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
        check.refuse(f"{at}.weight", "isn't 0 or 1 on a gpt turn", "Write 0 or 1, or leave it out.", "bad_weight")
        return None
    return dataclasses.replace(message, weight=int(weight))


def _function_call(words: str, at: str, check: RowCheck) -> Message | None:
    """Read a turn such as `{"name": "dim", "arguments": {"room": "hall"}}`."""
    try:
        call = json.loads(words)
    except ValueError:
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        check.refuse(
            f"{at}.value", "isn't a function call", 'Write {"name": ..., "arguments": {...}}.', "bad_tool_arguments"
        )
        return None
    # The form has no ids; the turn's place in the row gives one.
    call_id = f"call_{at.partition('[')[2].rstrip(']')}"
    return Message("assistant", None, tool_calls=(ToolCall(call_id, call["name"], as_text(call.get("arguments", {}))),))
