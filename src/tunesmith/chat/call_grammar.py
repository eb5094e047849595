"""Grammars under which every call that a model writes can be read, and fits the function that it calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.chat.tool_calls import ToolCallFormat
from tunesmith.errors import RequestError
from tunesmith.specs.generation import GrammarSpec

_MOST_CHARACTERS = 100_000
#: Some space between the parts of an answer in JSON, as line breaks and indentation need it, but not without end.
_SPACE = {"whitespace_pattern": r" |\n {0,40}|\n\t{0,10}"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def call_grammar(
    form: ToolCallFormat,
    tools: Sequence[Mapping[str, Any]],
    *,
    is_required: bool,
    is_several: bool,
    answer_schema: Mapping[str, Any] | None = None,
) -> GrammarSpec:
    """Return the grammar of answers that call these functions.

    Args:
        form: how the model writes calls.
        tools: the functions, as OpenAI's `tools` objects. Arguments follow `parameters`; what a schema asks beyond
            what the grammar engine knows is ignored for functions that aren't `strict`, and refused for those.
        is_required: the answer is one or more calls; else it is free, and what begins as a call becomes one.
        is_several: several calls are fine, where the model can write them.
        answer_schema: an answer without calls is JSON of this schema, if it needn't call.

    Raises:
        RequestError: the schemas are too long together, or JSON answers can't be told from this model's calls.
    """
    rules = ["%llguidance {}"]
    opening = _symbols(form, form.opening)
    if is_required:
        rules.append(f"start: {_tag(form)} calls")
    elif answer_schema is not None:
        rules += _json_start(form, answer_schema)
    else:
        rules += _free_start(form)
        opening = _symbols(form, _behind_trigger(form))
    more = is_several and form.between is not None
    repeated = f"({_symbols(form, form.between or '')} call)*" if more else ""
    rules.append(f"calls: {opening} call {repeated} closing")
    rules.append(f"closing: {_symbols(form, form.closing)}")
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
    for number, tool in enumerate(tools):
        function = tool["function"]
        name = function["name"] if form.name_key is None else json.dumps(function["name"], ensure_ascii=False)[1:-1]
        head = _symbols(form, form.lead) + " " + json.dumps(name) + " " + _symbols(form, form.middle)
        rules.append(f"call_{number}: {head} arguments_{number} {_symbols(form, form.tail)}")
        rules.append(f"arguments_{number}: %json {json.dumps(_arguments_schema(form, function))}")
    rules.append("CALL_ID: /[a-zA-Z0-9]{9}/")
    grammar = "\n".join(rules)
    if len(grammar) > _MOST_CHARACTERS:
        raise RequestError(
            f"The tools are too long to force calls of them: {len(grammar):,} characters, at most "
            f"{_MOST_CHARACTERS:,} are possible.",
            fix="Offer fewer tools, shorten their schemas, or leave the choice to the model.",
            code="tools_too_long",
            param="tools",
        )
    return GrammarSpec(grammar=grammar)


def _arguments_schema(form: ToolCallFormat, function: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(function.get("parameters") or _NO_ARGUMENTS)
    schema.setdefault("type", "object")
    item, key = form.separators
    settings = {"lenient": not function.get("strict"), "whitespace_flexible": False}
    return {**schema, "x-guidance": settings | {"item_separator": item, "key_separator": key}}


def _json_start(form: ToolCallFormat, schema: Mapping[str, Any]) -> list[str]:
    """Return rules for an answer that is JSON of a schema, or calls.

    Raises:
        RequestError: both begin alike.
    """
    if form.is_bare:
        raise RequestError(
            "This model writes its tool calls as plain JSON, so they can't be told from answers in JSON.",
            fix="Leave out 'response_format' or 'tools', or set 'tool_choice' to 'required' or 'none'.",
            code="unsupported_parameter",
            param="response_format",
        )
    return ["start: answer | calls", f"answer: %json {json.dumps({**schema, 'x-guidance': _SPACE})}"]


def _free_start(form: ToolCallFormat) -> list[str]:
    """Return rules for an answer that may say anything until what marks a call; from there on it is one."""
    if form.is_bare:
        return [f"start: WORDS | {_tag(form)} calls", r"WORDS: /(\s*[^{\s](.|\n)*)?/"]
    words = r"WORDS: /(.|\n)*/"
    trigger = _trigger(form)
    if _special_id(form, trigger) is not None:  # no text holds it, so words end there by themselves
        return [f"start: WORDS | WORDS {_symbols(form, trigger)} calls", words]
    return ["start: WORDS | trigger calls", words, f"trigger[lazy]: WORDS {json.dumps(trigger)}"]


def _trigger(form: ToolCallFormat) -> str:
    return form.atoms(form.opening)[0]


def _behind_trigger(form: ToolCallFormat) -> str:
    return "" if form.is_bare else form.opening.partition(_trigger(form))[2]


def _tag(form: ToolCallFormat) -> str:
    return "" if form.tag is None else f"<[{dict(form.added)[form.tag]}]>?"


def _symbols(form: ToolCallFormat, text: str) -> str:
    """Return what stands for `text` in a grammar: special tokens, which aren't text, by their ids."""
    symbols = []
    words = ""
    for piece in [*form.pieces(text), ""]:
        token_id = _special_id(form, piece)
        if token_id is None and piece not in ("", form.call_id):
            words += piece
            continue
        symbols += [json.dumps(words)] if words else []
        symbols += ["CALL_ID"] if piece == form.call_id else [f"<[{token_id}]>"] if token_id is not None else []
        words = ""
    return " ".join(symbols)


def _special_id(form: ToolCallFormat, name: str) -> int | None:
    token_id = dict(form.added).get(name)
    return token_id if token_id in form.shown_ids else None
