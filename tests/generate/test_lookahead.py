"""Guessed tokens save steps and change no answer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import CONTEXT_TOKENS, FAMILIES, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.completion import Completion
from tunesmith.generate.engine import Engine
from tunesmith.generate.lookahead import EndingIndex, Lookahead
from tunesmith.generate.request import Delta, Request
from tunesmith.models.adapters.served import LowRank, ServedAdapter
from tunesmith.models.load import LoadedModel
from tunesmith.specs.generation import SamplingSpec


@cache
def loaded(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return LoadedModel(
        model=tiny_model(family).to(dtype), tokenizer=tiny_tokenizer(family), source=None, dtype=dtype,
        device=torch.device("cpu"), context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(), family=family,
    )  # fmt: skip


@cache
def renderer(family: str) -> ChatRenderer:
    return ChatRenderer(tiny_tokenizer(family))


@cache
def page_bytes(family: str, dtype: torch.dtype) -> int:
    return (1 << 22) // Engine(loaded(family, dtype), renderer(family), cache_bytes=1 << 22).status.pages


def engine(rows: int, family: str = "llama", dtype: torch.dtype = torch.float32, pages: int = 200, **limits) -> Engine:
    return Engine(
        loaded(family, dtype), renderer(family), cache_bytes=pages * page_bytes(family, dtype), lookahead_rows=rows,
        **limits,
    )  # fmt: skip


#: Makes answers of a few tokens in any order: their endings stood there before, and often go on otherwise.
FEW = {"logit_bias": dict.fromkeys(range(70, 74), 60.0), "temperature": 1.0, "ignore_eos": True}


def request(prompt, count: int = 40, adapter: str | None = None, **sampling) -> Request:
    spec = {"max_completion_tokens": count, "logprobs": True, "top_logprobs": 2, **sampling}
    return Request(tuple(prompt), SamplingSpec.parse(spec), adapter)


def text(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(20, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def mixed() -> list[Request]:
    """Greedy, drawn, penalised, biased and short answers; one prompt repeats itself, two begin alike."""
    return [
        request(text(9, 1) * 8, 60, ignore_eos=True),
        request(text(70, 2), **FEW, seed=1),
        request((*text(70, 2), 9), **FEW, seed=2, frequency_penalty=0.3, repetition_penalty=1.2),
        request(text(5, 3), **FEW, seed=3, presence_penalty=-0.5, top_p=0.9, top_k=3),
        request(text(5, 4), 1, **FEW, seed=4),
        request(text(30, 5), 90, temperature=0.2, seed=5),
    ]


def answers(e: Engine, requests, at_once: int = 100) -> tuple[list[Completion], int]:
    """Answer requests, so many at once; check that every token comes as one delta. Return the number of steps, too."""
    waiting, done, index_of = list(enumerate(requests)), {}, {}
    deltas: dict[int, list[Delta]] = {}
    steps = 0
    while waiting or e.has_work:
        while waiting and len(index_of) - len(done) < at_once:
            index, one = waiting.pop(0)
            index_of[e.add(one)] = index
        steps += 1
        for delta in e.step():
            deltas.setdefault(delta.request_id, []).append(delta)
            if delta.completion is not None:
                done[index_of[delta.request_id]] = delta.completion
    for request_id, index in index_of.items():
        completion, own = done[index], deltas[request_id]
        assert completion.error is None
        assert len(own) == completion.completion_tokens
        assert [delta.completion is None for delta in own] == [True] * (len(own) - 1) + [False]
        assert "".join(delta.text for delta in own) == completion.text
        assert tuple(found for delta in own for found in delta.logprobs) == completion.logprobs
    assert (e.status.running, e.status.waiting, e.status.held_pages) == (0, 0, 0)
    return [done[index] for index in range(len(requests))], steps


def assert_same(found: list[Completion], true: list[Completion]) -> None:
    for one, other in zip(found, true, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.token_id == theirs.token_id
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [entry[3] for entry in mine.top] == pytest.approx([entry[3] for entry in theirs.top], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_without_guesses(family):
    true, plain_steps = answers(engine(0, family), mixed(), at_once=1)
    for rows, at_once in ((8, 1), (8, 3), (40, 6)):
        e = engine(rows, family, max_prefill_tokens=50)
        found, steps = answers(e, mixed(), at_once)
        assert_same(found, true)
        assert 0 < e.status.accepted_tokens < e.status.guessed_tokens
        if at_once == 1:  # prompts take some steps more here, for they come in chunks
            assert steps < plain_steps - e.status.accepted_tokens // 2


def test_answers_are_the_same_in_bfloat16():
    """Each guess is a decoding row: where company changes nothing, guesses don't either."""
    true, _ = answers(engine(0, dtype=torch.bfloat16), mixed(), at_once=1)
    found, _ = answers(engine(8, dtype=torch.bfloat16), mixed(), at_once=2)
    assert [one.token_ids for one in found] == [one.token_ids for one in true]


def test_a_text_that_repeats_itself_takes_few_steps():
    one = request(text(20), 64, logit_bias={70: 100.0}, ignore_eos=True)
    e = engine(8)
    (found,), steps = answers(e, [one])
    assert found.token_ids == (70,) * 64
    assert steps <= 13, "eight tokens in most steps"
    assert e.status.accepted_tokens == 64 - steps
    assert answers(engine(0), [one])[1] == 64
    four = [request(text(20, seed), 64, logit_bias={70: 100.0}, ignore_eos=True) for seed in range(4)]
    assert 30 < answers(engine(8), four)[1] < 45, "two tokens each"
    many = engine(8)
    assert answers(many, four * 2)[1] == 64
    assert many.status.guessed_tokens == 0, "no rows are left"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_stop_texts_end_answers_between_guesses(seed, data):
    whole = request(text(12), **FEW, seed=seed)
    (true,), _ = answers(engine(0), [whole])
    begin = data.draw(st.integers(0, len(true.text) - 1))
    stop = true.text[begin : begin + data.draw(st.integers(1, 5))]
    if "\ufffd" in stop:
        return
    stopped = [request(text(12), **FEW, seed=seed, stop=(stop,))]
    plain, _ = answers(engine(0), stopped)
    found, _ = answers(engine(8), stopped)
    assert_same(found, plain)
    assert found[0].text == true.text[: true.text.index(stop)]


@pytest.mark.parametrize(
    "form",
    [
        {"kind": "regex", "pattern": "(ab|cd|abc){30}"},
        {"kind": "regex", "pattern": "([01]{3}-){12}x"},
        {"kind": "choice", "choices": ["one one one one one one", "one one one two two", "three"]},
        {"kind": "json_schema", "json_schema": {
            "type": "array", "minItems": 3, "maxItems": 9, "items": {
                "type": "object", "additionalProperties": False, "required": ["name", "age"],
                "properties": {"name": {"enum": ["a", "b"]}, "age": {"type": "integer", "maximum": 99}},
            },
        }},
    ],
)  # fmt: skip
def test_forms_are_kept(form):
    requests = [request(text(5, seed), 150, temperature=1.0, seed=seed, output=form) for seed in range(3)]
    true, plain_steps = answers(engine(0), requests)
    e = engine(8)
    found, steps = answers(e, requests)
    assert_same(found, true)
    assert steps <= plain_steps
    assert form["kind"] == "choice" or 0 < e.status.accepted_tokens < e.status.guessed_tokens


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_short_memory_changes_nothing(family):
    requests = [request(text(40 + 20 * seed, seed), 80, **FEW, seed=seed) for seed in range(5)]
    true, _ = answers(engine(0, family), requests)
    for pages in (4, 6, 9):
        e = engine(16, family, pages=pages)
        for _ in range(2):  # the second time, with what the first left behind
            assert_same(answers(e, requests)[0], true)
        assert e.status.accepted_tokens > 20
        assert pages > 6 or e.status.preemptions > 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nothing_is_guessed_beyond_the_context_or_the_memory(family):
    always = {"logit_bias": {70: 100.0}, "ignore_eos": True}
    (found,), _ = answers(engine(8, family), [request(text(CONTEXT_TOKENS - 30), 500, **always)])
    assert (found.completion_tokens, found.finish_reason) == (30, "length")
    (found,), _ = answers(engine(8, family, pages=2), [request(text(100), **always)])
    assert (found.completion_tokens, found.finish_reason) == (28, "length")


def test_refused_guesses_leave_nothing_in_the_cache():
    e, fresh = engine(8), engine(0)
    prompt = text(50)
    for turn in range(6):
        one = request(prompt, 50, **FEW, seed=turn)
        (found,), (true,) = answers(e, [one])[0], answers(fresh, [one])[0]
        assert_same([found], [true])
        prompt = (*prompt, *found.token_ids, *text(3, turn))
    assert e.status.found_tokens > 500
    assert e.status.guessed_tokens - e.status.accepted_tokens > 30


def test_adapters_and_cancelled_requests_beside():
    requests = [request(text(20, seed), 40, name, **FEW, seed=seed) for seed, name in enumerate([None, "a", "b", "a"])]

    def with_adapters(rows: int) -> Engine:
        e = engine(rows)
        random = torch.Generator().manual_seed(1)
        for name in ("a", "b"):
            layers = {
                layer: LowRank(torch.randn(2, 32, generator=random), 0.3 * torch.randn(32, 2, generator=random))
                for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj")
            }
            e.add_adapter(name, ServedAdapter(layers))
        return e

    true, _ = answers(with_adapters(0), requests)
    assert_same(answers(with_adapters(12), requests)[0], true)
    for steps in range(1, 9, 2):
        e = with_adapters(12)
        ids = [e.add(one) for one in requests]
        for _ in range(steps):
            e.step()
        e.cancel(ids[steps % 4])
        done = {}
        while e.has_work:
            done |= {delta.request_id: delta.completion for delta in e.step() if delta.completion is not None}
        assert ids[steps % 4] not in done
        assert_same(list(done.values()), [true[ids.index(request_id)] for request_id in done])
        assert len(done) == 3
        assert e.status.held_pages == 0


@given(begin=st.lists(st.integers(0, 3), max_size=30), grown=st.lists(st.integers(0, 3), max_size=30))
def test_the_index_finds_what_a_search_finds(begin, grown):
    tokens = [*begin]
    index = EndingIndex(tokens)
    for place in range(len(grown) + 1):
        tokens[len(begin) :] = grown[:place]
        assert index.continuation(7) == searched(tokens, 7)


def searched(tokens: list[int], most: int) -> list[int]:
    for length in (4, 3, 2):
        for behind in range(len(tokens) - 1, length - 1, -1):
            if tokens[behind - length : behind] == tokens[-length:]:
                followed = tokens[behind:]
                return [followed[place % len(followed)] for place in range(most)]
    return []


def test_refused_guesses_become_few_and_rare_until_one_is_right():
    tokens = [1, 2, 3] * 4
    one = Lookahead(tokens)
    assert one.guesses(2) == [1, 2], "as many as are wished for"
    lengths = []
    for _ in range(100):
        guesses = one.guesses(50)
        lengths.append(len(guesses))
        if guesses:
            one.learn(len(guesses), 0)
        tokens.append(tokens[-3])
    assert lengths[:4] == [4, 2, 1, 0]
    assert max(lengths[3:]) == 1
    assert 3 <= sum(lengths[3:]) <= 8
    lengths = []
    while len(lengths) < 6:
        if guesses := one.guesses(50):
            lengths.append(len(guesses))
            one.learn(len(guesses), len(guesses))
        tokens.append(tokens[-3])
    assert lengths == [1, 2, 4, 8, 15, 15]
    one.learn(15, 3)
    assert len(one.guesses(50)) == 15
    assert one.guesses(0) == []
