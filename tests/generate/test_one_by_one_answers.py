"""Models that compute one text at a time answer as transformers does, through the same interface."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lone_models import LONE, lone_model
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.choice import decoder_for
from tunesmith.generate.engine import Engine
from tunesmith.generate.one_by_one import OneByOne
from tunesmith.generate.request import Request
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.adapters.served import read_served
from tunesmith.models.load import LoadedModel
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.resolve import BaseSource
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.tune import LoraSpec

_CONTEXT_TOKENS = 64


def decoder(model):
    tokenizer = tiny_tokenizer("qwen2")
    loaded = LoadedModel(
        model=model, tokenizer=tokenizer, source=None, dtype=torch.float32, device=torch.device("cpu"),
        context_tokens=_CONTEXT_TOKENS, end_of_turn_ids=(), family=model.config.model_type,
    )  # fmt: skip
    with quiet_libraries():
        return decoder_for(loaded, ChatRenderer(tokenizer))


def request(prompt, **sampling) -> Request:
    return Request(tuple(prompt), SamplingSpec(**{"max_completion_tokens": 12, **sampling}))


def prompts() -> list[tuple[int, ...]]:
    random = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(20, 300, (count,), generator=random).tolist()) for count in (1, 2, 23, 40)]


@pytest.mark.parametrize("kind", LONE)
def test_greedy_answers_are_those_of_transformers(kind):
    model = lone_model(kind)
    one = decoder(model)
    assert isinstance(one, OneByOne)
    with quiet_libraries():
        answers = one.generate([request(prompt) for prompt in prompts()])
        for prompt, answer in zip(prompts(), answers, strict=True):
            asked = torch.tensor([prompt])
            true = model.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=sorted(one.renderer.end_of_turn_ids),
            )
            assert list(answer.token_ids) == true[0, len(prompt) :].tolist()
            assert answer.finish_reason in ("stop", "length")
            assert answer.text == one.renderer.decode(answer.token_ids)


def test_it_answers_as_the_engine_does():
    """The same model through both: sampling, stop texts, log-probabilities, limits."""
    side_by_side = decoder(tiny_model("qwen2", vocab_size=400))
    assert isinstance(side_by_side, Engine)
    loaded = LoadedModel(
        model=tiny_model("qwen2", vocab_size=400), tokenizer=tiny_tokenizer("qwen2"), source=None,
        dtype=torch.float32, device=torch.device("cpu"), context_tokens=_CONTEXT_TOKENS, end_of_turn_ids=(),
        family="qwen2",
    )  # fmt: skip
    alone = OneByOne(loaded, side_by_side.renderer)
    requests = [
        *(request(prompt, temperature=1.2, top_p=0.9, seed=3, logprobs=True, top_logprobs=2) for prompt in prompts()),
        *(request(prompt, max_completion_tokens=60) for prompt in prompts()),
    ]
    for one, other in zip(alone.generate(requests), side_by_side.generate(requests), strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
        assert [token.logprob for token in one.logprobs] == pytest.approx([t.logprob for t in other.logprobs], abs=1e-4)
    assert not alone.has_work


def test_a_cancelled_request_says_nothing_more():
    one = decoder(lone_model("mamba"))
    first, second = one.add(request(prompts()[0])), one.add(request(prompts()[1]))
    assert [delta.request_id for delta in one.step()] == [first]
    one.cancel(first)
    assert [delta.request_id for delta in one.step()] == [second]
    one.cancel(second)
    one.cancel(second)
    assert not one.has_work
    assert one.step() == []


def test_what_does_not_fit_is_refused():
    one = decoder(lone_model("mamba"))
    with pytest.raises(RequestError) as refused:
        one.add(request(range(20, 20 + _CONTEXT_TOKENS)))
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("kind", ["mamba", "lfm2", "gpt_oss"])
def test_each_request_goes_through_its_own_adapter(kind, tmp_path):
    names, expected = [None, "one", "other"], {}
    one = decoder(lone_model(kind))
    for seed, name in enumerate(names):
        model = lone_model(kind)
        if name is not None:
            torch.manual_seed(seed)
            adapter = add_lora(model, LoraSpec(rank=2, dora=name == "other"))
            for parameter in adapter.parameter_groups()[0].parameters:
                torch.nn.init.normal_(parameter, std=0.3)
            (tmp_path / name).mkdir()
            adapter.save(tmp_path / name, BaseSource("base", tmp_path, "folder", "0" * 64, "base"))
            one.add_adapter(name, read_served(tmp_path / name, lone_model(kind), torch.float32, torch.device("cpu")))
        alone = decoder(model)
        expected[name] = [answer.token_ids for answer in alone.generate([request(prompt) for prompt in prompts()])]
    asked = [(name, i) for i in range(len(prompts())) for name in names]
    answers = one.generate([replace(request(prompts()[i]), adapter=name) for name, i in asked])
    for (name, i), answer in zip(asked, answers, strict=True):
        assert answer.token_ids == expected[name][i]
    assert len({str(answers) for answers in expected.values()}) == 3
    busy = one.add(replace(request(prompts()[0]), adapter="one"))
    for _ in range(2):  # waiting, then at work
        with pytest.raises(ModelError, match="answering"):
            one.remove_adapter("one")
        one.step()
    one.cancel(busy)
    one.remove_adapter("one")
    with pytest.raises(RequestError) as refused:
        one.add(replace(request(prompts()[0]), adapter="one"))
    assert refused.value.code == "unknown_adapter" and one.adapters == {"other"}
