"""Items 54 to 63 of the contract: chats, with the official client.

On SQLite alone: nothing here touches the record, and what does (`store`) has tests on both databases.
"""

from __future__ import annotations

import json
import re
import time
from typing import Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest

from server_process import running_server
from tiny_models import LONG_ANSWER_TOKENS, save_slow_model, save_tiny_model

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tiny base whose template writes tool calls, and a slow one."""
    folder = tmp_path_factory.mktemp("chat")
    models = [save_tiny_model("qwen2", folder / "tiny"), save_slow_model("qwen2", folder / "slow")]
    settings = {"models": [str(model) for model in models], "dtype": "float32", "max_batch": 4, "max_waiting": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        with running_server(folder / "log", folder / "home", **settings) as running:
            yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, **settings):
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 12, **settings})


def text_of(answer):
    return answer.choices[0].message.content


def test_item_54_plain_n_and_stop(client):
    plain = ask(client)
    assert plain.object == "chat.completion" and re.fullmatch("chatcmpl-[0-9A-Za-z]{24}", plain.id)
    assert abs(plain.created - time.time()) < 60 and plain.model == "tiny" and len(plain.choices) == 1
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    three = ask(client, n=3, seed=1)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in three.choices}) == 3
    whole = text_of(ask(client, seed=1, max_tokens=40))
    part = whole[10:14]
    for stop in (part, ["never", "there", "at all", part]):
        answer = ask(client, seed=1, max_tokens=40, stop=stop)
        assert text_of(answer) == whole[: whole.index(part)] and answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, stop=["a", "b", "c", "d", "e"])
    assert refused.value.param == "stop"


def test_item_55_a_seed_and_temperature_0_repeat(client):
    for settings in ({"seed": 5}, {"temperature": 0}, {"seed": 5, "temperature": 0}):
        first, second = (ask(client, **settings) for _ in range(2))
        assert text_of(first) == text_of(second)
        assert first.system_fingerprint == second.system_fingerprint
    assert text_of(ask(client, seed=5)) != text_of(ask(client, seed=6))


def test_item_56_log_probabilities_and_their_bytes(client):
    answer = ask(client, seed=2, logprobs=True, top_logprobs=5, max_tokens=30)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert bytes(token.bytes).decode(errors="replace") == token.token
        assert len(token.top_logprobs) == 5 and token.logprob <= 0
        for top in token.top_logprobs:
            assert bytes(top.bytes).decode(errors="replace") == top.token
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == text_of(answer)


class Guest(pydantic.BaseModel):
    """Who comes."""

    name: Literal["Ada", "Bob"]
    people: Literal[1, 2, 3]


def test_item_57_strict_schemas_and_the_parse_helper(client):
    settings = {"model": "tiny", "messages": HELLO, "max_tokens": 200}
    for seed in range(3):
        answer = client.chat.completions.parse(**settings, response_format=Guest, seed=seed)
        assert isinstance(answer.choices[0].message.parsed, Guest)
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "ok": {"type": "boolean"}},
        "required": ["colour", "ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": schema}}
    jsonschema.validate(json.loads(text_of(ask(client, response_format=form, max_tokens=200))), schema)
    cut = ask(client, response_format=form, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**settings, "max_tokens": 2}, response_format=Guest)


def test_item_57_json_objects(client):
    for seed in range(3):
        choice = ask(client, response_format={"type": "json_object"}, seed=seed, max_tokens=300).choices[0]
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


BOOK = {
    "type": "object",
    "properties": {"people": {"enum": [1, 2, 3]}},
    "required": ["people"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "book", "description": "Book a table.", "parameters": BOOK}},
    {"type": "function", "function": {"name": "leave"}},
]
NAMED = {"type": "function", "function": {"name": "book"}}


def test_item_58_tool_choice(client):
    none = ask(client, tools=TOOLS, tool_choice="none").choices[0]
    assert none.message.tool_calls is None and none.finish_reason in ("stop", "length")
    auto = ask(client, tools=TOOLS, tool_choice="auto").choices[0]
    assert auto.finish_reason in ("stop", "length", "tool_calls")
    for choice, names in (("required", {"book", "leave"}), (NAMED, {"book"})):
        for seed in range(3):
            answer = ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=seed, max_tokens=200)
            (call,) = answer.choices[0].message.tool_calls  # one at most
            assert answer.choices[0].finish_reason == "tool_calls" and call.function.name in names
            if call.function.name == "book":
                jsonschema.validate(json.loads(call.function.arguments), BOOK)


def test_item_59_the_round_trip_of_a_tool(client):
    asked = ask(client, tools=TOOLS, tool_choice=NAMED, max_tokens=200).choices[0].message
    (call,) = asked.tool_calls
    reply = {"role": "tool", "tool_call_id": call.id, "content": "booked"}
    answer = ask(client, messages=[*HELLO, asked, reply], tools=TOOLS)
    assert answer.choices[0].message.role == "assistant"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages=[*HELLO, asked, {"role": "user", "content": "And?"}], tools=TOOLS)
    assert call.id in refused.value.message


def test_item_60_a_stream_adds_up_to_the_whole_text(client):
    for settings in ({"temperature": 0}, {"seed": 4, "n": 2}):
        whole = ask(client, max_tokens=40, **settings)
        texts = dict.fromkeys(range(settings.get("n", 1)), "")
        for chunk in ask(client, max_tokens=40, stream=True, **settings):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert list(texts.values()) == [choice.message.content for choice in whole.choices]


def test_item_61_the_stream_helper(client):
    settings = {"model": "tiny", "messages": HELLO, "seed": 3}
    # The helper refuses answers that were cut off, so these have an end.
    ends = [choice.message.content[10:14] for choice in ask(client, seed=3, n=2, max_tokens=40).choices]
    several = {"n": 2, "stop": ends, "max_tokens": 40}
    with client.chat.completions.stream(**settings, **several, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    whole = ask(client, seed=3, **several)
    assert [choice.message.role for choice in final.choices] == ["assistant", "assistant"]
    assert [choice.message.content for choice in final.choices] == [c.message.content for c in whole.choices]
    assert final.usage == whole.usage
    tools = [openai.pydantic_function_tool(Guest, name="invite")]
    with client.chat.completions.stream(**settings, max_tokens=200, tools=tools, tool_choice="required") as stream:
        message = stream.get_final_completion().choices[0].message
    assert all(isinstance(call.function.parsed_arguments, Guest) for call in message.tool_calls)
    with client.chat.completions.stream(**settings, max_tokens=200, response_format=Guest) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Guest)


def test_item_62_usage_comes_last_where_it_is_asked_for(client):
    chunks = list(ask(client, stream=True, n=2, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    for settings in ({}, {"stream_options": {"include_usage": False}}):
        assert all(chunk.usage is None and chunk.choices for chunk in ask(client, stream=True, **settings))


def test_item_63_a_client_who_leaves_stops_the_work(client, server):
    long = {"model": "slow", "temperature": 0, "max_tokens": LONG_ANSWER_TOKENS, "extra_body": {"ignore_eos": True}}
    ask(client, model="slow", max_tokens=1)
    written = server.answer_tokens()
    stream = ask(client, **long, n=8, stream=True)  # all that the server takes
    next(stream)
    with pytest.raises(openai.RateLimitError):
        ask(client, model="slow", max_tokens=1)
    stream.close()
    server.wait_for_answers(0)
    ask(client, model="slow", max_tokens=1)
    assert server.answer_tokens() - written < 8 * LONG_ANSWER_TOKENS / 2


def test_messages_of_functions_are_those_of_tools(client):
    functions = [tool["function"] for tool in TOOLS]
    settings = {"functions": functions, "max_tokens": 200}
    choice = ask(client, **settings, function_call={"name": "book"}).choices[0]
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert choice.message.content is None and choice.message.function_call.name == "book"
    jsonschema.validate(json.loads(choice.message.function_call.arguments), BOOK)
    name, arguments, reasons = "", "", []
    for chunk in ask(client, **settings, function_call={"name": "book"}, stream=True):
        call = chunk.choices[0].delta.function_call
        name += (call and call.name) or ""
        arguments += (call and call.arguments) or ""
        assert chunk.choices[0].delta.tool_calls is None
        reasons.append(chunk.choices[0].finish_reason)
    assert name == "book" and reasons[-1] == "function_call"
    jsonschema.validate(json.loads(arguments), BOOK)

    called = {"role": "assistant", "content": None, "function_call": {"name": "book", "arguments": '{"people": 2}'}}
    told = {"role": "function", "name": "book", "content": "booked"}
    as_functions = ask(client, messages=[*HELLO, called, told], functions=functions, temperature=0)
    call = {"id": "call_1", "type": "function", "function": called["function_call"]}
    as_tools = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "booked"},
    ]
    same = ask(client, messages=[*HELLO, *as_tools], tools=TOOLS, parallel_tool_calls=False, temperature=0)
    assert text_of(as_functions) == text_of(same) and as_functions.usage == same.usage
    none = ask(client, functions=functions, function_call="none")
    assert none.choices[0].message.function_call is None


CALLED = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
TOLD = {"role": "function", "name": "f", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"functions": []}, "functions", "empty_array"),
        ({"function_call": "auto"}, "function_call", "invalid_value"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call", "invalid_value"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call", "invalid_value"),
        ({"functions": [{"name": "f"}], "tools": TOOLS}, "functions", "invalid_value"),
        ({"messages": [*HELLO, CALLED]}, "messages[1].function_call", "invalid_value"),
        ({"messages": [*HELLO, CALLED, *HELLO]}, "messages[1].function_call", "invalid_value"),
        ({"messages": [*HELLO, TOLD]}, "messages[1].name", "invalid_value"),
        ({"messages": [*HELLO, CALLED, {**TOLD, "name": "g"}]}, "messages[2].name", "invalid_value"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "unsupported_parameter"),
        ({"verbosity": "low"}, "verbosity", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"user": 5}, "user", "invalid_type"),
        ({"store": "yes"}, "store", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "object_above_max_properties"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64, "string_above_max_length"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"metadata": {"k": "a\0b"}}, "metadata", "invalid_text"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0]", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(server, change, param, code):
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 2, **change}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)


def test_what_changes_nothing_is_accepted(client):
    same = ask(client, temperature=0)
    labelled = ask(
        client, temperature=0, user="me", service_tier="auto", metadata={"a": "b"}, store=False, safety_identifier="x",
        prompt_cache_key="k", prediction={"type": "content", "content": "Hi"}, modalities=["text"], verbosity="medium",
        reasoning_effort="none", logit_bias={}, frequency_penalty=None, tools=None, response_format={"type": "text"},
        max_completion_tokens=12, parallel_tool_calls=True,
    )  # fmt: skip
    assert text_of(labelled) == text_of(same) and labelled.service_tier == "default"
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert text_of(ask(client, temperature=0, messages=[{"role": "user", "content": parts}])) == text_of(same)
    for role in ("developer", "system"):
        assert ask(client, messages=[{"role": role, "content": "Be brief."}, *HELLO], max_tokens=1).choices
