"""vLLM answers as the torch engine does: the same tokens, the same text, the same ends."""

from __future__ import annotations

import json
import math
import re

import pytest

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.request import Delta, Request, ScoreRequest
from tunesmith.generate.vllm.adapters import adapter_files
from tunesmith.specs.generation import SamplingSpec

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Write a haiku about the sea.",
    "How many legs has a spider?",
    "Translate 'good morning' into Spanish.",
    "Explain gravity to a child in one sentence.",
    "What is 12 times 12?",
    "Who wrote Hamlet?",
)
#: vLLM adds in another order; in float32 on this base the largest difference seen was a tenth of this.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def ask(renderer: ChatRenderer):
    def make(question: str, adapter: str | None = None, **settings) -> Request:
        prompt_ids = renderer.for_generation(Conversation((Message("user", question),)))
        return Request(prompt_ids, SamplingSpec(**{"max_completion_tokens": 24, **settings}), adapter)

    return make


def same_as_torch(vllm, torch_decoders, requests) -> None:
    """Token for token, with the same text, end and log-probabilities."""
    theirs = vllm.generate(requests)
    for request, found in zip(requests, theirs, strict=True):
        plain = Request(request.prompt_ids, request.sampling)
        expected = torch_decoders[request.adapter].generate([plain])[0]
        assert (found.token_ids, found.text, found.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )
        for ours, one in zip(expected.logprobs, found.logprobs, strict=True):
            assert math.isclose(ours.logprob, one.logprob, abs_tol=TOLERANCE)
            assert [top[0] for top in ours.top] == [top[0] for top in one.top]


def test_greedy_answers_and_their_logprobs(vllm, torch_decoders, ask):
    same_as_torch(vllm, torch_decoders, [ask(question, logprobs=True, top_logprobs=3) for question in QUESTIONS])


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.7, "presence_penalty": 0.4},
        {"logit_bias": {28: -100.0, 198: 5.0}},
        {"ignore_eos": True, "max_completion_tokens": 40},
        {"stop": ("the", "\n")},
        {"max_completion_tokens": 1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_mean_the_same(vllm, torch_decoders, ask, settings):
    same_as_torch(vllm, torch_decoders, [ask(question, **settings) for question in QUESTIONS[:3]])


def test_adapters_mixed_in_flight_answer_as_each_alone(vllm, torch_decoders, ask):
    names = [None, "pirate", "poet"]
    requests = [ask(question, names[i % 3], logprobs=True) for i, question in enumerate(QUESTIONS)]
    same_as_torch(vllm, torch_decoders, requests)
    alone = [vllm.generate([request])[0].token_ids for request in requests]
    assert alone == [completion.token_ids for completion in vllm.generate(requests)]
    plain = vllm.generate([ask(question) for question in QUESTIONS])
    for name in names[1:]:
        adapted = vllm.generate([ask(question, name) for question in QUESTIONS])
        assert [completion.text for completion in adapted] != [completion.text for completion in plain]


@pytest.mark.parametrize("adapter", [None, "pirate", "poet"])
def test_scores(vllm, torch_decoders, ask, adapter):
    asked = [ask(question, logprobs=True, max_completion_tokens=8, ignore_eos=True) for question in QUESTIONS[:4]]
    answers = torch_decoders[adapter].generate(asked)
    requests = [
        ScoreRequest(request.prompt_ids, answer.token_ids, adapter)
        for request, answer in zip(asked, answers, strict=True)
    ]
    for found, answer in zip(vllm.score(requests), answers, strict=True):
        assert len(found.logprobs) == 8
        for ours, theirs in zip(answer.logprobs, found.logprobs, strict=True):
            assert math.isclose(ours.logprob, theirs, abs_tol=TOLERANCE)
    assert vllm.score([ScoreRequest(asked[0].prompt_ids, (5, 6), adapter)])[0].is_likeliest == (False, False)


def test_a_seed_gives_the_same_tokens_alone_and_among_others(vllm, ask):
    drawn = ask(QUESTIONS[2], temperature=1.0, top_p=0.9, top_k=40, min_p=0.02, seed=7)
    alone = vllm.generate([drawn])[0].token_ids
    others = [ask(question, temperature=1.0) for question in QUESTIONS]
    assert vllm.generate([*others, drawn])[-1].token_ids == alone
    several = vllm.generate(ask(QUESTIONS[2], temperature=1.0, seed=7, n=4).expand())
    assert len({completion.token_ids for completion in several}) > 1


def test_a_stream_is_the_answer_piece_by_piece(vllm, ask):
    request_id = vllm.add(ask(QUESTIONS[2], logprobs=True))
    deltas = []
    while vllm.has_work:
        deltas += vllm.step()
    assert {delta.request_id for delta in deltas} == {request_id}
    completion = deltas[-1].completion
    assert completion is not None
    assert "".join(delta.text for delta in deltas) == completion.text
    assert len(deltas) > 5
    assert sum((delta.logprobs for delta in deltas), ()) == completion.logprobs


def test_answers_keep_to_a_form(vllm, ask):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    forms = [
        {"kind": "json_schema", "json_schema": schema},
        {"kind": "regex", "pattern": r"[A-Z][a-z]{2,8}!"},
        {"kind": "choice", "choices": ["red", "green", "blue"]},
        {"kind": "grammar", "grammar": 'start: "yes " NUMBER\nNUMBER: /[0-9]{2}/'},
        {"kind": "json_object"},
    ]
    found = vllm.generate([ask("Tell me about Paris.", output=form, max_completion_tokens=60) for form in forms])
    parsed = json.loads(found[0].text)
    assert parsed.keys() == {"city", "people"}
    assert isinstance(parsed["people"], int)
    assert re.fullmatch(r"[A-Z][a-z]{2,8}!", found[1].text)
    assert found[2].text in {"red", "green", "blue"}
    assert re.fullmatch(r"yes [0-9]{2}", found[3].text)
    assert found[4].text.lstrip().startswith("{")
    assert [completion.finish_reason for completion in found[:4]] == ["stop"] * 4


def test_a_cancelled_answer_is_not_heard_of_again(vllm, ask):
    long = vllm.add(ask(QUESTIONS[2], ignore_eos=True, max_completion_tokens=1500))
    while not vllm.step():
        pass
    vllm.cancel(long)
    assert not vllm.has_work
    other = vllm.add(ask(QUESTIONS[0]))
    heard = []
    while vllm.has_work:
        heard += vllm.step()
    assert {delta.request_id for delta in heard if isinstance(delta, Delta)} == {other}
    waiting = [vllm.add(ask(QUESTIONS[0])) for _ in range(40)]
    for request_id in waiting:
        vllm.cancel(request_id)
    assert vllm.step() == []


def test_adapters_come_and_go(vllm, adapters, ask):
    with pytest.raises(ModelError, match="already"):
        vllm.add_adapter("poet", adapter_files(adapters["poet"]))
    before = vllm.generate([ask(QUESTIONS[0], "poet")])[0].token_ids
    vllm.remove_adapter("poet")
    with pytest.raises(RequestError, match="no adapter"):
        vllm.add(ask(QUESTIONS[0], "poet"))
    # Another adapter under a name that was in use: nothing of the first may be left in a cache.
    vllm.add_adapter("poet", adapter_files(adapters["pirate"]))
    assert vllm.generate([ask(QUESTIONS[0], "poet")])[0].token_ids == (
        vllm.generate([ask(QUESTIONS[0], "pirate")])[0].token_ids
    )
    vllm.remove_adapter("poet")
    vllm.add_adapter("poet", adapter_files(adapters["poet"]))
    assert vllm.generate([ask(QUESTIONS[0], "poet")])[0].token_ids == before
