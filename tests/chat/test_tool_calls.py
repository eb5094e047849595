"""Calls that a template writes are read back as they were, whole or in pieces; everything else stays text."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calling_models import KINDS, NAMES, form, renderer
from tiny_models import tiny_tokenizer
from tunesmith.chat.call_probe import find_format
from tunesmith.chat.call_stream import CallStream, read_calls
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation, Message, ToolCall

NO_CALLS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ 'x' if tools }}{{ eos_token }}{% endfor %}"
_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
_TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "</call>", "{", "}", '"', "\\", "\n"]
        ),
        st.text(_CHARACTERS, max_size=5),
    ),
    max_size=5,
).map("".join)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)
_CALL = st.builds(
    lambda name, arguments: ToolCall("call_any-ID_7", name, json.dumps(arguments)),
    st.sampled_from(NAMES),
    st.dictionaries(_TEXT, _JSON, max_size=3),
)
#: Words that no template trims, and that aren't a call's beginning.
_WORDS = st.none() | st.text(st.sampled_from("ab <{[\n"), max_size=12).map(lambda text: f"w{text}")


@st.composite
def answers(draw):
    kind = draw(st.sampled_from(KINDS))
    count = 1 if form(kind).between is None else 3
    calls = draw(st.lists(_CALL, min_size=1, max_size=count))
    return kind, Message("assistant", draw(_WORDS), tool_calls=tuple(calls))


def written(kind: str, message: Message) -> str:
    """The text of a reply as it would be generated."""
    r = renderer(kind)
    tools = tuple({"type": "function", "function": {"name": name}} for name in NAMES)
    sequence = r.for_training(Conversation((Message("user", "Go"), message), tools))[-1]
    ids = itertools.compress(sequence.token_ids, sequence.learnt)
    reply = itertools.takewhile(lambda token_id: token_id not in r.end_of_turn_ids, ids)
    shown = (i for i in reply if i not in r.special_ids or i in form(kind).shown_ids)
    return b"".join(map(r.token_bytes, shown)).decode()


def facts(calls) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


def streamed(kind: str, parts, *, is_certain=False) -> tuple[list[str], list[list[str]]]:
    """Texts and calls, each call as its name and the pieces of its arguments."""
    stream = CallStream(form(kind), NAMES, is_certain=is_certain)
    texts, calls, ids = [], [], set()
    for pieces in [*(stream.add(part) for part in parts), stream.finish()]:
        texts.append(pieces.text)
        for piece in pieces.calls:
            assert bool(piece.name) == bool(piece.id)
            if piece.name:
                assert piece.index == len(calls) and piece.id not in ids and not piece.arguments
                ids.add(piece.id)
                calls.append([piece.name])
            else:
                assert piece.index == len(calls) - 1
                calls[-1].append(piece.arguments)
    return texts, calls


def cut(text: str, places) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=200, deadline=None)
@given(answers(), st.lists(st.integers(0, 10**6), max_size=12), st.booleans())
def test_calls_are_read_back_as_they_were_written(answer, places, is_certain):
    kind, message = answer
    text = written(kind, message)
    content, calls = read_calls(form(kind), text, NAMES, is_certain=is_certain)
    assert facts(calls) == facts(message.tool_calls)
    # Llama's and Mistral's templates leave the words of such a turn out.
    assert content == (None if kind in ("llama", "mistral") else message.content)
    assert all(call.id.startswith("call_") for call in calls)
    for parts in (list(text), cut(text, places)):
        texts, pieces = streamed(kind, parts, is_certain=is_certain)
        assert "".join(texts) == (content or "")
        assert [(name, "".join(rest)) for name, *rest in pieces] == [(call.name, call.arguments) for call in calls]


_MARKS = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", ", ", ";", "<|python_tag|>", "[ARGS]", "[CALL_ID]", "x",
    "\n", " ", "{", "}", '"', '{"name": "book", ', '"parameters": {"a": "b"}}', '"arguments": {"a": "b"}}',
    '{"name": "book", "arguments": {}}', '{"name": "book", "parameters": {}}', "book", '{"arguments": {}, ',
    '"name": "pay"}', "<calls><call>function<sep>", "\n```json\n", "\n```</call>", "</calls>",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.sampled_from(_MARKS), max_size=10), st.lists(st.integers(0, 10**6)))
def test_whatever_a_model_writes_a_stream_says_the_same_as_the_whole(kind, marks, places):
    text = "".join(marks)
    content, calls = read_calls(form(kind), text, NAMES)
    texts, pieces = streamed(kind, cut(text, places))
    assert "".join(texts) == (content or "")
    assert [(name, "".join(rest)) for name, *rest in pieces] == [(call.name, call.arguments) for call in calls]
    if not calls:
        assert content == text
    for call in calls:
        assert isinstance(json.loads(call.arguments), dict) and call.arguments in text and call.name in text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("qwen2", '<tool_call>\n{"name": "book", "arguments": {"a": 1\n</tool_call>'),
        ("qwen2", '<tool_call>\n{"name": "book", "arguments": {"a": NaN}}\n</tool_call>'),
        ("qwen2", '<tool_call>\n{"name": "book", "arguments": [1]}\n</tool_call>'),
        ("qwen2", '<tool_call>\n{"name": "book"}\n</tool_call>'),
        ("qwen2", '<tool_call>\n{"name": "book", "arguments": {"a": 1, "a": 2}}\n</tool_call>'),
        ("qwen2", "Use <tool_call> to call."),
        ("qwen2", "cut off <tool_"),
        ("mistral", '[TOOL_CALLS] [{"name": "book"'),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("llama", '{"name": "Maria", "parameters": {"age": 3}}'),
        ("llama", '{"name": "book", "age": 3}'),
        ("llama", 'Yes: {"name": "book", "parameters": {}}'),
        ("named", "[TOOL_CALLS]book(1)"),
    ],
)
def test_what_is_no_call_stays_text(kind, text):
    assert read_calls(form(kind), text, NAMES) == (text, ())


@pytest.mark.parametrize(
    ("kind", "text", "content", "arguments"),
    [
        ("qwen2", 'Sure.\n<tool_call>{"arguments": {"a":1}, "name": "book"}</tool_call>', "Sure.", ['{"a":1}']),
        ("qwen2", '\n\n<tool_call>\n{"name": "new", "arguments": { }}\n', None, ["{ }"]),
        ("qwen2", '<tool_call>{"name": "book", "arguments": {}}</tool_call> Done.', " Done.", ["{}"]),
        ("mistral", '[TOOL_CALLS] [{"name": "book", "arguments": {}}]', None, ["{}"]),
        ("mistral", '[TOOL_CALLS] [{"name": "book", "arguments": {}}, {"name": ', ', {"name": ', ["{}"]),
        ("llama", '<|python_tag|>{"name": "book", "parameters": {}}', None, ["{}"]),
        (
            "llama",
            '{"name": "book", "parameters": {}}; {"type": "function", "name": "book_all", "arguments": {"a": 1}}',
            None,
            ["{}", '{"a": 1}'],
        ),
        ("named", 'Ok[TOOL_CALLS]book[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]pay[CALL_ID]x[ARGS] {}', "Ok",
         ['{"a": 1}', "{}"]),
    ],
)  # fmt: skip
def test_models_may_write_calls_a_little_differently(kind, text, content, arguments):
    found, calls = read_calls(form(kind), text, NAMES)
    assert (found, [call.arguments for call in calls]) == (content, arguments)


def test_words_come_at_once_and_arguments_as_they_arrive():
    text = 'Sure, I will.\n<tool_call>\n{"name": "book", "arguments": {"people": 4, "at": "seven"}}\n</tool_call>'
    parts = cut(text, range(0, len(text), 3))
    texts, calls = streamed("qwen2", parts, is_certain=True)
    assert texts[1:5] == ["Sur", "e, ", "I w", "ill"] and len(calls[0]) > 8
    assert [call for call in streamed("qwen2", parts)[1]] == [["book", '{"people": 4, "at": "seven"}']]
    # An answer in JSON isn't held back once it can't be a call.
    texts, calls = streamed("llama", ['{"city": ', '"Rome"', "}"])
    assert texts == ['{"city": ', '"Rome"', "}", ""] and not calls
    # Cut off in the middle, the arguments are as long as they got.
    assert streamed("qwen2", [text[:-27]], is_certain=True)[1] == [["book", '{"people": 4, "']]
    assert read_calls(form("qwen2"), text[:-27], NAMES)[1] == ()


def test_a_template_that_writes_no_calls_has_no_form():
    assert find_format(ChatRenderer(tiny_tokenizer("qwen2"), NO_CALLS)) is None
    alone = {kind for kind in KINDS if form(kind).between is None}
    assert alone == {"llama"}
    marks = {kind: [renderer(kind).token_text(i) for i in form(kind).shown_ids] for kind in KINDS}
    assert {kind: names for kind, names in marks.items() if names} == {
        "llama": ["<|python_tag|>"],
        "mistral": ["[TOOL_CALLS]"],
        "named": ["[TOOL_CALLS]"],
    }
