"""The official `openai` package against a real server process: what it sends is obeyed, what it reads is right."""

from __future__ import annotations

import asyncio
import time

import httpx
import openai
import pytest

from server_process import running_server
from serving_models import prompt
from tiny_models import LONG_ANSWER_TOKENS, tiny_tokenizer
from tunesmith.serve.answering import open_model
from tunesmith.specs.generation import SamplingSpec

HELLO = [{"role": "user", "content": "Hello"}]


def ask(client, model="tiny", messages=HELLO, **settings):
    return client.chat.completions.create(model=model, messages=messages, **{"max_tokens": 8, **settings})


def text_of(completion):
    return completion.choices[0].message.content


def test_models_are_listed_and_found_by_their_names(client, tuned):
    _, _, versions = tuned
    listed = client.models.list().data
    assert [model.id for model in listed[:2]] == ["tiny", "slow"]
    assert {model.id for model in listed[2:]} == {version.name for version in versions}
    for model in listed:
        assert client.models.retrieve(model.id) == model
        assert model.object == "model" and abs(model.created - time.time()) < 3600
    assert {model.owned_by for model in listed} == {"tunesmith", "local"}
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-4/x y")
    assert missing.value.code == "model_not_found"


def test_an_escaped_name_is_the_same_name(server, tuned):
    name = tuned[2][0].name
    reply = httpx.get(f"{server.url}/v1/models/{name.replace(':', '%3A')}")
    assert reply.json()["id"] == name


def test_a_tuned_model_answers_as_it_does_offline(client, tuned):
    base, home, versions = tuned
    greedy = SamplingSpec(max_completion_tokens=8)
    texts = []
    for name in (str(base), *(version.name for version in versions)):
        opened = open_model(name, home, dtype="float32")
        texts.append(opened.engine.generate([opened.request(prompt("Hello"), greedy)])[0].text)
    served = [text_of(ask(client, name, temperature=0)) for name in ("tiny", *(version.name for version in versions))]
    assert served == texts and len(set(texts)) == 3


def test_an_answer_has_all_its_parts(client):
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, max_tokens=5, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        response_format={"type": "text"}, frequency_penalty=0, logit_bias={}, parallel_tool_calls=True, seed=1,
    )  # fmt: skip
    assert raw.headers["x-request-id"].startswith("req_")
    answer = raw.parse()
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "tiny"
    assert answer.system_fingerprint == ask(client).system_fingerprint
    (choice,) = answer.choices
    assert choice.index == 0 and choice.finish_reason == "length" and choice.message.role == "assistant"
    assert choice.logprobs is None
    usage = answer.usage
    assert usage.completion_tokens == 5 and usage.total_tokens == usage.prompt_tokens + 5
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_a_seed_repeats_an_answer_and_n_gives_several(client):
    one, two = (ask(client, seed=7, n=3) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices]
    assert [choice.index for choice in one.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert text_of(ask(client, seed=8)) not in texts[:1]
    assert one.usage.completion_tokens == 24
    assert len({text_of(ask(client)) for _ in range(3)}) == 3  # temperature 1, no seed
    assert text_of(ask(client, top_p=0)) == text_of(ask(client, temperature=0))


def test_a_stop_text_ends_the_answer_and_is_left_out(client):
    whole = text_of(ask(client, seed=1, max_tokens=40))
    part = whole[20:24]
    for stop in (part, ["never there", part]):
        answer = ask(client, seed=1, max_tokens=40, stop=stop)
        assert answer.choices[0].finish_reason == "stop"
        assert text_of(answer) == whole[: whole.index(part)]


def test_what_changes_the_odds_is_obeyed(client):
    (letter,) = tiny_tokenizer("smollm2").encode("a")
    assert text_of(ask(client, temperature=1, logit_bias={str(letter): 100})) == "a" * 8
    same = ask(client, temperature=0, max_tokens=60, logprobs=True)
    for field in ("frequency_penalty", "presence_penalty"):
        varied = ask(client, temperature=0, max_tokens=60, logprobs=True, **{field: 2.0})
        assert kinds_of(varied) > kinds_of(same)
        # Log-probabilities are the model's own all the same: the first token has no penalty yet.
        assert varied.choices[0].logprobs.content[0] == same.choices[0].logprobs.content[0]
    # Those that go into `extra_body`.
    assert text_of(ask(client, seed=1, extra_body={"top_k": 1})) == text_of(ask(client, temperature=0))
    assert text_of(ask(client, seed=1, extra_body={"min_p": 1.0})) == text_of(ask(client, temperature=0))
    assert text_of(ask(client, seed=1, extra_body={"top_k": -1})) == text_of(ask(client, seed=1))
    varied = ask(client, temperature=0, max_tokens=60, logprobs=True, extra_body={"repetition_penalty": 2.0})
    assert kinds_of(varied) > kinds_of(same)
    long = ask(client, seed=3, n=4, max_tokens=200, extra_body={"ignore_eos": True})
    assert {choice.finish_reason for choice in long.choices} == {"length"} and long.usage.completion_tokens == 800


def kinds_of(answer):
    """How many different tokens an answer has."""
    return len({tuple(token.bytes) for token in answer.choices[0].logprobs.content})


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"stream": True, "frequency_penalty": -9}, "frequency_penalty"),
        ({"extra_body": {"min_p": -0.1}}, "min_p"),
        ({"extra_body": {"top_k": "5"}}, "top_k"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"extra_body": {"ignore_eos": "yes"}}, "ignore_eos"),
    ],
)
def test_odds_that_cant_be_are_refused_by_name(client, wrong, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **wrong)
    assert refused.value.param == param


def test_log_probabilities_describe_the_tokens(client):
    answer = ask(client, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
    streamed = [
        token
        for chunk in ask(client, temperature=0, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


def test_a_stream_adds_up_to_the_whole_answer(client):
    whole = ask(client, seed=1, max_tokens=30)
    chunks = list(ask(client, seed=1, max_tokens=30, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == text_of(whole)
    assert all(chunk.choices[0].delta.role is None and chunk.usage is None for chunk in middle)
    assert len(middle) > 5
    assert last.choices[0].finish_reason == "length" and last.choices[0].delta.content is None
    assert usage.choices == [] and usage.usage == whole.usage
    assert all(chunk.choices for chunk in ask(client, stream=True))


def test_a_stream_on_the_wire_is_as_documented(server):
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "stream": True, "n": 2}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event and '"usage"' not in event for event in events)


def test_the_stream_helper_gathers_the_answer(client):
    whole = text_of(ask(client, seed=1, max_tokens=40))
    settings = {"seed": 1, "max_tokens": 40, "stop": whole[20:24]}
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, stream_options={"include_usage": True}, **settings
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    answer = ask(client, **settings)
    assert len(text_of(answer)) > 3
    assert final.choices[0].message.content == text_of(answer)
    assert final.choices[0].message.role == "assistant" and final.choices[0].finish_reason == "stop"
    assert final.usage == answer.usage


def test_messages_of_every_role_are_rendered(client):
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    plain, shown, hidden = (
        ask(client, messages=messages, **more).usage.prompt_tokens
        for more in ({}, {"tools": tools, "tool_choice": "auto"}, {"tools": tools, "tool_choice": "none"})
    )
    assert plain == hidden < shown
    first = ask(client).choices[0].message
    again = [*HELLO, first.model_dump(), {"role": "user", "content": "And now?"}]
    assert ask(client, messages=again).usage.prompt_tokens > 0


def test_a_caller_who_leaves_frees_the_place(client, server):
    written = server.answer_tokens()
    streams = [ask(client, "slow", temperature=0, max_tokens=LONG_ANSWER_TOKENS, n=2, stream=True) for _ in range(2)]
    next(streams[0])
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, "slow")
    assert refused.value.code == "overloaded" and int(refused.value.response.headers["retry-after"]) >= 1
    assert "x-should-retry" not in refused.value.response.headers
    for stream in streams:
        stream.close()
    server.wait_for_answers(0)
    ask(client, "slow", n=4, max_tokens=2)
    # A caller who isn't streaming leaves as well.
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=2), "slow", n=4, temperature=0, max_tokens=LONG_ANSWER_TOKENS)
    ask(client.with_options(max_retries=10), "slow", n=4, max_tokens=2)
    # Each time, four answers were left.
    assert server.answer_tokens() - written < 4 * LONG_ANSWER_TOKENS
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "slow", n=5)
    assert refused.value.code == "too_many_answers" and refused.value.param == "n"


@pytest.mark.slow
def test_the_embedded_base_answers_many_at_once_as_offline(embedded_home, tmp_path):
    questions = [
        "What is the capital of France?", "Name three colours.", "Say hello in Spanish.", "2 + 2 = ?",
        "Who wrote Hamlet?", "What is water made of?", "Give me a word that rhymes with cat.", "Is the sun a star?",
        "Translate 'good night' to German.", "What comes after Tuesday?", "Name a fruit.",
        "How many legs has a spider?",
    ]  # fmt: skip
    opened = open_model("smollm2-135m", embedded_home)
    greedy = SamplingSpec(max_completion_tokens=16)
    offline = [c.text for c in opened.engine.generate([opened.request(prompt(q), greedy) for q in questions])]

    async def ask_all(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

            async def one(question):
                messages = [{"role": "user", "content": question}]
                return text_of(await ask(client, "smollm2-135m", messages, temperature=0, max_tokens=16))

            return await asyncio.gather(*map(one, questions))

    with running_server(tmp_path, embedded_home.root) as server:
        assert asyncio.run(ask_all(server.url)) == offline
        assert server.stop() == 0
        assert server.errors.read_text() == ""
