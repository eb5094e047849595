"""`/v1/responses` through the official client: answers, items, forms, tools, memory.

On SQLite; what is stored is tested on both databases in tests/record/test_responses.py.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

MODEL = "caller"
ASKED = "A table for 4 at seven."
BOOK = {
    "type": "object",
    "properties": {"people": {"type": "integer", "minimum": 1, "maximum": 9}, "at": {"enum": ["seven", "eight"]}},
    "required": ["people", "at"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "name": "book", "description": "Book a table.", "parameters": BOOK, "strict": True},
    {"type": "function", "name": "leave", "parameters": {"type": "object", "maxProperties": 0}, "strict": None},
]


class Booking(pydantic.BaseModel):
    """A table."""

    at: Literal["18:00", "19:30"]
    people: Literal[1, 2, 3]


def client_of(keyed_server, who="mine"):
    running, keys = keyed_server
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=keys[who], max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(keyed_server):
    with client_of(keyed_server) as client:
        yield client


def ask(client, asked: Any = ASKED, **settings) -> Any:
    return client.responses.create(
        **{"model": MODEL, "input": asked, "temperature": 0, "max_output_tokens": 12, **settings}
    )


def chat(client, messages, **settings) -> Any:
    settings = {"temperature": 0, "max_completion_tokens": 12, **settings}
    return client.chat.completions.create(model=MODEL, messages=messages, **settings)


def same(response, completion):
    """Both were asked the same and answered the same."""
    assert response.usage.input_tokens == completion.usage.prompt_tokens
    assert response.usage.output_tokens == completion.usage.completion_tokens
    assert response.output_text == (completion.choices[0].message.content or "")


def refused(call, code, param, status=400):
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param), error
    return error.message


def test_a_text_is_answered_as_chat_answers_it(client):
    response = ask(client)
    same(response, chat(client, [{"role": "user", "content": ASKED}]))
    assert re.fullmatch("resp_[0-9A-Za-z]{24}", response.id) and response.object == "response"
    assert abs(response.created_at - time.time()) < 60 and response.model == MODEL
    (item,) = response.output
    assert (item.type, item.role) == ("message", "assistant") and item.id.startswith("msg_")
    assert [part.type for part in item.content] == ["output_text"] and item.content[0].annotations == []
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert (response.error, response.tools, response.tool_choice, response.truncation) == (None, [], "auto", "disabled")
    assert response.text.format.type == "text" and response.parallel_tool_calls is True
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0, 1, 12)


def test_items_and_instructions_are_the_messages_of_a_chat(client):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}]},
        {"role": "user", "content": ASKED},
    ]
    messages = [
        {"role": "system", "content": "You wait tables."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": ASKED},
    ]
    response = ask(client, items, instructions="You wait tables.")
    same(response, chat(client, messages))
    assert response.instructions == "You wait tables."


def test_an_answer_that_is_cut_says_so(client):
    response = ask(client, max_output_tokens=3, temperature=1)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete" and response.usage.output_tokens == 3
    events = list(ask(client, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete" and events[-1].response.status == "incomplete"


def test_one_response_goes_on_from_another(client):
    first = ask(client, "Hello", instructions="Be brief.")
    second = ask(client, ASKED, previous_response_id=first.id)
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": ASKED},
    ]
    same(second, chat(client, messages))  # the instructions were the first request's
    third = ask(client, "And now?", previous_response_id=second.id, instructions="Be kind.")
    messages = [{"role": "system", "content": "Be kind."}, *messages]
    messages += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "And now?"}]
    same(third, chat(client, messages))
    assert third.previous_response_id == second.id
    # What the client keeps itself comes to the same.
    own = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": ASKED}]
    assert ask(client, own).output_text == second.output_text


def test_responses_are_kept_until_they_are_deleted(client):
    response = ask(client, metadata={"shop": "north"}, user="u-1")
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
    assert (response.metadata, response.user, response.store) == ({"shop": "north"}, "u-1", True)
    client.responses.delete(response.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        refused(lambda call=call: call(response.id), "response_not_found", "response_id", 404)
    refused(
        lambda: ask(client, previous_response_id=response.id), "previous_response_not_found", "previous_response_id"
    )


def test_a_conversation_with_a_gap_cannot_go_on(client):
    first = ask(client)
    second = ask(client, previous_response_id=first.id)
    client.responses.delete(first.id)
    assert client.responses.retrieve(second.id).id == second.id
    message = refused(
        lambda: ask(client, previous_response_id=second.id), "previous_response_not_found", "previous_response_id"
    )
    assert first.id in message


def test_what_is_not_stored_is_not_there(client):
    response = ask(client, store=False)
    assert response.store is False
    refused(lambda: client.responses.retrieve(response.id), "response_not_found", "response_id", 404)
    with client.responses.stream(model=MODEL, input=ASKED, max_output_tokens=8, store=False) as stream:
        ids = {event.response.id for event in stream if hasattr(event, "response")}
    assert len(ids) == 1
    refused(lambda: client.responses.retrieve(ids.pop()), "response_not_found", "response_id", 404)


def test_responses_belong_to_their_project(keyed_server, client):
    response = ask(client)
    with client_of(keyed_server, "theirs") as other:
        for call in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
            refused(lambda call=call: call(response.id), "response_not_found", "response_id", 404)
        refused(
            lambda: ask(other, previous_response_id=response.id), "previous_response_not_found", "previous_response_id"
        )
    assert client.responses.retrieve(response.id).id == response.id


def test_input_items_are_listed_in_pages(client):
    first = ask(client, [{"role": "user", "content": str(i)} for i in range(5)])
    second = ask(client, "last", previous_response_id=first.id)
    listed = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [item.content[0].text for item in listed] == ["0", "1", "2", "3", "4", first.output_text, "last"]
    assert [item.role for item in listed] == ["user"] * 5 + ["assistant", "user"]
    newest = list(client.responses.input_items.list(second.id, limit=3))
    assert [item.id for item in newest] == [item.id for item in reversed(listed)]
    page = client.responses.input_items.list(second.id, order="asc", after=listed[4].id, limit=1)
    assert [item.id for item in page.data] == [listed[5].id] and page.has_more
    refused(lambda: client.responses.input_items.list(second.id, after="msg_none"), "invalid_cursor", "after")


def test_a_form_is_kept_to_and_parsed(client):
    for settings in ({}, {"instructions": "Answer."}):
        response = client.responses.parse(model=MODEL, input=ASKED, text_format=Booking, **settings)
        assert isinstance(response.output_parsed, Booking) and response.status == "completed"
    with client.responses.stream(model=MODEL, input=ASKED, text_format=Booking, temperature=0) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Booking)
    answer = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=400, temperature=1)
    assert answer.text.format.type == "json_object"
    if answer.status == "completed":
        assert isinstance(json.loads(answer.output_text), dict)
    form = {"type": "json_schema", "name": "table", "schema": BOOK}
    answer = ask(client, text={"format": form}, max_output_tokens=100)
    jsonschema.validate(json.loads(answer.output_text), BOOK)
    assert answer.text.format.schema_ == BOOK and answer.text.format.name == "table"


def test_calls_come_as_items_and_their_outputs_go_back(client):
    response = ask(client, tools=TOOLS, tool_choice="required", max_output_tokens=200, parallel_tool_calls=False)
    (call,) = response.output
    assert call.type == "function_call" and call.id.startswith("fc_") and call.call_id.startswith("call_")
    assert call.status == "completed" and response.status == "completed" and response.output_text == ""
    assert [tool.name for tool in response.tools] == ["book", "leave"]
    assert [tool.strict for tool in response.tools] == [True, None]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Table 5."}
    kept = ask(client, [result], tools=TOOLS, previous_response_id=response.id)
    own = ask(client, [{"role": "user", "content": ASKED}, *response.output, result], tools=TOOLS)
    function = {"name": call.name, "arguments": call.arguments}
    messages = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "tool_calls": [{"id": call.call_id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "Table 5."},
    ]
    tools = [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in TOOLS]
    for answer in (kept, own):
        same(answer, chat(client, messages, tools=tools))
    # The last request's input: what was asked, the call, and what it came to.
    items = list(client.responses.input_items.list(kept.id, order="asc"))
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


def test_a_choice_of_tools_is_obeyed(client):
    named = {"type": "function", "name": "leave"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "book"}]}
    for choice, name in ((named, "leave"), (allowed, "book")):
        response = ask(client, tools=TOOLS, tool_choice=choice, max_output_tokens=200)
        assert {item.name for item in response.output} == {name}
        assert response.tool_choice.to_dict() == choice
    response = ask(client, tools=TOOLS, tool_choice="none")
    same(response, chat(client, [{"role": "user", "content": ASKED}]))


def test_a_pydantic_tool_is_parsed(client):
    tool = openai.pydantic_function_tool(Booking)["function"]
    response = client.responses.parse(
        model=MODEL, input=ASKED, tools=[{"type": "function", **tool}], tool_choice="required", temperature=0
    )
    assert {item.type for item in response.output} == {"function_call"}
    assert Booking.model_validate(response.output[0].parsed_arguments)


def test_logprobs_come_where_they_are_asked_for(client):
    response = ask(client, include=["message.output_text.logprobs"], top_logprobs=2)
    completion = chat(client, [{"role": "user", "content": ASKED}], logprobs=True, top_logprobs=2)
    told = response.output[0].content[0].logprobs
    expected = completion.choices[0].logprobs.content
    assert [(one.token, one.bytes, len(one.top_logprobs)) for one in told] == [
        (one.token, one.bytes, len(one.top_logprobs)) for one in expected
    ]
    assert [one.logprob for one in told] == pytest.approx([one.logprob for one in expected])
    events = list(ask(client, include=["message.output_text.logprobs"], top_logprobs=2, stream=True))
    streamed = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    final = events[-1].response.output[0].content[0].logprobs
    assert [one.token for one in final] == [one.token for one in told]
    assert [one.token for one in streamed] == [one.token for one in told][: len(streamed)]
    assert ask(client).output[0].content[0].logprobs == []


def test_a_long_conversation_is_refused_or_shortened(client):
    items = [{"role": "user", "content": f"{i} " + "word " * 60} for i in range(30)]
    refused(lambda: ask(client, items), "context_length_exceeded", "input")
    response = ask(client, items, truncation="auto", instructions="Be brief.")
    assert response.truncation == "auto" and 300 < response.usage.input_tokens < 1024
    # What is left are the instructions and as many of the last messages as fit.
    fits = [
        chat(client, [{"role": "system", "content": "Be brief."}, *items[-count:]]).usage.prompt_tokens
        for count in range(1, 4)
    ]
    per_item = fits[2] - fits[1]
    assert (response.usage.input_tokens - fits[0]) % per_item == 0
    assert response.usage.input_tokens + per_item >= 1024
    # A message that is too long by itself can't be shortened.
    refused(lambda: ask(client, "word " * 3000, truncation="auto"), "context_length_exceeded", "input")


def test_only_the_background_can_be_cancelled(client):
    response = ask(client)
    refused(lambda: client.responses.cancel(response.id), "not_background", None)
    refused(lambda: client.responses.cancel("resp_nobody"), "response_not_found", "response_id", 404)
    refused(lambda: client.responses.retrieve(response.id, stream=True), "unsupported_parameter", "stream")


def test_it_can_be_asked_from_asyncio(keyed_server):
    import asyncio

    running, keys = keyed_server

    async def both():
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=keys["mine"], max_retries=0) as client:
            whole = await client.responses.create(model=MODEL, input=ASKED, temperature=0, max_output_tokens=40)
            text = ""
            async for event in await client.responses.create(
                model=MODEL, input=ASKED, temperature=0, max_output_tokens=40, stream=True
            ):
                text += event.delta if event.type == "response.output_text.delta" else ""
            return whole.output_text, text

    whole, streamed = asyncio.run(both())
    assert whole == streamed
