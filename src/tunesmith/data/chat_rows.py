"""OpenAI's chat messages, checked: the form that every other form of rows is brought into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.data.examples import ROLES, Conversation, Message, Place, ToolCall
from tunesmith.data.problems import RowProblem
from tunesmith.data.strict_json import JsonFault, parse_json

_MESSAGE_KEYS = {
    "role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"
}  # fmt: skip
_FOREIGN_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}


class RowCheck:
    """Gathers what is wrong with one row, and which keys of its messages aren't learnt from."""

    def __init__(self, place: Place) -> None:
        """Start with nothing wrong."""
        self.place = place
        self.problems: list[RowProblem] = []
        self.ignored: set[str] = set()

    def refuse(self, field: str, message: str, fix: str, code: str) -> None:
        """Note one problem."""
        self.problems.append(RowProblem(self.place, field, message, fix, code))


def read_chat(values: Mapping[str, Any], check: RowCheck) -> Conversation | None:
    """Return the conversation of a row with `messages` and perhaps `tools`, or None with the reasons in `check`."""
    messages = read_messages(values.get("messages"), "messages", check)
    tools = read_tools(values.get("tools"), check)
    if values.get("functions") is not None:
        check.refuse(
            "functions",
            "this is the legacy form of tools",
            'Write `tools`: [{"type": "function", "function": {...}}].',
            "legacy_function_call",
        )
    parallel = values.get("parallel_tool_calls")
    if not isinstance(parallel, bool | None):
        check.refuse("parallel_tool_calls", "is neither true nor false", "Write true or false.", "wrong_type")
    if parallel is False:
        for index, message in enumerate(messages):
            if len(message.tool_calls) > 1:
                check.refuse(
                    f"messages[{index}].tool_calls",
                    f"{len(message.tool_calls)} calls in one turn, and parallel_tool_calls is false",
                    "Make one call a turn, or leave parallel_tool_calls out.",
                    "parallel_tool_calls",
                )
    check_order(messages, "messages", check)
    return None if check.problems else Conversation(messages, tools, check.place)


def read_messages(raw: Any, path: str, check: RowCheck) -> tuple[Message, ...]:
    """Return the messages that are right; the others are noted in `check` under `path[index]`."""
    if not isinstance(raw, list) or not raw:
        what = "is missing" if raw is None else "is empty" if raw == [] else "isn't a list of messages"
        check.refuse(path, what, 'Write a list of {"role": ..., "content": ...} objects.', "no_messages")
        return ()
    messages = []
    for index, item in enumerate(raw):
        at = f"{path}[{index}]"
        if isinstance(item, dict):
            message = _read_message({key: value for key, value in item.items() if value is not None}, at, check)
            if message is not None:
                messages.append(message)
        else:
            check.refuse(at, "isn't an object", 'Write {"role": ..., "content": ...}.', "wrong_type")
    return tuple(messages)


def _read_message(raw: dict[str, Any], at: str, check: RowCheck) -> Message | None:
    """Return one message, `raw` being without its null values."""
    before = len(check.problems)
    role = _read_role(raw, at, check)
    if role is None:
        return None
    check.ignored.update(raw.keys() - _MESSAGE_KEYS)
    if "function_call" in raw:
        check.refuse(
            f"{at}.function_call",
            "this is the legacy form of a tool call",
            'Write `tool_calls`: [{"id": ..., "type": "function", "function": {...}}] and answer it with role "tool".',
            "legacy_function_call",
        )
    tool_calls = _read_tool_calls(raw.get("tool_calls"), role, at, check)
    content = _read_content(raw, role, at, check, needed=not raw.get("tool_calls"))
    weight = raw.get("weight")
    if weight is not None:
        _check_weight(weight, role, at, check)
    for key in ("name", "tool_call_id"):
        if not isinstance(raw.get(key), str | None):
            check.refuse(f"{at}.{key}", "isn't a text", "Write a text or leave it out.", "wrong_type")
    if len(check.problems) > before:
        return None
    call_id = raw.get("tool_call_id") if role == "tool" else None
    return Message(
        role,  # type: ignore[arg-type]
        content,
        raw.get("name"),
        tool_calls,
        call_id,
        None if weight is None else int(weight),
    )


def _read_role(raw: dict[str, Any], at: str, check: RowCheck) -> str | None:
    role = raw.get("role")
    if role is None:
        check.refuse(at, "has no role", f"Add `role`: one of {', '.join(ROLES)}.", "missing_role")
    elif role == "function":
        check.refuse(
            f"{at}.role", '"function" is the legacy role', 'Write role "tool" with `tool_call_id`.',
            "legacy_function_call",
        )  # fmt: skip
    elif not isinstance(role, str) or role not in ROLES:
        meant = _FOREIGN_ROLES.get(role) if isinstance(role, str) else None
        fix = f'Write "{meant}".' if meant else f"Write one of {', '.join(ROLES)}."
        check.refuse(f"{at}.role", f"{_shown(role)} is no role", fix, "unknown_role")
    else:
        return role
    return None


def _read_content(raw: dict[str, Any], role: str, at: str, check: RowCheck, *, needed: bool) -> str | None:
    content = raw.get("content", raw.get("refusal") if role == "assistant" else None)
    at = f"{at}.content"
    if isinstance(content, list):
        content = _joined_parts(content, at, check)
        if content is None:
            return None
    if content is None:
        if role != "assistant" or needed:
            more = " and there are no tool_calls" if role == "assistant" else ""
            check.refuse(at, f"is null or missing{more}", "Write the turn's words.", "null_content")
        return None
    if not isinstance(content, str):
        check.refuse(at, f"{_shown(content)} isn't a text", "Write a text in quotes.", "wrong_type")
        return None
    if not content.strip() and role != "tool" and needed:
        check.refuse(at, "is empty", "Write the turn's words, or leave the turn out.", "empty_content")
        return None
    # An assistant that only calls tools says nothing; "" and null mean the same, and are learnt the same.
    return content if content or role != "assistant" else None


def _joined_parts(parts: list[Any], at: str, check: RowCheck) -> str | None:
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(text, str):
            texts.append(text)
        elif kind in ("image_url", "image", "input_image", "input_audio", "audio", "file", "video"):
            check.refuse(
                f"{at}[{index}]", f"parts of type {kind} can't be learnt from; texts can",
                "Leave this row out, or describe the part in words.", "unsupported_content",
            )  # fmt: skip
            return None
        else:
            check.refuse(f"{at}[{index}]", "isn't a text part", 'Write {"type": "text", "text": ...}.', "wrong_type")
            return None
    return "".join(texts)


def _check_weight(weight: Any, role: str, at: str, check: RowCheck) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        check.refuse(
            f"{at}.weight", f"{_shown(weight)} is no weight", "Write 0 (not learnt) or 1 (learnt).", "bad_weight"
        )
    elif role != "assistant":
        check.refuse(
            f"{at}.weight", f"only assistant messages have a weight, and this is a {role} message",
            "Leave `weight` out here; only the assistant's words are learnt.", "bad_weight",
        )  # fmt: skip


def _read_tool_calls(raw: Any, role: str, at: str, check: RowCheck) -> tuple[ToolCall, ...]:
    at = f"{at}.tool_calls"
    if raw is None or raw == []:
        return ()
    if role != "assistant":
        check.refuse(at, f"a {role} message can't call tools", "Only the assistant calls tools.", "misplaced_tool_call")
        return ()
    if not isinstance(raw, list):
        check.refuse(at, "isn't a list of calls", "Write a list of calls.", "wrong_type")
        return ()
    calls = (_read_tool_call(item, f"{at}[{index}]", check) for index, item in enumerate(raw))
    return tuple(call for call in calls if call is not None)


def _read_tool_call(raw: Any, at: str, check: RowCheck) -> ToolCall | None:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(function, dict) or raw.get("type", "function") != "function":
        form = 'Write {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}.'
        check.refuse(at, "isn't a function call", form, "wrong_type")
        return None
    call_id, name, arguments = raw.get("id"), function.get("name"), function.get("arguments")
    for field, value in (("id", call_id), ("function.name", name)):
        if not isinstance(value, str) or not value:
            check.refuse(f"{at}.{field}", "is missing or no text", "Write a text.", "wrong_type")
            return None
    if isinstance(arguments, dict):  # as some libraries write them
        arguments = as_text(arguments)
    try:
        valid = isinstance(arguments, str) and isinstance(parse_json(arguments.encode()), dict)
    except JsonFault:
        valid = False
    if not valid:
        check.refuse(
            f"{at}.function.arguments", "isn't a JSON object in a text",
            'Write the arguments as a text: "{\\"city\\": \\"Rome\\"}" ("{}" for none).', "bad_tool_arguments",
        )  # fmt: skip
        return None
    return ToolCall(str(call_id), str(name), str(arguments))


def read_tools(raw: Any, check: RowCheck) -> tuple[Mapping[str, Any], ...]:
    """Return a row's tools in OpenAI's form; a list as JSON text (in tables) and bare functions are taken too."""
    if isinstance(raw, str):
        try:
            raw = parse_json(raw.encode()) if raw.strip() else None
        except JsonFault:
            raw = "not JSON"
    if raw is None:
        return ()
    form = 'Write [{"type": "function", "function": {"name": ..., "parameters": {...}}}].'
    if not isinstance(raw, list):
        check.refuse("tools", "isn't a list of tools", form, "wrong_type")
        return ()
    tools = []
    for index, tool in enumerate(raw):
        if isinstance(tool, dict) and "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            tools.append(tool)
        else:
            check.refuse(f"tools[{index}]", "isn't a function with a name", form, "bad_tool")
    return tuple(tools)


def check_order(messages: tuple[Message, ...], path: str, check: RowCheck) -> None:
    """Note what is wrong with the messages' order: orphan tool replies, unanswered calls, nothing to learn.

    Says nothing when a message was already refused, because the order then can't be judged.
    """
    check_calls(messages, path, check)
    if not check.problems:
        check_learnable(messages, path, check)


def check_calls(messages: tuple[Message, ...], path: str, check: RowCheck) -> None:
    """Note the first tool reply without a call, or call without a reply; nothing when a message was already refused."""
    if check.problems:
        return
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id is None or message.tool_call_id not in waiting:
                given = "has no tool_call_id" if message.tool_call_id is None else (
                    f"answers the call {_shown(message.tool_call_id)}, which no turn before it makes"
                )  # fmt: skip
                check.refuse(
                    f"{path}[{index}].tool_call_id", f"this tool reply {given}",
                    "Put the assistant's tool_calls before it, with the same id.", "orphan_tool_reply",
                )  # fmt: skip
                return
            waiting.remove(message.tool_call_id)
        elif waiting:
            check.refuse(
                f"{path}[{index}]", f"the tool call {_shown(waiting[0])} isn't answered before this turn",
                'Put a message with role "tool" and its tool_call_id here.', "unanswered_tool_call",
            )  # fmt: skip
            return
        waiting.extend(call.id for call in message.tool_calls)


def check_learnable(messages: tuple[Message, ...], path: str, check: RowCheck) -> None:
    """Note when there is no assistant turn, or none that training learns."""
    if not any(message.role == "assistant" for message in messages):
        check.refuse(path, "has no assistant turn, so there is nothing to learn", "Add a reply.", "no_assistant_turn")
    elif not any(message.is_learnt for message in messages):
        check.refuse(
            path, "every assistant turn has weight 0, so there is nothing to learn",
            "Give at least one assistant turn weight 1, or leave `weight` out.", "nothing_to_learn",
        )  # fmt: skip


def as_text(value: Any) -> str:
    """Return a value as the text to learn: texts as they are, anything else as JSON on one line (`{"a": 1, "b": []}`).

    The JSON has a space after `,` and `:`, keys in the row's order, and characters unescaped.
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
