"""`POST /v1/completions`: texts that go on, with the official client.

On SQLite alone: nothing here touches the record.
"""

from __future__ import annotations

import re

import httpx
import openai
import pytest

from server_process import running_server
from serving_models import register_tuned
from tiny_models import save_tiny_model, tiny_tokenizer
from tunesmith.generate.request import ScoreRequest
from tunesmith.record.home import Home
from tunesmith.serve.answering import open_model
from tunesmith.specs.generation import SamplingSpec

TEXT = "A table for four"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny base, one whose tokenizer puts a start token before every text, and a tuned version of the first."""
    folder = tmp_path_factory.mktemp("texts")
    base = save_tiny_model("smollm2", folder / "tiny", num_key_value_heads=4)
    starting = save_tiny_model("llama", folder / "starting")
    home = Home(folder / "home")
    return base, starting, home, register_tuned(base, home)


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    base, starting, home, version = models
    named = [str(base), str(starting), version.name]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        with running_server(tmp_path_factory.mktemp("log"), home.root, models=named, dtype="float32") as running:
            yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, **settings):
    return client.completions.create(**{"model": "tiny", "prompt": TEXT, "max_tokens": 8, "temperature": 0, **settings})


def texts_of(answer):
    return [choice.text for choice in answer.choices]


def test_texts_go_on_as_they_do_offline(client, models):
    base, starting, home, version = models
    greedy = SamplingSpec(max_completion_tokens=8)
    for name, source in (("tiny", str(base)), ("starting", str(starting)), (version.name, version.name)):
        opened = open_model(source, home, dtype="float32")
        prompt = opened.text_request(TEXT, greedy)
        expected = opened.engine.generate([prompt])[0]
        answer = ask(client, model=name)
        assert texts_of(answer) == [expected.text] and answer.model == name
        assert answer.usage.prompt_tokens == len(prompt.prompt_ids)
        assert answer.usage.completion_tokens == expected.completion_tokens
        # No chat template around it: the prompt's tokens are the text's own.
        assert prompt.prompt_ids == tuple(opened.loaded.tokenizer(TEXT)["input_ids"])


def test_an_answer_has_all_its_parts(client):
    answer = ask(client, max_tokens=3, user="me", extra_body={"ignore_eos": True})
    assert re.fullmatch("cmpl-[0-9A-Za-z]{24}", answer.id) and answer.object == "text_completion"
    assert answer.system_fingerprint.startswith("fp_")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    # The service's own default is short.
    default = client.completions.create(model="tiny", prompt=TEXT, extra_body={"ignore_eos": True})
    assert default.usage.completion_tokens == 16


def test_prompts_are_texts_or_tokens_one_or_several(client):
    other = "Book it for"
    (first,), (second,) = (texts_of(ask(client, prompt=prompt)) for prompt in (TEXT, other))
    ids, other_ids = (tiny_tokenizer("smollm2").encode(text) for text in (TEXT, other))
    assert texts_of(ask(client, prompt=[TEXT, other])) == [first, second]
    assert texts_of(ask(client, prompt=ids)) == [first]
    several = ask(client, prompt=[ids, other_ids])
    assert texts_of(several) == [first, second]
    assert several.usage.prompt_tokens == len(ids) + len(other_ids)
    many = ask(client, prompt=[TEXT, other], n=2, temperature=1, seed=1)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert texts_of(many)[:2] == texts_of(ask(client, n=2, temperature=1, seed=1))
    assert ask(client, prompt="").usage.prompt_tokens == 1  # a text of the model's own
    assert ask(client, prompt=None).usage.prompt_tokens == 1


def test_echo_repeats_the_prompt(client):
    (plain,) = texts_of(ask(client))
    ids = tiny_tokenizer("smollm2").encode(TEXT)
    for prompt in (TEXT, ids):
        assert texts_of(ask(client, prompt=prompt, echo=True)) == [TEXT + plain]
    streamed = "".join(chunk.choices[0].text for chunk in ask(client, echo=True, stream=True))
    assert streamed == TEXT + plain


def test_stop_texts_and_seeds(client):
    settings = {"temperature": 1, "seed": 1, "max_tokens": 40}
    (whole,) = texts_of(ask(client, **settings))
    part = whole[8:12]
    for stop in (part, ["never", part]):
        answer = ask(client, **settings, stop=stop)
        assert texts_of(answer) == [whole[: whole.index(part)]] and answer.choices[0].finish_reason == "stop"
    assert texts_of(ask(client, **settings)) == [whole]
    (letter,) = tiny_tokenizer("smollm2").encode("a")
    assert texts_of(ask(client, logit_bias={str(letter): 100})) == ["a" * 8]


def test_log_probabilities_are_in_the_old_form(client):
    choice = ask(client, logprobs=3, temperature=1, seed=2, max_tokens=20).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    # A token that is a part of a character is called by its bytes.
    spelt = [token.removeprefix("bytes:").encode().decode("unicode_escape").encode("latin-1")
             if token.startswith("bytes:") else token.encode() for token in found.tokens]  # fmt: skip
    assert b"".join(spelt).decode(errors="replace") == choice.text
    for token, logprob, top, offset in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True
    ):
        assert 1 <= len(top) <= 4 and top[token] == logprob <= 0
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    assert ask(client, logprobs=0).choices[0].logprobs.top_logprobs is None
    settings = {"logprobs": 2, "temperature": 1, "seed": 2, "max_tokens": 20}
    whole = ask(client, **settings).choices[0].logprobs
    chunks = [chunk.choices[0].logprobs for chunk in ask(client, **settings, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for chunk in chunks for one in getattr(chunk, name)] == getattr(whole, name)


def test_the_prompts_own_log_probabilities(client, models):
    """As programs that measure models on given answers ask for them."""
    settings = {"logprobs": 2, "echo": True, "prompt": [TEXT, "Book"]}
    alone = ask(client, **settings, max_tokens=0)
    longer = ask(client, **settings, max_tokens=4)
    for prompt, choice, more in zip(settings["prompt"], alone.choices, longer.choices, strict=True):
        ids = tiny_tokenizer("smollm2").encode(prompt)
        assert choice.text == prompt and more.text.startswith(prompt) and choice.finish_reason == "length"
        found = choice.logprobs
        assert "".join(found.tokens) == prompt and len(found.tokens) == len(ids)
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        places = zip(found.text_offset, found.tokens, strict=True)
        assert [prompt[at : at + len(token)] for at, token in places] == found.tokens
        for token, logprob, top in zip(found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
            assert top[token] == logprob <= max(top.values()) and len(top) in (2, 3)
        count = len(ids)
        assert more.logprobs.tokens[:count] == found.tokens and len(more.logprobs.tokens) > count
        assert more.logprobs.token_logprobs[1:count] == pytest.approx(found.token_logprobs[1:], abs=1e-4)
        # The answer is greedy: its tokens are the likeliest.
        for logprob, top in zip(more.logprobs.token_logprobs[count:], more.logprobs.top_logprobs[count:], strict=True):
            assert logprob == max(top.values())
    assert alone.usage.completion_tokens == 0 and alone.usage.prompt_tokens == longer.usage.prompt_tokens
    base, _, home, _ = models
    opened = open_model(str(base), home, dtype="float32")
    ids = opened.renderer.text_ids(TEXT)
    expected = opened.engine.score([ScoreRequest(ids[:1], ids[1:])])[0]
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected.logprobs, abs=1e-4)
    # A start of text that the tokenizer adds is a token, and no text.
    starting = ask(client, model="starting", prompt=TEXT, logprobs=1, echo=True, max_tokens=1).choices[0]
    assert starting.logprobs.tokens[0] == "<|begin_of_text|>" and starting.logprobs.text_offset[:2] == [0, 0]
    chunks = [chunk.choices[0] for chunk in ask(client, logprobs=2, echo=True, max_tokens=4, stream=True)]
    assert [one for chunk in chunks for one in chunk.logprobs.text_offset] == longer.choices[0].logprobs.text_offset
    assert [one for chunk in chunks for one in chunk.logprobs.tokens] == longer.choices[0].logprobs.tokens


def test_the_best_of_several_are_those_that_are_likeliest(client):
    settings = {"temperature": 1, "seed": 3, "max_tokens": 10, "extra_body": {"ignore_eos": True}}
    each = ask(client, n=4, logprobs=0, **settings)
    mean = {choice.text: sum(choice.logprobs.token_logprobs) for choice in each.choices}
    expected = sorted(mean, key=mean.get, reverse=True)
    best = ask(client, n=2, best_of=4, **settings)
    assert texts_of(best) == expected[:2] and [choice.logprobs for choice in best.choices] == [None, None]
    assert best.usage.completion_tokens == 40


def test_a_stream_adds_up_to_the_whole_texts(client):
    settings = {"prompt": [TEXT, "Book it"], "n": 2, "temperature": 1, "seed": 4, "max_tokens": 20}
    whole = ask(client, **settings)
    texts = dict.fromkeys(range(4), "")
    reasons = {}
    *chunks, last = ask(client, **settings, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        assert chunk.usage is None and (chunk.id, chunk.object) == (last.id, "text_completion")
        if choice.finish_reason is not None:
            reasons[choice.index] = choice.finish_reason
    assert list(texts.values()) == texts_of(whole)
    assert [reasons[index] for index in range(4)] == [choice.finish_reason for choice in whole.choices]
    assert last.choices == [] and last.usage == whole.usage
    assert all("usage" not in chunk.model_fields_set for chunk in ask(client, stream=True))


def test_a_stream_on_the_wire_is_as_documented(server):
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 2, "stream": True}
    reply = httpx.post(f"{server.url}/v1/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": [1, "a"]}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": [-1]}, "prompt", "invalid_type"),
        ({"prompt": [[]]}, "prompt", "invalid_type"),
        ({"prompt": {"text": "x"}}, "prompt", "invalid_type"),
        ({"prompt": [10**6]}, "prompt", "invalid_value"),
        ({"prompt": [10**30]}, "prompt", "invalid_value"),
        ({"prompt": "word " * 2000}, "prompt", "context_length_exceeded"),
        ({"prompt": ["word"] * 3000, "n": 128}, "prompt", "too_many_answers"),
        ({"prompt": ["word"] * 100, "n": 128}, "n", "too_many_answers"),
        ({"prompt": ["word"] * 100, "best_of": 128}, "best_of", "too_many_answers"),
        ({"suffix": " end"}, "suffix", "unsupported_parameter"),
        ({"echo": "yes"}, "echo", "invalid_type"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"logit_bias": {"the": 1}}, "logit_bias", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"store": True}, "store", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(server, change, param, code):
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 2, **change}
    reply = httpx.post(f"{server.url}/v1/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error


def test_an_unknown_model_is_told(client):
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="davinci")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
