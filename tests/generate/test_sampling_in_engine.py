"""Requests of every kind of sampling side by side: each as if it were alone, and as transformers would."""

from __future__ import annotations

import pytest
import torch

from tiny_models import CONTEXT_TOKENS, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.engine import Engine
from tunesmith.generate.one_by_one import OneByOne
from tunesmith.generate.request import Delta, Request
from tunesmith.models.load import LoadedModel
from tunesmith.specs.generation import SamplingSpec

PROMPT = tuple(range(40, 60))


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(tiny_tokenizer("qwen2"))


def loaded(**traits) -> LoadedModel:
    return LoadedModel(
        model=tiny_model("qwen2", **traits), tokenizer=tiny_tokenizer("qwen2"), source=None, dtype=torch.float32,
        device=torch.device("cpu"), context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(), family="qwen2",
    )  # fmt: skip


def request(**sampling) -> Request:
    return Request(PROMPT, SamplingSpec(**{"max_completion_tokens": 40, **sampling}))


def test_every_kind_of_request_is_answered_as_if_it_were_alone(renderer):
    """Also with so little memory that they give their pages up and come back: penalties and seeds go on."""
    kinds = [
        {}, {"temperature": 1.0, "seed": 1}, {"temperature": 0.9, "top_p": 0.8, "top_k": 30, "seed": 2},
        {"repetition_penalty": 1.4}, {"presence_penalty": 1.0, "frequency_penalty": 0.5, "temperature": 1.0, "seed": 3},
        {"logit_bias": {70: 4.0, 71: -100}}, {"min_p": 0.2, "temperature": 1.3, "seed": 4, "logprobs": True},
    ]  # fmt: skip
    requests = [request(max_completion_tokens=90, ignore_eos=True, **kind) for kind in kinds]
    ample = Engine(loaded(), renderer, cache_bytes=1 << 24)
    short = Engine(loaded(), renderer, cache_bytes=6 * (1 << 24) // ample.status.pages)
    alone = OneByOne(loaded(), renderer).generate(requests)
    for engine in (ample, short):
        assert [one.token_ids for one in engine.generate(requests)] == [one.token_ids for one in alone]
    assert short.status.preemptions > 0
    assert len({one.token_ids for one in alone}) == len(kinds)
    for one in alone:
        assert one.completion_tokens == 90 and one.finish_reason == "length"
        assert not set(one.token_ids) & renderer.end_of_turn_ids


def test_the_penalty_on_repetition_is_that_of_transformers(renderer):
    model = tiny_model("qwen2")
    out = model.generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), max_new_tokens=40,
        do_sample=False, repetition_penalty=1.3, eos_token_id=sorted(renderer.end_of_turn_ids),
    )  # fmt: skip
    (answer,) = Engine(loaded(), renderer).generate([request(repetition_penalty=1.3)])
    assert list(answer.token_ids) == out[0, len(PROMPT) :].tolist()


def test_a_bias_is_for_a_token_that_there_is(renderer):
    engine = Engine(loaded(), renderer)
    size = tiny_model("qwen2").get_output_embeddings().weight.shape[0]
    assert engine.generate([request(logit_bias={size - 1: 100, 0: -1})])
    for token_id in (size, -1):
        with pytest.raises(RequestError) as refused:
            engine.add(request(logit_bias={token_id: 1.0}))
        assert refused.value.param == "logit_bias" and str(token_id) in refused.value.message
    assert not engine.has_work


def test_a_broken_model_says_so_and_leaves_the_engine_whole(renderer):
    broken = loaded()
    engine = Engine(broken, renderer)
    fine = engine.generate([request()])[0].token_ids
    with torch.no_grad():
        weight = broken.model.get_input_embeddings().weight
        kept, weight[:] = weight.clone(), torch.nan
    requests = [request(), request(temperature=1.0), request(logprobs=True, top_logprobs=3)]
    ids = [engine.add(one) for one in requests]
    ends = {}
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, Delta)
            ends[event.request_id] = event.completion
    assert set(ends) == set(ids)
    for completion in ends.values():
        assert completion.finish_reason == "error" and completion.error.code == "logits_not_finite"
    with pytest.raises(ModelError, match="aren't finite"):
        engine.generate([request()])
    assert not engine.has_work
    with torch.no_grad():
        weight[:] = kept
    assert Engine(broken, renderer).generate([request()])[0].token_ids == fine
