"""Neither short memory, nor shared pages, adapters beside others or broken weights change anybody's answer."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from lone_models import lone_model
from tiny_models import CONTEXT_TOKENS, FAMILIES, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.choice import decoder_for
from tunesmith.generate.engine import Engine
from tunesmith.generate.pages import PageMemory
from tunesmith.generate.request import Delta, Request, ScoreDone, ScoreRequest
from tunesmith.generate.room import pages_taken_at_once
from tunesmith.models.adapters.served import LowRank, ServedAdapter
from tunesmith.models.load import LoadedModel
from tunesmith.models.quiet import quiet_libraries
from tunesmith.specs.generation import SamplingSpec


def loaded_as(family: str, model, context_tokens: int = CONTEXT_TOKENS) -> LoadedModel:
    return LoadedModel(
        model=model, tokenizer=tiny_tokenizer(family), source=None, dtype=torch.float32, device=torch.device("cpu"),
        context_tokens=context_tokens, end_of_turn_ids=(), family=family,
    )  # fmt: skip


@cache
def loaded(family: str) -> LoadedModel:
    return loaded_as(family, tiny_model(family))


@cache
def renderer(family: str) -> ChatRenderer:
    return ChatRenderer(tiny_tokenizer(family))


@cache
def page_bytes(family: str) -> int:
    return (1 << 22) // Engine(loaded(family), renderer(family), cache_bytes=1 << 22).status.pages


def engine(family: str = "llama", pages: int = 200, **limits) -> Engine:
    return Engine(loaded(family), renderer(family), cache_bytes=pages * page_bytes(family), **limits)


def request(prompt, count: int = 80, adapter: str | None = None, **sampling) -> Request:
    spec = SamplingSpec(max_completion_tokens=count, ignore_eos=True, **sampling)
    return Request(tuple(prompt), spec, adapter)


def text(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(20, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def long_prompts() -> list[tuple[int, ...]]:
    """Two share 150 tokens, two others are one within the other, one fills its pages."""
    shared = text(150, 0)
    return [(*shared, *text(5, 1)), (*shared, *text(90, 2)), text(70, 3), text(70, 3)[:66], text(128, 4), text(2, 5)]


def tokens(completions) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def greedy(model, family: str, prompt, count: int) -> tuple[int, ...]:
    """transformers' greedy answer that no end token ends."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=count,
        do_sample=False, eos_token_id=None, pad_token_id=0, suppress_tokens=sorted(renderer(family).end_of_turn_ids),
    )  # fmt: skip
    return tuple(out[0, len(prompt) :].tolist())


def assert_all_is_given_back(e: Engine) -> None:
    assert not e.has_work
    assert (e.status.running, e.status.waiting, e.status.held_pages) == (0, 0, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_answers_over_many_pages_are_those_of_transformers(family):
    """Pages are shared, read by several rows at once, and slide out of windows of 16 tokens."""
    e = engine(family, max_prefill_tokens=100)
    true = [greedy(tiny_model(family), family, prompt, 80) for prompt in long_prompts()]
    assert tokens(e.generate([request(prompt) for prompt in long_prompts()])) == true
    assert e.status.found_tokens > 150 + 60
    assert tokens(e.generate([request(prompt) for prompt in long_prompts()[::3]])) == true[::3]  # all of it is cached
    assert_all_is_given_back(e)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_answers_survive_giving_their_pages_up(family):
    requests = [request(prompt, temperature=1.0, seed=3) for prompt in long_prompts()]
    ample, short = engine(family), engine(family, pages=7)
    true = ample.generate(requests)
    for _ in range(2):  # the second time, with what the first left behind
        assert tokens(short.generate(requests)) == tokens(true)
    assert ample.status.preemptions == 0
    assert short.status.preemptions > 2
    assert_all_is_given_back(short)


def test_a_cancelled_request_changes_nobody():
    requests = [request(prompt, 30, temperature=1.0, seed=1) for prompt in long_prompts()]
    true = tokens(engine().generate(requests))
    for steps in range(0, 12, 2):
        e = engine(pages=9, max_prefill_tokens=64, prefill_beside_tokens=20)
        ids = [e.add(one) for one in requests]
        done = {}
        for step in range(400):
            if step == steps:
                e.cancel(ids[steps % len(ids)])
            for delta in e.step():
                assert step < steps or delta.request_id != ids[steps % len(ids)]
                if delta.completion is not None:
                    done[delta.request_id] = delta.completion.token_ids
        assert done == {ids[i]: true[i] for i in range(len(ids)) if i != steps % len(ids)}
        assert_all_is_given_back(e)


def test_a_long_prompt_does_not_hold_answers_up():
    e = engine(max_prefill_tokens=512, prefill_beside_tokens=50)
    first = e.add(request(text(10, 0), 40))
    e.step()
    second = e.add(request(text(500, 1), 1))
    told = [[delta.request_id for delta in e.step()] for _ in range(10)]
    assert told == [[first]] * 9 + [[first, second]]


def test_what_does_not_fit_into_memory_is_refused():
    with pytest.raises(RequestError) as refused:
        engine(pages=2).check(request(text(128, 0)))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(ModelError) as small:
        Engine(loaded("llama"), renderer("llama"), cache_bytes=1000)
    assert small.value.code == "cache_too_small"
    (answer,) = engine(pages=2).generate([request(text(100, 0))])
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 28)


def true_score(model, prompt, continuation, top) -> tuple[list[float], list[bool], list[float]]:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *continuation]])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits, -1)
    targets = torch.tensor(continuation, dtype=torch.long)
    found, is_likeliest = logprobs.gather(1, targets[:, None])[:, 0].tolist(), (logprobs.argmax(-1) == targets).tolist()
    return found, is_likeliest, logprobs.topk(top, -1).values.flatten().tolist()


@pytest.mark.parametrize("family", [*FAMILIES, "mamba"])
def test_scores_are_those_of_transformers(family):
    if family == "mamba":
        model, prompts = lone_model("mamba"), [text(30, 1), text(1, 2)]
        decoder = decoder_for(loaded_as("qwen2", model), renderer("qwen2"))
    else:
        model, prompts = tiny_model(family), [text(130, 1), text(64, 2), text(1, 3)]
        decoder = engine(family, pages=8, max_prefill_tokens=90)
    asked = [
        ScoreRequest(prompt, (*text(count, 7 + count),), top=top)
        for prompt in prompts
        for count in (1, 2, 40)
        for top in (0, 3)
    ]
    with quiet_libraries():
        found = decoder.score(asked)
        for one, score in zip(asked, found, strict=True):
            logprobs, is_likeliest, likeliest = true_score(model, one.prompt_ids, one.continuation_ids, one.top)
            assert score.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert score.is_likeliest == tuple(is_likeliest)
            assert score.total == pytest.approx(sum(logprobs), abs=1e-3)
            assert [logprob for place in score.top for _, logprob in place] == pytest.approx(likeliest, abs=1e-4)
            assert one.top == 0 or is_likeliest == [
                place[0][0] == token for place, token in zip(score.top, one.continuation_ids, strict=True)
            ]
        (empty,) = decoder.score([ScoreRequest(prompts[0], ())])
    assert (empty.logprobs, empty.is_likeliest) == ((), ())
    assert not decoder.has_work


def test_a_prompt_is_computed_once_for_all_its_continuations():
    e = engine()
    prompt = text(200, 1)
    e.score([ScoreRequest(prompt, text(3, seed)) for seed in range(10)])
    # Each goes on from the prompt's last token; the last token of a continuation is never computed.
    assert e.status.computed_tokens == len(prompt) + 2 + 9 * 3


def test_a_greedy_answer_is_likeliest_at_each_place_and_its_log_probabilities_are_its_score():
    e = engine()
    (answer,) = e.generate([Request(text(50, 1), SamplingSpec(max_completion_tokens=20, logprobs=True))])
    ids = [e.add(request(text(90, 2), 30)), e.add_score(ScoreRequest(text(50, 1), answer.token_ids))]
    events = []
    while e.has_work:  # an answer grows meanwhile
        events += e.step()
    (done,) = [event for event in events if isinstance(event, ScoreDone)]
    assert done.request_id == ids[1]
    assert all(done.score.is_likeliest)
    said = [token.logprob for token in answer.logprobs]
    assert list(done.score.logprobs[: len(said)]) == pytest.approx(said, abs=1e-4)
    assert [event.completion is not None for event in events if isinstance(event, Delta)].count(True) == 1


@pytest.mark.parametrize(
    ("prompt", "continuation", "adapter", "code"),
    [((), (5,), None, "empty_prompt"), (range(600), range(600), None, "context_length_exceeded"),
     ((5,), (6,), "unknown", "unknown_adapter")],
)  # fmt: skip
def test_scores_that_cannot_be_computed_are_refused(prompt, continuation, adapter, code):
    e = engine()
    with pytest.raises(RequestError) as refused:
        e.score([ScoreRequest((5, 6), (7,)), ScoreRequest(tuple(prompt), tuple(continuation), adapter)])
    assert refused.value.code == code
    assert not e.has_work


def adapter_of(model, seed: int) -> ServedAdapter:
    random = torch.Generator().manual_seed(seed)

    def layer(module) -> LowRank:
        return LowRank(
            torch.randn(4, module.in_features, generator=random) * 0.2,
            torch.randn(module.out_features, 4, generator=random) * 0.2,
        )

    names = ("q_proj", "v_proj", "down_proj")
    return ServedAdapter({name: layer(m) for name, m in model.named_modules() if name.endswith(names)})


def folded(model, adapter: ServedAdapter):
    """The model with the adapter in its weights."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in adapter.layers.items():
            tuned.get_submodule(name).weight += layer.b @ layer.a
    return tuned


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_adapters_answer_side_by_side_as_they_do_alone(family):
    model = tiny_model(family)
    given = {name: adapter_of(model, seed) for seed, name in enumerate(("a", "b"))}
    true = {
        (name, prompt): greedy(folded(model, given[name]) if name else model, family, prompt, 20)
        for name in (None, "a", "b")
        for prompt in long_prompts()
    }
    assert len(set(true.values())) > 2 * len(long_prompts())
    e = engine(family, max_prefill_tokens=120)
    for name, adapter in given.items():
        e.add_adapter(name, adapter)
    requests = [request(prompt, 20, name) for prompt in long_prompts() for name in ("b", None, "a")]
    for _ in range(2):
        answers = e.generate(requests)
        for one, answer in zip(requests, answers, strict=True):
            assert answer.token_ids == true[one.adapter, one.prompt_ids]
    assert e.generate([requests[0]])[0].token_ids == true["b", requests[0].prompt_ids]
    assert_all_is_given_back(e)


def test_two_engines_of_one_model_take_turns():
    first, second = engine(), engine()
    model = loaded("llama").model
    first.add_adapter("a", adapter_of(model, 1))
    second.add_adapter("a", adapter_of(model, 2))
    alone = [engine() for _ in range(2)]
    for seed, one in enumerate(alone, 1):
        one.add_adapter("a", adapter_of(model, seed))
    true = [tokens(one.generate([request(text(20, 1), 10, "a")]))[0] for one in alone]
    del alone
    ids = [one.add(request(text(20, 1), 10, "a")) for one in (first, second)]
    done = []
    while first.has_work or second.has_work:
        for one in (first, second):
            done += [delta.completion for delta in one.step() if delta.completion is not None]
    assert ids == [0, 0]
    assert tokens(done) == true
    assert true[0] != true[1]


def test_an_adapter_goes_when_nobody_uses_it():
    e = engine()
    model = loaded("llama").model
    e.add_adapter("a", adapter_of(model, 1))
    with pytest.raises(ModelError, match="already"):
        e.add_adapter("a", adapter_of(model, 2))
    (first,) = e.generate([request(text(100, 1), 10, "a")])
    cached = e.status.cached_pages
    request_id = e.add(request(text(9, 1), 10, "a"))
    with pytest.raises(ModelError) as busy:
        e.remove_adapter("a")
    assert busy.value.code == "adapter_busy"
    e.cancel(request_id)
    e.remove_adapter("a")
    assert cached == 2
    assert e.status.cached_pages == 0, "what it computed is worth nothing without it"
    assert e.adapters == frozenset()
    with pytest.raises(ModelError, match="no adapter"):
        e.remove_adapter("a")
    with pytest.raises(RequestError) as unknown:
        e.add(request(text(9, 1), 10, "a"))
    assert unknown.value.code == "unknown_adapter"
    e.add_adapter("a", adapter_of(model, 2))  # another one by the same name
    (second,) = e.generate([request(text(100, 1), 10, "a")])
    assert first.token_ids != second.token_ids


def test_a_broken_adapter_harms_nobody_else():
    """What isn't a number stays where it is, also in pages that others use afterwards."""
    requests = [request(prompt, 20) for prompt in long_prompts()]
    true = tokens(engine().generate(requests))
    e = engine(pages=8)
    broken = adapter_of(loaded("llama").model, 1)
    for layer in broken.layers.values():
        layer.b.fill_(torch.nan)
    e.add_adapter("broken", broken)
    for _ in range(2):
        ids = [e.add(request(one.prompt_ids, 20, name)) for one in requests for name in (None, "broken")]
        done = {}
        while e.has_work:
            done |= {delta.request_id: delta.completion for delta in e.step() if delta.completion is not None}
        assert tokens(done[request_id] for request_id in ids[::2]) == true
        assert {done[request_id].error.code for request_id in ids[1::2]} == {"logits_not_finite"}
    assert tokens(e.generate(requests)) == true


def test_memory_is_taken_before_there_are_requests_within_bounds():
    assert pages_taken_at_once(1 << 20, total=100_000, max_batch=1000) == 512, "half a gibibyte at most"
    assert pages_taken_at_once(1 << 20, total=800, max_batch=1000) == 100, "an eighth of what there is"
    assert pages_taken_at_once(1 << 20, total=100_000, max_batch=2) == 16, "what requests fill at first"
    memory = PageMemory(40)
    memory.take({0: torch.empty(2, 0, 16), 3: torch.empty(1, 0, 32)}, 5)
    for layer, shape in ((0, (40, 2, 64, 16)), (3, (40, 1, 64, 32))):
        like = torch.ones(shape[1], 1, shape[3])  # a layer that is there isn't made again
        assert [tuple(kept.shape) for kept in memory.layer(layer, like)] == [shape] * 2
        assert not any(kept.any() for kept in memory.layer(layer, like))
