"""A response as a stream: typed events in order, numbered, and the same answer as without one."""

from __future__ import annotations

import itertools
import json

import httpx
import openai
import pydantic
import pytest

from tiny_models import LONG_ANSWER_TOKENS

MODEL = "caller"
ASKED = "A table for 4 at seven."
BOOK = {
    "type": "object",
    "properties": {"people": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["people"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "name": "book", "parameters": BOOK, "strict": True}]
TYPES = pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent)


@pytest.fixture(scope="module")
def client(keyed_server):
    running, keys = keyed_server
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=keys["mine"], max_retries=0, timeout=120) as client:
        yield client


def raw_events(keyed_server, **settings):
    """The events as they go over the wire."""
    running, keys = keyed_server
    body = {"model": MODEL, "input": ASKED, "temperature": 0, "stream": True, **settings}
    headers = {"authorization": f"Bearer {keys['mine']}"}
    with httpx.stream("POST", f"{running.url}/v1/responses", json=body, headers=headers, timeout=120) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        text = reply.read().decode()
    events = []
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        TYPES.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events):
    """The types of events in order, repetitions once."""
    return [kind.removeprefix("response.") for kind, _ in itertools.groupby(event["type"] for event in events)]


def test_words_come_in_openai_s_events(keyed_server, client):
    events = raw_events(keyed_server, max_output_tokens=40)
    end = events[-1]["type"].removeprefix("response.")
    assert end in ("completed", "incomplete")
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", end,
    ]  # fmt: skip
    created, final = events[0]["response"], events[-1]["response"]
    assert created["status"] == events[1]["response"]["status"] == "in_progress"
    assert created["output"] == [] and created["usage"] is None and created["id"] == final["id"]
    (item,) = final["output"]
    text = item["content"][0]["text"]
    added = next(event["item"] for event in events if event["type"] == "response.output_item.added")
    assert added == {**item, "status": "in_progress", "content": []}
    inner = [event for event in events if "item_id" in event]
    assert {(event["item_id"], event["output_index"]) for event in inner} == {(item["id"], 0)}
    assert {event["content_index"] for event in inner} == {0}
    assert "".join(event["delta"] for event in inner if "delta" in event) == text
    assert [event["text"] for event in inner if event["type"] == "response.output_text.done"] == [text]
    assert [event["part"] for event in inner if event["type"] == "response.content_part.done"] == item["content"]
    assert events[-2]["item"] == item and final["usage"]["output_tokens"] > 1
    # It is stored by the time that its end is told, and says what a whole answer says.
    assert client.responses.retrieve(final["id"]).to_dict() == openai.types.responses.Response(**final).to_dict()
    whole = client.responses.create(model=MODEL, input=ASKED, temperature=0, max_output_tokens=40)
    assert (whole.output_text, whole.usage.to_dict()) == (text, final["usage"])


def test_calls_come_in_openai_s_events(keyed_server, client):
    events = raw_events(keyed_server, tools=TOOLS, tool_choice="required", max_output_tokens=200)
    calls = events[-1]["response"]["output"]
    assert kinds(events) == [
        "created", "in_progress",
        *["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
        * len(calls),
        "completed",
    ]  # fmt: skip
    for index, call in enumerate(calls):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["item"] == {**call, "status": "in_progress", "arguments": ""}
        assert "".join(event["delta"] for event in own if "delta" in event) == call["arguments"]
        assert (own[-2]["arguments"], own[-2]["name"], own[-2]["item_id"]) == (call["arguments"], "book", call["id"])
        assert own[-1]["item"] == call and call["status"] == "completed"
        assert 1 <= json.loads(call["arguments"])["people"] <= 9
    # The next request goes on from it.
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in calls]
    answer = client.responses.create(
        model=MODEL, input=outputs, tools=TOOLS, previous_response_id=events[-1]["response"]["id"], max_output_tokens=5
    )
    assert answer.usage.input_tokens > events[-1]["response"]["usage"]["input_tokens"]


def test_the_client_s_stream_helper_puts_it_together(client):
    settings = {"model": MODEL, "input": ASKED, "tools": TOOLS, "temperature": 0, "tool_choice": "required"}
    with client.responses.stream(**settings) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output[-1].arguments
    assert final.output[0].parsed_arguments == json.loads(final.output[0].arguments)
    answered = client.responses.create(**settings)
    assert [item.arguments for item in answered.output] == [item.arguments for item in final.output]


def test_a_stream_that_is_refused_is_a_plain_refusal(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="nobody", input=ASKED, stream=True)
    assert caught.value.code == "model_not_found"


def test_a_caller_who_hangs_up_leaves_nothing(keyed_server, client):
    running, keys = keyed_server
    settings = {"model": "slow", "input": ASKED, "temperature": 0, "max_output_tokens": LONG_ANSWER_TOKENS}
    with client.responses.create(**settings, stream=True) as stream:
        first = next(iter(stream)).response.id
        running.wait_for_answers(1, keys["mine"])
    # An answer that went on would be stored at its end.
    running.wait_for_answers(0, keys["mine"])
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first)
