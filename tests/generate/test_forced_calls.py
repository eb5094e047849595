"""Whatever a model would like to say: forced to call, it calls, and the arguments are what the function takes."""

from __future__ import annotations

import json
import random
from functools import cache

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calling_models import KINDS, form, renderer
from tunesmith.chat.call_grammar import call_grammar
from tunesmith.chat.call_stream import read_calls
from tunesmith.errors import RequestError
from tunesmith.generate.constraints import Constraints
from tunesmith.generate.text import TextStream

BOOK = {
    "type": "object",
    "properties": {"people": {"type": "integer", "minimum": 1, "maximum": 9}, "at": {"enum": ["seven", "eight"]}},
    "required": ["people", "at"],
    "additionalProperties": False,
}
PAY = {"properties": {"by": {"type": "array", "items": {"enum": [1, "é", None]}, "maxItems": 2}, "x-odd": {}}}
TOOLS = [
    {"function": {"name": "book", "strict": True, "parameters": BOOK}},
    {"function": {"name": "book_all"}},
    {"function": {"name": "pay", "parameters": {**PAY, "additionalProperties": False, "unevaluatedItems": False}}},
]
SCHEMAS = {"book": BOOK, "book_all": {"maxProperties": 0}, "pay": PAY}


@cache
def constraints(kind: str) -> Constraints:
    r = renderer(kind)
    return Constraints(r, len(r.tokenizer), r.end_of_turn_ids)


def matcher(kind, **choice):
    return constraints(kind).compile(
        call_grammar(form(kind), TOOLS, **{"is_required": True, "is_several": True, **choice})
    )


def allowed(matcher, size: int) -> list[int]:
    mask = torch.zeros(-(-size // 32), dtype=torch.int32)
    matcher.allowed(mask)
    return [i for i in range(size) if (int(mask[i // 32]) >> (i % 32)) & 1]


def text_of(kind, ids) -> str:
    stream = TextStream(renderer(kind), (), form(kind).shown_ids)
    return "".join(map(stream.add, ids)) + stream.finish()


def walk(kind, seed: int, most_tokens: int, **choice) -> tuple[str, bool]:
    """Any tokens that are allowed, short ones for choice; the text, and whether it came to an end."""
    r, rng = renderer(kind), random.Random(seed)
    following, ids = matcher(kind, **choice), []
    for _ in range(most_tokens):
        tokens = allowed(following, len(r.tokenizer))
        ends = [i for i in tokens if i in r.end_of_turn_ids]
        others = [i for i in tokens if i not in ends]
        if ends and (not others or rng.random() < 0.5):
            return text_of(kind, ids), True
        marks = [i for i in tokens if i in form(kind).shown_ids or r.token_text(i) == "<tool_call>"]
        ids.append(rng.choice(marks if marks and rng.random() < 0.5 else others))
        following.accept(ids[-1])
    return text_of(kind, ids), False


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.booleans())
def test_a_forced_answer_is_calls_that_fit(kind, seed, is_several):
    text, is_whole = walk(kind, seed, 150, is_several=is_several)
    content, calls = read_calls(form(kind), text, list(SCHEMAS), is_certain=True)
    if is_whole:
        assert content is None and calls and (is_several or len(calls) == 1)
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        assert [c.arguments for c in read_calls(form(kind), text, list(SCHEMAS))[1]] == [c.arguments for c in calls]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6))
def test_a_free_answer_is_words_or_calls_that_fit(kind, seed):
    text, is_whole = walk(kind, seed, 120, is_required=False)
    content, calls = read_calls(form(kind), text, list(SCHEMAS), is_certain=True)
    if is_whole:
        assert calls or content == text
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def accepts(kind, text: str, **choice) -> bool:
    """Whether a whole answer is one of the grammar's."""
    r = renderer(kind)
    following = matcher(kind, **choice)
    for token_id in r.tokenizer.encode(text, add_special_tokens=False):
        if token_id not in allowed(following, len(r.tokenizer)):
            return False
        following.accept(token_id)
    return bool(r.end_of_turn_ids & set(allowed(following, len(r.tokenizer))))


def written(kind, name: str, arguments: str) -> str:
    f = form(kind)
    middle, tail = (text.replace(f.call_id, "a1B2c3D4e") for text in (f.middle, f.tail))
    return f.lead + name + middle + arguments + tail


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_template_writes_is_allowed_and_nothing_else(kind):
    f = form(kind)
    good, bad = '{"people": 4, "at": "seven"}', '{"people": 40, "at": "seven"}'
    one = f.opening + written(kind, "book", good) + f.closing
    wrong = f.opening + written(kind, "book", bad) + f.closing
    words = "" if f.is_bare else 'Sure, {"I" will' + f.glue
    assert accepts(kind, one) and not accepts(kind, wrong)
    assert not accepts(kind, "Sure.") and not accepts(kind, "")
    assert not accepts(kind, f.opening + written(kind, "sing", "{}") + f.closing)
    free = {"is_required": False}
    assert accepts(kind, "Sure.", **free) and accepts(kind, "", **free)
    assert accepts(kind, words + one, **free) and not accepts(kind, words + wrong, **free)
    if f.between is not None:
        two = f.opening + written(kind, "book", good) + f.between + written(kind, "book_all", "{}") + f.closing
        assert accepts(kind, two) and accepts(kind, words + two, **free)
        assert not accepts(kind, two, is_several=False) and not accepts(kind, words + two, is_several=False, **free)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_in_json_or_calls(kind):
    answer = {"is_required": False, "answer_schema": {"type": "object", "required": ["name"]}}
    if form(kind).is_bare:
        with pytest.raises(RequestError) as refused:
            matcher(kind, **answer)
        assert refused.value.param == "response_format"
        return
    assert accepts(kind, '{"name": "Maria"}', **answer) and not accepts(kind, '{"age": 3}', **answer)
    assert accepts(kind, form(kind).opening + written(kind, "book_all", "{}") + form(kind).closing, **answer)
    assert not accepts(kind, "Sure.", **answer)


def test_too_many_tools_are_refused():
    many = [{"function": {"name": f"f{i}", "parameters": {"description": "x" * 1000}}} for i in range(128)]
    with pytest.raises(RequestError) as refused:
        call_grammar(form("qwen2"), many, is_required=True, is_several=True)
    assert (refused.value.code, refused.value.param) == ("tools_too_long", "tools")
