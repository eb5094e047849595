"""Answers are those of transformers, whatever else is in the batch, in the cache, or cancelled."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import CONTEXT_TOKENS, FAMILIES, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import RequestError
from tunesmith.generate.engine import Engine
from tunesmith.generate.request import Request
from tunesmith.models.load import LoadedModel, load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.specs.generation import SamplingSpec


@cache
def loaded(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    tokenizer = tiny_tokenizer(family)
    return LoadedModel(
        model=tiny_model(family).to(dtype), tokenizer=tokenizer, source=None, dtype=dtype, device=torch.device("cpu"),
        context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(), family=family,
    )  # fmt: skip


@cache
def renderer(family: str) -> ChatRenderer:
    return ChatRenderer(tiny_tokenizer(family))


def engine(family: str = "llama", dtype: torch.dtype = torch.float32, **limits) -> Engine:
    return Engine(loaded(family, dtype), renderer(family), **limits)


@cache
def pages(family: str, count: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory for a few pages."""
    e = engine(family, dtype, cache_bytes=1 << 22)
    return count * ((1 << 22) // e.status.pages)


def request(prompt, **sampling) -> Request:
    return Request(tuple(prompt), SamplingSpec(**{"max_completion_tokens": 12, **sampling}))


def prompts(count: int = 6, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of different lengths; half of them begin alike, one is a single token."""
    random = torch.Generator().manual_seed(seed)

    def text(tokens: int) -> tuple[int, ...]:
        return tuple(torch.randint(20, 300, (tokens,), generator=random).tolist())

    shared = text(40)
    return [(*shared, *text(3 + 9 * i)) if i % 2 else text(1 + 13 * i) for i in range(count)]


def reference(family: str, prompt, tokens: int) -> list[int]:
    """Greedy answer of transformers, the end-of-turn token included."""
    model = tiny_model(family)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=sorted(renderer(family).end_of_turn_ids),
    )
    return out[0, len(prompt) :].tolist()


def ids(completions) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family):
    rows = prompts()
    answers = engine(family, max_prefill_tokens=32).generate([request(row, max_completion_tokens=24) for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert list(answer.token_ids) == reference(family, row, 24)
        assert answer.prompt_tokens == len(row)
        ended = answer.token_ids[-1] in renderer(family).end_of_turn_ids
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.text == renderer(family).decode(answer.token_ids)


def test_the_embedded_base_answers_as_in_transformers(embedded_home):
    source = resolve_base("smollm2-135m", embedded_home)
    model = load_base(source, "float32", "cpu")
    chat = ChatRenderer(model.tokenizer)
    questions = ["What is the capital of France?", "Name two colours, comma between them."]
    rows = [chat.for_generation(Conversation((Message("user", question),))) for question in questions]
    asked = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": sorted(chat.end_of_turn_ids)}
    true = [model.model.generate(torch.tensor([row]), **asked)[0, len(row) :].tolist() for row in rows]
    answers = Engine(model, chat).generate([request(row) for row in rows])
    assert [list(answer.token_ids) for answer in answers] == true
    assert "Paris" in answers[0].text


@pytest.mark.parametrize(("family", "dtype"), [*((f, torch.float32) for f in FAMILIES), ("llama", torch.bfloat16)])
def test_an_answer_is_the_same_alone_and_among_others(family, dtype):
    requests = [request(row) for row in prompts()] + [request(row, temperature=1.5, seed=7) for row in prompts()]
    together = engine(family, dtype).generate(requests)
    for limits in (
        {"max_batch": 2},
        {"max_prefill_tokens": 5},
        {"prefill_beside_tokens": 7},
        {"cache_bytes": pages(family, 5, dtype)},
    ):
        assert ids(engine(family, dtype, **limits).generate(requests)) == ids(together)
    assert [engine(family, dtype).generate([one])[0].token_ids for one in requests] == ids(together)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_the_cache_holds_never_changes_an_answer(family):
    rows = prompts()
    fresh = [engine(family).generate([request(row)])[0] for row in rows]
    used = engine(family)
    used.generate([request(row) for row in rows])
    assert ids(used.generate([request(row) for row in reversed(rows)])) == ids(reversed(fresh))
    # A conversation that goes on: the prompt holds an answer that was generated.
    longer = (*rows[0], *fresh[0].token_ids, 30, 31)
    assert ids(used.generate([request(longer)])) == ids(engine(family).generate([request(longer)]))


def test_a_beginning_is_computed_once():
    e = engine()
    row = prompts(2)[1]
    e.generate([request((*row, i), max_completion_tokens=1) for i in range(30, 38)])
    assert e.status.computed_tokens == len(row) + 8
    assert e.status.found_tokens == 7 * len(row)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_order_of_adding_and_cancelling_gives_each_request_its_own_answer(data):
    """Adds, steps and cancels in any order, in an engine that is short of everything."""
    rows = prompts(8)
    limits = {
        "max_batch": data.draw(st.integers(1, 4)),
        "cache_bytes": pages("llama", data.draw(st.sampled_from([4, 9, 64]))),
        "max_prefill_tokens": data.draw(st.sampled_from([3, 50, 1024])),
    }
    e, made, texts, finished, cancelled = engine(**limits), {}, {}, {}, set()

    def step():
        for delta in e.step():
            assert delta.request_id not in cancelled
            assert delta.request_id not in finished
            texts[delta.request_id] = texts.get(delta.request_id, "") + delta.text
            if delta.completion is not None:
                finished[delta.request_id] = delta.completion

    for what in data.draw(st.lists(st.sampled_from(["add", "add", "step", "step", "cancel"]), max_size=25)):
        if what == "add":
            index, size = data.draw(st.integers(0, 7)), data.draw(st.sampled_from([1, 4, 20]))
            made[e.add(request(rows[index], max_completion_tokens=size, temperature=0.8, seed=5))] = (index, size)
        elif what == "cancel" and made:
            victim = data.draw(st.sampled_from(sorted(made)))
            e.cancel(victim)
            cancelled |= {victim} - finished.keys()
        else:
            step()
    for _ in range(2000):
        if not e.has_work:
            break
        step()
    assert not e.has_work
    assert e.step() == []
    assert finished.keys() == made.keys() - cancelled
    for request_id, completion in finished.items():
        assert completion.token_ids == alone(*made[request_id])
        assert texts[request_id] == completion.text


@cache
def alone(index: int, size: int) -> tuple[int, ...]:
    one = request(prompts(8)[index], max_completion_tokens=size, temperature=0.8, seed=5)
    return engine().generate([one])[0].token_ids


def test_generate_leaves_nothing_behind_when_it_is_interrupted():
    e = engine(max_batch=2)

    def interrupt(index, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        e.generate([request(row) for row in prompts()], on_done=interrupt)
    assert not e.has_work


def test_done_answers_are_told_at_once():
    told = {}
    requests = [request(row, max_completion_tokens=20 - 3 * i) for i, row in enumerate(prompts())]
    completions = engine(max_batch=3).generate(requests, on_done=told.setdefault)
    assert told == dict(enumerate(completions))
    assert list(told) != sorted(told)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_transformers(family):
    row = prompts()[3]
    sampling = {"logprobs": True, "top_logprobs": 3, "temperature": 1.3, "top_p": 0.9, "seed": 3}
    (answer,) = engine(family).generate([request(row, **sampling)])
    said = [t for t in answer.token_ids if t not in renderer(family).end_of_turn_ids]
    assert [logprob.token_id for logprob in answer.logprobs] == said
    with torch.no_grad():
        logits = tiny_model(family)(torch.tensor([(*row, *said)])).logits[0, len(row) - 1 : -1]
    true = torch.log_softmax(logits, dim=-1)
    for position, found in zip(true, answer.logprobs, strict=True):
        assert found.logprob == pytest.approx(float(position[found.token_id]), abs=1e-4)
        assert [t[0] for t in found.top] == position.topk(3).indices.tolist()
        assert [t[3] for t in found.top] == pytest.approx(position.topk(3).values.tolist(), abs=1e-4)
        assert found.text_bytes == renderer(family).token_bytes(found.token_id)
    text = b"".join(t.text_bytes for t in answer.logprobs if t.token_id not in renderer(family).special_ids)
    assert text.decode(errors="replace") == answer.text


def test_log_probabilities_come_with_their_text():
    e = engine()
    e.add(request(prompts()[1], logprobs=True, temperature=1.5, seed=1, max_completion_tokens=40))
    deltas = []
    while e.has_work:
        deltas += e.step()
    completion = deltas[-1].completion
    assert tuple(logprob for delta in deltas for logprob in delta.logprobs) == completion.logprobs
    assert all(delta.text or delta.completion or not delta.logprobs for delta in deltas)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_stop_text_ends_the_answer_and_is_never_seen(seed, data):
    row = prompts()[data.draw(st.integers(0, 5))]
    sampling = {"temperature": 1.2, "seed": seed, "max_completion_tokens": 30}
    (whole,) = engine().generate([request(row, **sampling)])
    begin = data.draw(st.integers(0, max(0, len(whole.text) - 1)))
    stop = whole.text[begin : begin + data.draw(st.integers(1, 6))]
    if not stop or "\ufffd" in stop:  # tiny models write many broken characters, which show late
        return
    e = engine()
    e.add(request(row, stop=("never said", stop), **sampling))
    deltas = []
    while e.has_work:
        deltas += e.step()
    completion = deltas[-1].completion
    assert completion.text == whole.text[: whole.text.index(stop)]
    assert "".join(delta.text for delta in deltas) == completion.text
    assert completion.finish_reason == "stop"
    assert completion.token_ids == whole.token_ids[: len(completion.token_ids)]


def test_several_answers_to_one_prompt():
    row = prompts()[1]
    expanded = request(row, n=5, temperature=1.5, seed=10).expand()
    assert [one.sampling.seed for one in expanded] == [10, 11, 12, 13, 14]
    answers = ids(engine().generate(expanded))
    assert len(set(answers)) == 5
    assert ids(engine().generate(expanded)) == answers
    assert [one.sampling.seed for one in request(row, n=2).expand()] == [None, None]


@pytest.mark.parametrize(
    ("prompt", "sampling", "code"),
    [
        ((), {}, "empty_prompt"),
        (range(20, 20 + 320), {}, "context_length_exceeded"),
        ((20, 21), {"n": 2}, None),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(prompt, sampling, code):
    e = engine(cache_bytes=pages("llama", 5))
    with pytest.raises(RequestError) as refused:
        e.generate([request((30, 31)), request(prompt, **sampling)])
    assert refused.value.code == code
    assert refused.value.fix
    assert not e.has_work


def test_an_answer_that_reaches_the_context_ends_there():
    prompt = [20 + i % 200 for i in range(CONTEXT_TOKENS - 5)]
    (answer,) = engine().generate([request(prompt, max_completion_tokens=100)])
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 5)
    assert list(answer.token_ids) == reference("llama", prompt, 5)
    with pytest.raises(RequestError) as refused:
        engine().check(request([20] * CONTEXT_TOKENS))
    assert refused.value.code == "context_length_exceeded"


def test_the_end_of_a_turn_ends_the_answer():
    """Sampled at random, some answer ends by itself; nothing of the end token is seen."""
    ends = renderer("smollm2").end_of_turn_ids
    requests = [request((30, 31), temperature=2.0, seed=seed, max_completion_tokens=200) for seed in range(8)]
    ended = [c for c in engine("smollm2").generate(requests) if c.finish_reason == "stop"]
    assert ended
    for completion in ended:
        assert completion.token_ids[-1] in ends
        assert not ends & set(completion.token_ids[:-1])
        assert "<|" not in completion.text
        assert completion.seconds > 0
