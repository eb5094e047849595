"""Answers over the wire have the form that was asked for; other requests are refused as OpenAI's service does."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

HELLO = [{"role": "user", "content": "Hello"}]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


class Booking(BaseModel):
    """A table."""

    time: Literal["18:00", "19:30"]
    guests: list[Person] = Field(max_length=2)
    is_outside: bool
    note: str | None = Field(max_length=5)


def ask(client, messages=HELLO, **settings) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 400, "seed": 1, **settings})


def schema_format(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def test_a_pydantic_model_is_parsed(client):
    for seed in range(3):
        done = client.chat.completions.parse(
            model="tiny", messages=HELLO, response_format=Booking, max_tokens=400, seed=seed
        )
        assert isinstance(done.choices[0].message.parsed, Booking)
        assert done.choices[0].finish_reason == "stop"


def test_a_stream_is_parsed_and_says_the_same(client):
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, response_format=Booking, max_tokens=400, seed=1
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message
    whole = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Booking, max_tokens=400, seed=1)
    assert streamed.parsed == whole.choices[0].message.parsed


def test_an_answer_that_is_cut_says_so(client):
    choice = ask(client, response_format=schema_format({"type": "string", "minLength": 500}), max_tokens=5).choices[0]
    assert choice.finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Booking, max_tokens=2)


def test_a_json_object_begins_as_one(client):
    for choice in ask(client, response_format={"type": "json_object"}, n=4, max_tokens=300).choices:
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


def test_each_of_n_answers_has_the_form(client):
    schema = {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 4}
    choices = ask(client, response_format=schema_format(schema), n=4, max_tokens=100).choices
    for choice in choices:
        jsonschema.validate(json.loads(choice.message.content), schema)
    assert len({choice.message.content for choice in choices}) > 1


@pytest.mark.parametrize(
    ("wanted", "right"),
    [
        ({"regex": "[ab]{3}-\\d"}, r"[ab]{3}-\d"),
        ({"choice": ["yes", "yes, please", "no"]}, "yes(, please)?|no"),
        ({"grammar": 'start: "x" /[0-9]{2}/'}, "x[0-9]{2}"),
        ({"json": {"const": {"a": 1}}}, r'\{\s?"a"\s*:\s*1\s*\}'),
        ({"json_object": True}, r"\{(?s:.*)"),
    ],
)
def test_other_forms_are_asked_for_as_in_vllm(client, wanted, right):
    for seed in range(4):
        answer = ask(client, extra_body={"structured_outputs": wanted}, seed=seed, max_tokens=60)
        assert re.fullmatch(right, answer.choices[0].message.content)


def test_log_probabilities_are_the_models_own(client):
    answer = ask(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, logprobs=True, top_logprobs=3)
    for token in answer.choices[0].logprobs.content:
        assert token.logprob < 0
        assert len(token.top_logprobs) == 3


def test_free_text_stays_free(client):
    alone = ask(client, temperature=0, max_tokens=12).choices[0].message.content
    ask(client, response_format={"type": "json_object"}, max_tokens=12)
    again = ask(client, temperature=0, max_tokens=12, response_format={"type": "text"})
    assert again.choices[0].message.content == alone


STRICT = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
REFUSED = {
    "Supported values are": ({"type": "xml"}, "response_format.type", "invalid_value"),
    "parameter: 'response_format.type'": ({}, "response_format.type", "missing_required_parameter"),
    "parameter: 'response_format.json_schema'": (
        {"type": "json_schema"}, "response_format.json_schema", "missing_required_parameter",
    ),
    "parameter: 'response_format.json_schema.name'": (
        {"type": "json_schema", "json_schema": {"schema": {}}},
        "response_format.json_schema.name", "missing_required_parameter",
    ),
    "parameter: 'response_format.json_schema.schema'": (
        {"type": "json_schema", "json_schema": {"name": "x"}},
        "response_format.json_schema.schema", "missing_required_parameter",
    ),
    "does not match pattern": (
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        "response_format.json_schema.name", "invalid_value",
    ),
    "maximum length 64": (
        {"type": "json_schema", "json_schema": {"name": "a" * 65, "schema": {}}},
        "response_format.json_schema.name", "string_above_max_length",
    ),
    "expected an object, but got an array": (
        schema_format([]), "response_format.json_schema.schema", "invalid_type",
    ),
    "uniqueItems": (
        schema_format({"type": "array", "uniqueItems": True}), "response_format", "invalid_schema",
    ),
    "In context=(), 'additionalProperties' is required": (
        schema_format(STRICT, strict=True), "response_format", "invalid_schema",
    ),
    "In context=('properties', 'a'), 'additionalProperties' is required": (
        schema_format({**STRICT, "additionalProperties": False}, strict=True), "response_format", "invalid_schema",
    ),
    "Missing 'a'": (
        schema_format({**STRICT, "required": [], "additionalProperties": False}, strict=True),
        "response_format", "invalid_schema",
    ),
    "got 'type: \"array\"'": (
        schema_format({"type": "array"}, strict=True), "response_format", "invalid_schema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("told", REFUSED)
def test_a_form_that_cant_be_asked_for_is_refused(client, told):
    wanted, param, code = REFUSED[told]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, response_format=wanted)
    assert told in refused.value.message
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize(
    "wanted", [{}, {"regex": "a", "choice": ["b"]}, {"regex": "(a"}, {"grammar": "start: nothing"}, {"choice": []},
               {"structural_tag": "x"}],
)  # fmt: skip
def test_other_forms_that_are_wrong_are_refused(client, wanted):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, extra_body={"structured_outputs": wanted})
    assert refused.value.param.startswith("structured_outputs")


def test_two_forms_at_once_are_refused(client):
    with pytest.raises(openai.BadRequestError):
        ask(client, response_format={"type": "json_object"}, extra_body={"structured_outputs": {"regex": "a"}})
