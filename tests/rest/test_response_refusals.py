"""`/v1/responses`: what isn't offered and what is wrong is refused, in the words of this route."""

from __future__ import annotations

import httpx
import pytest

MODEL = "caller"
BOOK = {"type": "function", "name": "book", "parameters": {"type": "object"}}


def refusal(keyed_server, change):
    running, keys = keyed_server
    body = {"model": MODEL, "input": "Hello", "max_output_tokens": 4, **change}
    reply = httpx.post(f"{running.url}/v1/responses", json=body, headers={"authorization": f"Bearer {keys['mine']}"})
    error = reply.json()["error"]
    assert reply.status_code == (404 if error["code"] == "model_not_found" else 400), reply.text
    assert reply.headers["x-should-retry"] == "false" and error["type"] == "invalid_request_error"
    assert "messages" not in error["message"] and "tool_calls" not in error["message"]
    return error


UNSUPPORTED = [
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [BOOK, {"type": "file_search", "vector_store_ids": []}]}, "tools[1]"),
    ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools[0]"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]"),
    ({"tools": [BOOK], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_audio", "data": ""}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content[0]"),
]


@pytest.mark.parametrize(("change", "param"), UNSUPPORTED, ids=[f"{min(one)}-{param}" for one, param in UNSUPPORTED])
def test_what_is_not_offered_is_refused(keyed_server, change, param):
    error = refusal(keyed_server, change)
    assert (error["code"], error["param"]) == ("unsupported_parameter", param) and "supported" in error["message"]


CALL = {"type": "function_call", "call_id": "call_1", "name": "book", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
WRONG = [
    ({"input": []}, "empty_array", "input"),
    ({"input": 3}, "invalid_type", "input"),
    ({"input": ["x"]}, "invalid_type", "input[0]"),
    ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role"),
    ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
    ({"input": [{"role": "user", "content": "x", "colour": 1}]}, "unknown_parameter", "input[0].colour"),
    ({"input": [{"role": "user", "content": [3]}]}, "invalid_value", "input[0].content[0]"),
    ({"input": [CALL]}, "invalid_value", "input[0]"),
    ({"input": [OUTPUT]}, "invalid_value", "input[0]"),
    ({"input": [CALL, {"role": "user", "content": "x"}, OUTPUT]}, "invalid_value", "input[0]"),
    ({"input": [{**CALL, "arguments": "no"}, OUTPUT]}, "invalid_value", "input[0].arguments"),
    ({"input": [{**OUTPUT, "output": 3}]}, "invalid_type", "input[0].output"),
    ({"model": "nobody"}, "model_not_found", "model"),
    ({"previous_response_id": "resp_?"}, "previous_response_not_found", "previous_response_id"),
    ({"temperature": 3}, "decimal_above_max_value", "temperature"),
    ({"max_output_tokens": 0}, "integer_below_min_value", "max_output_tokens"),
    ({"top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
    ({"truncation": "some"}, "invalid_value", "truncation"),
    ({"stop": ["x"]}, "unknown_parameter", "stop"),
    ({"stream_options": {"include_obfuscation": True}}, "invalid_value", "stream_options"),
    ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
    ({"tools": ["x"]}, "invalid_type", "tools[0]"),
    ({"tools": [{**BOOK, "parameters": {"type": "array"}}]}, "invalid_function_parameters", "tools[0].parameters"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tools": [BOOK], "tool_choice": {"type": "function", "name": "fly"}}, "invalid_value", "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "missing_required_parameter", "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "missing_required_parameter", "text.format.name"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}}},
        "invalid_schema",
        "text.format",
    ),
    ({"text": {"verbosity": "high"}}, "invalid_value", "text.verbosity"),
    ({"reasoning": {"effort": "high"}}, "invalid_value", "reasoning.effort"),
    ({"include": ["everything"]}, "invalid_value", "include[0]"),
]


@pytest.mark.parametrize(("change", "code", "param"), WRONG, ids=[f"{param}-{code}" for _, code, param in WRONG])
def test_what_is_wrong_is_refused_in_this_route_s_words(keyed_server, change, code, param):
    error = refusal(keyed_server, change)
    assert (error["code"], error["param"]) == (code, param), error
