"""How a model writes tool calls, found out by letting its chat template write some.

Nothing is known by a model's name. Known calls are rendered, and where their names and arguments stand in what was
written is the form. So Hermes and Qwen (`<tool_call>{"name": .., "arguments": ..}</tool_call>`), Llama 3
(`{"name": .., "parameters": ..}`, nothing around it), Mistral (`[TOOL_CALLS][{..}, {..}]`, and the newer
`[TOOL_CALLS]name[ARGS]{..}`) and whatever is built like them are one case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.chat.call_stream import read_calls
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.chat.tool_calls import ToolCallFormat
from tunesmith.data.examples import Conversation, Message, ToolCall
from tunesmith.errors import DataError

#: Llama 3 was trained to put it before some calls; its templates leave it out.
_PYTHON_TAG = "<|python_tag|>"

_CALLS = (
    ToolCall("probe0001", "probe_first", '{"probe": "a value", "list": [1, {"deep": true}]}'),
    ToolCall("probe0002", "probe_second", '{"other": {"probe": 2}}'),
)
_TOOLS = tuple(
    {
        "type": "function",
        "function": {"name": call.name, "description": "A probe.", "parameters": {"type": "object", "properties": {}}},
    }
    for call in _CALLS
)
_WORDS = "Probing."


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a call stands in a text, and how it is written."""

    start: int
    end: int
    lead: str
    middle: str
    tail: str
    name_key: str | None = None
    arguments_key: str | None = None


def find_format(renderer: ChatRenderer) -> ToolCallFormat | None:
    """Return how the renderer's template writes tool calls; None if it can't, or in no way that reads back.

    It costs three short renderings: keep what it returns.
    """
    written = _write(renderer, None, _CALLS[:1])
    found = None if written is None else _find(written[0], _CALLS[0])
    if written is None or found is None:
        return None
    text, token_ids = written
    both = _write(renderer, None, _CALLS)
    if both is not None:
        token_ids += both[1]
    added = {str(token): token_id for token_id, token in renderer.tokenizer.added_tokens_decoder.items()}
    names = {name: token_id for name, token_id in added.items() if token_id in token_ids}
    form = ToolCallFormat(
        opening=text[: found.start],
        between=None,
        closing=text[found.end :],
        glue=_glue(renderer, text),
        lead=found.lead,
        middle=found.middle,
        tail=found.tail,
        name_key=found.name_key,
        arguments_key=found.arguments_key,
        call_id=_CALLS[0].id,
        added=tuple(names.items()),
        separators=_separators(text, json.loads(_CALLS[0].arguments)),
        tag=None,
        shown_ids=frozenset(names.values()) & renderer.special_ids,
    )
    if form.is_bare and _PYTHON_TAG in added:
        tag = added[_PYTHON_TAG]
        form = replace(form, tag=_PYTHON_TAG, added=(*form.added, (_PYTHON_TAG, tag)), shown_ids=form.shown_ids | {tag})
    if not _reads_back(form, text, _CALLS[:1]):
        return None
    several = None if both is None else _several(form, both[0])
    return form if several is None or both is None or not _reads_back(several, both[0], _CALLS) else several


def _several(form: ToolCallFormat, text: str) -> ToolCallFormat | None:
    """Return the form with what stands between the two calls in `text`; None if that differs from one call's form."""
    first, second = (_find(text, call) for call in _CALLS)
    if first is None or second is None or text[: first.start] != form.opening or text[second.end :] != form.closing:
        return None
    return replace(form, between=text[first.end : second.start].replace(_CALLS[1].id, form.call_id))


def _reads_back(form: ToolCallFormat, text: str, calls: Sequence[ToolCall]) -> bool:
    """Whether the calls are found in the text that they were written as, and nothing else."""
    content, read = read_calls(form, text, [call.name for call in calls])

    def facts(calls: Sequence[ToolCall]) -> list[tuple[str, Any]]:
        return [(call.name, json.loads(call.arguments)) for call in calls]

    return content is None and facts(read) == facts(calls)


def _write(renderer: ChatRenderer, words: str | None, calls: Sequence[ToolCall]) -> tuple[str, tuple[int, ...]] | None:
    """Return an answer that makes these calls: its text, special tokens by name, and its tokens; None if refused."""
    messages = (Message("user", "Probe."), Message("assistant", words, tool_calls=tuple(calls)))
    try:
        sequence = renderer.for_training(Conversation(messages, _TOOLS))[-1]
    except DataError:
        return None
    learnt = [token_id for token_id, is_learnt in zip(sequence.token_ids, sequence.learnt, strict=True) if is_learnt]
    ends = [at for at, token_id in enumerate(learnt) if token_id in renderer.end_of_turn_ids]
    token_ids = learnt[: ends[0]] if ends else learnt
    return b"".join(map(renderer.token_bytes, token_ids)).decode(errors="replace"), tuple(token_ids)


def _glue(renderer: ChatRenderer, alone: str) -> str:
    """Return the white space between words and calls; nothing if the template leaves out the words of such a turn."""
    written = _write(renderer, _WORDS, _CALLS[:1])
    text = "" if written is None else written[0].lstrip()
    if not text.startswith(_WORDS) or not text.endswith(alone):
        return ""
    glue = text[len(_WORDS) : len(text) - len(alone)]
    return glue if not glue.strip() else ""


def _separators(text: str, arguments: Any) -> tuple[str, str]:
    """Return what stands between the members of the arguments in `text`, and behind their names."""
    compact = (",", ":")
    return compact if json.dumps(arguments, separators=compact) in text else (", ", ": ")


def _find(text: str, call: ToolCall) -> _Found | None:
    """Return where `call` stands in `text`."""
    arguments = json.loads(call.arguments)
    name_at = text.find(call.name)
    inner = [(start, end) for start, end, value in _objects(text) if value == arguments and start > name_at]
    if name_at < 0 or not inner:
        return None
    arguments_at, arguments_end = inner[0]
    behind_name = name_at + len(call.name)
    for start, end, value in _objects(text):
        keys = {key: one for key, one in value.items() if one in (call.name, arguments)}
        if start < name_at and end >= arguments_end and list(keys.values()) == [call.name, arguments]:
            name_key, arguments_key = keys
            middle, tail = text[behind_name:arguments_at], text[arguments_end:end]
            return _Found(start, end, text[start:name_at], middle, tail, name_key, arguments_key)
    return _Found(name_at, arguments_end, "", text[behind_name:arguments_at], "")


def _objects(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Give each JSON object in `text`, also those inside others: its place and its value."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield start, end, value
        except ValueError:
            pass  # a brace that begins nothing
        start = text.find("{", start + 1)
