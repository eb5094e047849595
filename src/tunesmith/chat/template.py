"""What a chat template is given: messages in the form that Hugging Face templates expect.

A template that knows nothing of tools (SmolLM2's) gets them as text in the Hermes form (Teknium et al. 2024,
arXiv:2408.11857): the tools in the system prompt, calls as `<tool_call>{...}</tool_call>`, results as
`<tool_response>...</tool_response>` in a user turn. So tools are never lost silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta

from tunesmith.data.examples import Message

#: For bases that come without a chat template: roles as headings, turns ended by the end-of-text token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)

_TOOLS_HEADING = (
    "You may call these functions. Call one by writing a JSON object with its name and arguments between "
    "<tool_call> and </tool_call>.\n<tools>\n"
)


def understands_tools(template: str) -> bool:
    """Whether the template reads the variable `tools`."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701  (parsed, never rendered)
    try:
        return "tools" in meta.find_undeclared_variables(environment.parse(template))
    except TemplateSyntaxError:
        return "tools" in template  # Hugging Face's own tags, such as `generation`, are not plain Jinja


def template_messages(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, native_tools: bool
) -> list[dict[str, Any]]:
    """Return the messages as the plain dictionaries that a chat template reads."""
    if native_tools:
        return [_native(message) for message in messages]
    written: list[dict[str, Any]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        plain = _hermes(message)
        if before is not None and before.role == message.role == "tool":
            written[-1]["content"] += f"\n{plain['content']}"  # the results of one turn's calls are one turn
        else:
            written.append(plain)
    if tools:
        heading = _TOOLS_HEADING + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + "\n</tools>"
        if written and written[0]["role"] == "system":
            written[0] = {"role": "system", "content": f"{written[0]['content']}\n\n{heading}"}
        else:
            written.insert(0, {"role": "system", "content": heading})
    return written


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _arguments(text: str) -> Any:
    """Return a call's arguments as an object where they are one: templates write them as JSON themselves."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _native(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": _role(message), "content": message.content or ""}
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def _hermes(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.content or ''}\n</tool_response>"}
    calls = [
        "<tool_call>\n"
        + json.dumps({"name": call.name, "arguments": _arguments(call.arguments)}, ensure_ascii=False)
        + "\n</tool_call>"
        for call in message.tool_calls
    ]
    return {"role": _role(message), "content": "\n".join(filter(None, [message.content, *calls]))}
