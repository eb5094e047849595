"""A model from Python: tasks and threads that ask at once, callers who leave, memory that is given back."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import aclosing, closing

import pytest

from tiny_models import LONG_ANSWER_TOKENS, LONG_CONTEXT_TOKENS, save_tiny_model
from tunesmith.errors import ModelError, RequestError, SpecError, TunesmithError
from tunesmith.model import Model
from tunesmith.serve.answering import EngineLimits, open_model

QUESTIONS = [f"{words} {number}?" for words in ("What is", "A table for", "Book", "Hello") for number in range(8)]
ENDLESS = {"max_completion_tokens": LONG_ANSWER_TOKENS, "ignore_eos": True}


def opened(folder, home):
    return Model(open_model(str(folder), home, dtype="float32", limits=EngineLimits(max_batch=8)))


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    """A model with room for an answer that nobody hears the end of."""
    folder = tmp_path_factory.mktemp("long") / "tiny-smollm2"
    return save_tiny_model("smollm2", folder, context_tokens=LONG_CONTEXT_TOKENS)


@pytest.fixture
def model(long_folder, home):
    with opened(long_folder, home) as model:
        yield model


def until_idle(model, seconds=60.0):
    end = time.monotonic() + seconds
    while model._worker.unfinished:
        assert time.monotonic() < end
        time.sleep(0.005)


def words(completions):
    return [completion.token_ids for completion in completions]


def test_tasks_get_what_a_plain_call_gets(model):
    alone = [model.generate(question, max_completion_tokens=6) for question in QUESTIONS]

    async def everybody():
        return await asyncio.gather(*(model.agenerate(question, max_completion_tokens=6) for question in QUESTIONS))

    assert len(QUESTIONS) == 32
    assert words(asyncio.run(everybody())) == words(alone)
    assert words(model.generate(QUESTIONS, max_completion_tokens=6)) == words(alone)


def test_threads_get_what_a_plain_call_gets(model):
    expected = model.generate(QUESTIONS[:12], max_completion_tokens=6, temperature=1.0, seed=3)
    found = {}

    def ask(i):
        if i % 2:
            found[i] = "".join(model.stream(QUESTIONS[i], max_completion_tokens=6, temperature=1.0, seed=3))
        else:
            found[i] = model.generate(QUESTIONS[i], max_completion_tokens=6, temperature=1.0, seed=3).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(12)] == [completion.text for completion in expected]


def test_a_cancelled_task_frees_its_place(model):
    async def run():
        endless = [asyncio.ensure_future(model.agenerate(question, **ENDLESS)) for question in QUESTIONS[:8]]
        async with asyncio.timeout(60):
            while model._worker is None or model._worker.unfinished < 8:
                await asyncio.sleep(0.01)
        for task in endless[1:]:
            task.cancel()
        await asyncio.wait(endless[1:])
        assert all(task.cancelled() for task in endless[1:])
        others = await model.agenerate(QUESTIONS[8:14], max_completion_tokens=4)
        assert not endless[0].done()
        endless[0].cancel()
        return others

    others = asyncio.run(run())
    until_idle(model)
    assert words(others) == words(model.generate(QUESTIONS[8:14], max_completion_tokens=4))


def test_a_stream_that_is_left_stops_its_answer(model):
    whole = model.generate("Hello", max_completion_tokens=12)
    assert "".join(model.stream("Hello", max_completion_tokens=12)) == whole.text
    with closing(model.stream("Hello", **ENDLESS)) as pieces:
        next(pieces)
        assert model._worker.unfinished == 1
    until_idle(model)

    async def run():
        said = [piece async for piece in model.astream("Hello", max_completion_tokens=12)]
        async with aclosing(model.astream("Hello", **ENDLESS)) as pieces:
            async for _ in pieces:
                break
        return "".join(said)

    assert asyncio.run(run()) == whole.text
    until_idle(model)


def test_what_cannot_be_asked_is_refused_before_anything_is_computed(model):
    with pytest.raises(RequestError):
        model.generate(["Hello", [{"role": "nobody", "content": "Hello"}]])
    with pytest.raises(SpecError):
        model.generate("Hello", temprature=1)
    with pytest.raises(SpecError):
        model.stream("Hello", n=2)
    with pytest.raises(RequestError):
        model.stream("a b c " * 20_000)
    assert model._worker is None
    assert model.generate([]) == []


def test_an_answer_that_cannot_go_on_ends_alone(model, monkeypatch):
    expected = model.generate(QUESTIONS[:4], max_completion_tokens=6)
    forward, original, calls = model.opened.engine._forward, model.opened.engine._forward.logits, []

    def poisoned(hidden):
        logits = original(hidden)
        calls.append(logits)
        if len(calls) % 6 == 3:
            logits[0] = float("nan")
        return logits

    monkeypatch.setattr(forward, "logits", poisoned)
    found = model.generate(QUESTIONS[:4], max_completion_tokens=6)
    broken = [completion.finish_reason == "error" for completion in found]
    assert sum(broken) == 1
    assert found[broken.index(True)].error is not None
    for completion, wanted, is_broken in zip(found, expected, broken, strict=True):
        assert is_broken or completion.text == wanted.text
    calls.clear()
    with pytest.raises(TunesmithError):
        model.generate("Hello", max_completion_tokens=6)


def test_a_listener_that_raises_stops_the_rest(model):
    def listen(index, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(["Hello", *QUESTIONS], on_done=listen, max_completion_tokens=30)
    until_idle(model)


def test_memory_is_given_back(long_folder, home):
    model = opened(long_folder, home)
    weights = weakref.ref(model.opened.loaded.model)
    stream = model.stream("Hello", **ENDLESS)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(RequestError):
        list(stream)
    with pytest.raises(ModelError):
        model.generate("Hello")
    gc.collect()  # errors hold the frames that they came through
    assert weights() is None

    model = opened(long_folder, home)
    model.generate("Hello", max_completion_tokens=2)
    weights = weakref.ref(model.opened.loaded.model)
    thread = model._worker._thread
    del model
    gc.collect()
    assert weights() is None and not thread.is_alive()
