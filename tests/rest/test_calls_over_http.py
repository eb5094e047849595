"""Tool calls through the official client: they come when they must, fit their functions, and stream as they are."""

from __future__ import annotations

import json
import re
from typing import Literal

import jsonschema
import openai
import pydantic
import pytest

from server_process import running_server
from tiny_models import save_tiny_model, tiny_tokenizer

FAMILIES = ("qwen2", "llama", "mistral", "smollm2")
BOOK = {
    "type": "object",
    "properties": {"people": {"type": "integer", "minimum": 1, "maximum": 9}, "at": {"enum": ["seven", "eight"]}},
    "required": ["people", "at"],
    "additionalProperties": False,
}


class Book(pydantic.BaseModel):
    """The same, as the client's helper takes it."""

    people: Literal[3, 4]
    at: Literal["seven", "eight"]


def function(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [function("book", description="Book a table.", parameters=BOOK), function("leave")]
SCHEMAS = {"book": BOOK, "leave": {"type": "object", "maxProperties": 0}}
REGEX = {"structured_outputs": {"regex": "[a-z]+"}}
ASKED = [{"role": "user", "content": "A table for 4 at seven."}]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callers")
    models = [str(save_tiny_model(family, folder / family)) for family in FAMILIES]
    with (
        running_server(folder, folder / "home", models=models, dtype="float32", max_loaded_models=4) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        yield client


def ask(client, model, **settings):
    return client.chat.completions.create(
        **{"model": model, "messages": ASKED, "tools": TOOLS, "max_tokens": 200, "seed": 3, **settings}
    )


def check(choice, *, most=1):
    """A choice that is nothing but calls that fit."""
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    calls = choice.message.tool_calls
    assert 1 <= len(calls) <= most and len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.type == "function" and re.fullmatch("call_[0-9a-z]{24}", call.id)
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return [call.function.name for call in calls]


@pytest.mark.parametrize("family", FAMILIES)
def test_required_and_named_calls_come_and_fit(client, family):
    answer = ask(client, family, tool_choice="required", parallel_tool_calls=False, n=3)
    names = {name for choice in answer.choices for name in check(choice)}
    assert names <= SCHEMAS.keys()
    for name in SCHEMAS:
        named = {"type": "function", "function": {"name": name}}
        assert check(ask(client, family, tool_choice=named).choices[0]) == [name]
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
        answer = ask(client, family, tool_choice=allowed, parallel_tool_calls=False)
        assert check(answer.choices[0]) == [name]


def pieces(chunks):
    """What a stream's deltas add up to: content, calls as [id, name, arguments], and the reason of the end."""
    content, calls, reason = None, [], None
    for chunk in chunks:
        (choice,) = chunk.choices
        delta = choice.delta
        if delta.content is not None:
            content = (content or "") + delta.content
        for call in delta.tool_calls or []:
            if call.id is not None:
                assert call.index == len(calls) and call.type == "function" and call.function.arguments == ""
                calls.append([call.id, call.function.name, ""])
            else:
                assert call.index == len(calls) - 1 and call.type is None and call.function.name is None
                assert call.function.arguments
                calls[-1][2] += call.function.arguments
        reason = choice.finish_reason or reason
    return content, calls, reason


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_of_calls_adds_up_to_the_whole_answer(client, family):
    one = {"tool_choice": "required", "parallel_tool_calls": False}
    for settings in ({"tool_choice": "required", "max_tokens": 80}, {**one, "max_tokens": 21}, {"max_tokens": 20}):
        whole = ask(client, family, **settings).choices[0]
        chunks = list(ask(client, family, stream=True, **settings))
        content, calls, reason = pieces(chunks)
        assert chunks[0].choices[0].delta.role == "assistant" and not chunks[-1].choices[0].delta.tool_calls
        assert (content or None, reason) == (whole.message.content or None, whole.finish_reason)
        whole_calls = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or []]
        assert [(name, arguments) for _, name, arguments in calls] == whole_calls
    book = {"type": "function", "function": {"name": "book"}}
    _, ((_, _, arguments),), _ = pieces(chunks := list(ask(client, family, stream=True, tool_choice=book)))
    # A grammar vouches for it, so the arguments arrive piece by piece.
    assert len(chunks) > 6 and jsonschema.validate(json.loads(arguments), BOOK) is None


def test_the_clients_own_helper_gathers_the_calls(client):
    strict = [openai.pydantic_function_tool(Book, name="book")]
    with client.chat.completions.stream(
        model="qwen2", messages=ASKED, tools=strict, tool_choice="required", parallel_tool_calls=False, seed=4
    ) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert call.function.name == "book" and isinstance(call.function.parsed_arguments, Book)


@pytest.mark.parametrize(("family", "mark"), [("qwen2", "<tool_call>"), ("mistral", "[TOOL_CALLS]")])
def test_a_model_that_begins_a_call_by_itself_keeps_to_a_strict_schema(client, family, mark):
    bias = {str(tiny_tokenizer(family).convert_tokens_to_ids(mark)): 100}
    strict = [function("book", strict=True, parameters=BOOK)]
    settings = {"tools": strict, "logit_bias": bias, "parallel_tool_calls": False}
    assert check(ask(client, family, **settings).choices[0]) == ["book"]
    content, ((_, name, _),), reason = pieces(ask(client, family, stream=True, **settings))
    assert (content, name, reason) == (None, "book", "tool_calls")
    # Without a grammar, what follows is no call, and stays text; no token of it is lost.
    loose = ask(client, family, logit_bias=bias, max_tokens=5).choices[0]
    assert loose.message.content == mark * 5 and "tool_calls" not in loose.message.model_fields_set
    hidden = ask(client, family, logit_bias=bias, max_tokens=5, tool_choice="none").choices[0].message
    assert hidden.content == ("" if family == "mistral" else mark * 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_on_after_its_calls(client, family):
    choice = ask(client, family, tool_choice="required", parallel_tool_calls=False).choices[0]
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": '"done"'}
    messages = [*ASKED, choice.message.model_dump(exclude_unset=True), result]
    after = ask(client, family, messages=messages, max_tokens=5)
    assert after.usage.prompt_tokens > ask(client, family, max_tokens=1).usage.prompt_tokens


def test_log_probabilities_come_with_calls_too(client):
    settings = {"tool_choice": "required", "parallel_tool_calls": False, "logprobs": True}
    whole = ask(client, "qwen2", **settings).choices[0].logprobs.content
    streamed = [
        token
        for chunk in ask(client, "qwen2", stream=True, **settings)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == whole


def test_a_schema_that_cannot_be_guaranteed_is_refused_for_strict_functions_only(client):
    odd = {"type": "object", "properties": {"a": {"type": "string", "nullable": True}}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "qwen2", tools=[*TOOLS, function("odd", strict=True, parameters=odd)])
    assert (refused.value.code, refused.value.param) == ("invalid_function_parameters", "tools[2].function.parameters")
    unknown = {"type": "object", "properties": {}, "dependentRequired": {"a": ["b"]}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "qwen2", tools=[function("odd", strict=True, parameters=unknown)])
    assert (refused.value.code, refused.value.param) == ("invalid_function_parameters", "tools")
    for schema in (odd, unknown):
        answer = ask(client, "qwen2", tools=[function("odd", parameters=schema)], tool_choice="required", max_tokens=9)
        assert answer.choices[0].finish_reason in ("length", "tool_calls")


def test_an_answer_in_json_or_a_call(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for seed in range(3):
        choice = ask(client, "mistral", response_format=form, parallel_tool_calls=False, seed=seed).choices[0]
        if choice.message.tool_calls:
            check(choice)
        else:
            jsonschema.validate(json.loads(choice.message.content), schema)
    calls = ask(client, "mistral", response_format=form, parallel_tool_calls=False, tool_choice="required")
    check(calls.choices[0])
    for model, more in (("llama", {"response_format": form}), ("qwen2", {"extra_body": REGEX})):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, model, **more)
        assert refused.value.code == "unsupported_parameter"
