"""Rows of every form become conversations; what is wrong with one is said by field."""

import pytest

from tunesmith.data.convert import Converter
from tunesmith.data.examples import Conversation, Message, Place, ToolCall
from tunesmith.data.recognise import recognise
from tunesmith.data.rows import Row

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "ho"}
CALL = {"id": "c1", "type": "function", "function": {"name": "dim", "arguments": '{"room": "hall"}'}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
REPLY = {"role": "tool", "tool_call_id": "c1", "content": ""}
TOOL = {"type": "function", "function": {"name": "dim", "parameters": {"type": "object", "properties": {}}}}


def convert(values, *, form="auto", mapping=None, system=None):
    row = Row(Place("f.jsonl", 4), values)
    return Converter(recognise([row], file="f.jsonl", format=form, mapping=mapping), system=system).convert(row)


def said(values, **options):
    result = convert(values, **options)
    assert isinstance(result, Conversation), result
    return [(message.role, message.content) for message in result.messages]


def test_chat_with_tools_and_weights():
    result = convert(
        {"messages": [USER, CALLING, REPLY, {**BOT, "weight": 0}, USER, {**BOT, "weight": 1}], "tools": [TOOL]}
    )
    assert result.messages[1] == Message("assistant", None, tool_calls=(ToolCall("c1", "dim", '{"room": "hall"}'),))
    assert result.messages[2] == Message("tool", "", tool_call_id="c1")
    assert [message.weight for message in result.messages] == [None, None, None, 0, None, 1]
    assert result.tools == (TOOL,)
    assert result.place == Place("f.jsonl", 4)


def test_text_parts_are_joined_and_nulls_are_absent():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert said({"messages": [{**USER, "content": parts, "name": None, "tool_calls": None}, BOT]})[0] == ("user", "ab")


@pytest.mark.parametrize(
    ("messages", "field", "code"),
    [
        ([USER, {"role": "robot", "content": "x"}], "messages[1].role", "unknown_role"),
        ([USER, {"role": "gpt", "content": "x"}], "messages[1].role", "unknown_role"),
        ([USER, {"content": "x"}], "messages[1]", "missing_role"),
        ([USER], "messages", "no_assistant_turn"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content", "null_content"),
        ([{"role": "user"}, BOT], "messages[0].content", "null_content"),
        ([{"role": "user", "content": " \n"}, BOT], "messages[0].content", "empty_content"),
        ([USER, {"role": "assistant", "content": ""}], "messages[1].content", "empty_content"),
        ([{"role": "user", "content": 3}, BOT], "messages[0].content", "wrong_type"),
        (["hi", BOT], "messages[0]", "wrong_type"),
        ("hi", "messages", "no_messages"),
        ([], "messages", "no_messages"),
        (None, "messages", "no_messages"),
        ([USER, REPLY, BOT], "messages[1].tool_call_id", "orphan_tool_reply"),
        ([USER, CALLING, {**REPLY, "tool_call_id": "c2"}], "messages[2].tool_call_id", "orphan_tool_reply"),
        ([USER, CALLING, {"role": "tool", "content": "x"}], "messages[2].tool_call_id", "orphan_tool_reply"),
        ([USER, CALLING, BOT], "messages[2]", "unanswered_tool_call"),
        ([USER, {**BOT, "weight": 2}], "messages[1].weight", "bad_weight"),
        ([USER, {**BOT, "weight": True}], "messages[1].weight", "bad_weight"),
        ([USER, {**BOT, "weight": "1"}], "messages[1].weight", "bad_weight"),
        ([{**USER, "weight": 1}, BOT], "messages[0].weight", "bad_weight"),
        ([USER, {**BOT, "weight": 0}], "messages", "nothing_to_learn"),
        ([USER, {**BOT, "function_call": {"name": "f"}}], "messages[1].function_call", "legacy_function_call"),
        ([{"role": "function", "content": "x"}, BOT], "messages[0].role", "legacy_function_call"),
        ([{**USER, "tool_calls": [CALL]}, BOT], "messages[0].tool_calls", "misplaced_tool_call"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}], "messages[1].tool_calls[0]", "wrong_type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, BOT],
            "messages[0].content[0]",
            "unsupported_content",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}],
            "messages[1].tool_calls[0].function.arguments",
            "bad_tool_arguments",
        ),
    ],
)
def test_broken_chat_rows(messages, field, code):
    problems = convert({"messages": messages}, form="chat")
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]
    assert problems[0].fix and str(problems[0]).startswith("f.jsonl, line 4: ")


def test_all_problems_of_a_row_are_found():
    problems = convert({"messages": [{"role": "x"}, {**BOT, "weight": 5}, {"content": "y"}], "tools": [{}]})
    assert [p.code for p in problems] == ["unknown_role", "bad_weight", "missing_role", "bad_tool"]


def test_parallel_tool_calls_false_allows_one_call():
    two = {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    assert convert({"messages": [USER, two], "parallel_tool_calls": False})[0].code == "parallel_tool_calls"
    assert isinstance(convert({"messages": [USER, two], "parallel_tool_calls": True}), Conversation)


def test_keys_that_are_not_learnt_are_counted():
    row = Row(Place("f", 1), {"messages": [USER, {**BOT, "thinking": "hm", "audio": None}]})
    converter = Converter(recognise([row], file="f"))
    converter.convert(row)
    assert dict(converter.ignored) == {"thinking": 1}


def test_system_is_put_before_rows_without_one():
    assert said({"messages": [USER, BOT]}, system="S")[0] == ("system", "S")
    own = {"role": "developer", "content": "D"}
    assert said({"messages": [own, USER, BOT]}, system="S")[0] == ("developer", "D")


def test_prompt_completion_texts_and_messages():
    assert said({"prompt": "2+2=", "completion": " 4"}) == [("user", "2+2="), ("assistant", " 4")]
    result = convert({"prompt": [USER, BOT, USER], "completion": [BOT]})
    assert [message.is_learnt for message in result.messages] == [False, False, False, True]
    assert convert({"prompt": "x", "completion": ""})[0].field == "completion"
    assert convert({"prompt": [{"role": "x"}], "completion": "y"})[0].field == "prompt[0].role"


def test_alpaca():
    assert said({"instruction": "Add", "input": "1 2", "output": "3", "system": ""}) == [
        ("user", "Add\n\n1 2"),
        ("assistant", "3"),
    ]
    assert said({"instruction": "Sing", "input": None, "output": "la", "system": "S"})[0] == ("system", "S")
    assert convert({"instruction": "Sing", "output": None})[0].field == "output"


def test_sharegpt():
    turns = [("system", "S"), ("human", "a"), ("gpt", "b"), ("tool", "t"), ("gpt", "c")]
    values = {"conversations": [{"from": speaker, "value": words} for speaker, words in turns]}
    assert [role for role, _ in said(values)] == ["system", "user", "assistant", "tool", "assistant"]
    assert said({"conversation": [USER, BOT]}) == [("user", "hi"), ("assistant", "ho")]


def test_sharegpt_function_calls():
    values = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": '[{"name": "f", "parameters": {}}]',
    }
    result = convert(values)
    assert result.messages[1].tool_calls == (ToolCall("call_1", "f", '{"x": 1}'),)
    assert result.messages[2].tool_call_id == "call_1"
    assert result.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize(
    ("turn", "field", "code"),
    [
        ({"from": "alien", "value": "x"}, "conversations[1].from", "unknown_role"),
        ({"value": "x"}, "conversations[1]", "missing_role"),
        ({"from": "gpt", "value": None}, "conversations[1].value", "null_content"),
        ({"from": "gpt", "value": " "}, "conversations[1].value", "empty_content"),
        ({"from": "human", "value": "x"}, "conversations", "no_assistant_turn"),
    ],
)
def test_broken_sharegpt_rows(turn, field, code):
    problems = convert({"conversations": [{"from": "human", "value": "a"}, turn]})
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]


def test_columns_write_objects_as_json_text():
    mapping = {"input": "q", "output": "a", "system": "s"}
    values = {"q": "Book", "a": {"name": "Zoë", "n": [1, True]}, "s": "Be brief"}
    assert said(values, mapping=mapping) == [
        ("system", "Be brief"),
        ("user", "Book"),
        ("assistant", '{"name": "Zoë", "n": [1, true]}'),
    ]
    assert said({"q": 1, "a": False}, mapping={"input": "q", "output": "a"})[1] == ("assistant", "false")
    assert convert({"q": "x", "a": None}, mapping={"input": "q", "output": "a"})[0].code == "missing_value"


def test_another_form_among_chat_rows_is_named():
    chat = Row(Place("f", 1), {"messages": [USER, BOT]})
    pair = Row(Place("f", 2), {"input": {}, "preferred_output": [], "non_preferred_output": []})
    problems = Converter(recognise([chat], file="f")).convert(pair)
    assert problems[0].code == "mixed_formats"
    assert "`preferred_output`" in problems[0].message


def test_a_form_that_the_spec_names_is_taken_where_a_row_has_several():
    values = {"messages": [USER, BOT], "prompt": "p", "completion": "c", "instruction": "i", "output": "o"}
    assert said(values)[0] == ("user", "hi")
    assert said(values, form="prompt_completion")[0] == ("user", "p")
    assert said(values, form="alpaca")[0] == ("user", "i")
