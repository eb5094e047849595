"""Many callers, one engine: everybody gets what the engine alone would have said, whatever the others do."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving_models import prompt
from tiny_models import LONG_ANSWER_TOKENS, LONG_CONTEXT_TOKENS, save_tiny_model
from tunesmith.errors import RequestError, TunesmithError
from tunesmith.generate import constraints
from tunesmith.record.home import Home
from tunesmith.serve.answering import EngineLimits, open_model
from tunesmith.serve.answers import Answers, AsyncAnswers
from tunesmith.serve.turns import Turns
from tunesmith.serve.worker import Worker
from tunesmith.specs.generation import ChoiceSpec, SamplingSpec

TEXTS = ["Hello", "A table for two", "Book it for Friday", "What is the capital?", "Yes.", "12:30"]
SHORT = SamplingSpec(max_completion_tokens=6)
ENDLESS = SamplingSpec(max_completion_tokens=LONG_ANSWER_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = save_tiny_model("smollm2", tmp_path_factory.mktemp("tiny") / "tiny", context_tokens=LONG_CONTEXT_TOKENS)
    return open_model(str(folder), Home(folder / "home"), dtype="float32", limits=EngineLimits(max_batch=3))


@pytest.fixture
def worker(opened):
    worker = Worker(opened, max_waiting=4, turns=Turns())
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def expected(opened):
    requests = [opened.request(prompt(text), SHORT) for text in TEXTS]
    return [opened.engine.generate([request])[0].token_ids for request in requests]


def ask(worker, *texts, sampling=SHORT):
    return [worker.opened.request(prompt(text), sampling) for text in texts]


def finish(worker, requests):
    with Answers(worker, requests) as answers:
        done = {index: delta.completion for index, delta in answers if delta.completion is not None}
    return [done[index].token_ids for index in range(len(requests))]


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_threads_get_the_engines_answers(worker, expected):
    found = {}

    def work(i):
        found[i] = finish(worker, ask(worker, TEXTS[i]))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(TEXTS))] == expected
    assert worker.unfinished == 0


def test_coroutines_get_the_engines_answers_piece_by_piece(worker, expected):
    async def one(text):
        answers = await AsyncAnswers.begin(worker, ask(worker, text))
        pieces = []
        while not answers.is_finished:
            _, delta = await answers.next(120)
            pieces.append(delta.text)
        assert "".join(pieces) == delta.completion.text
        return delta.completion.token_ids

    async def everything():
        return await asyncio.gather(*(one(text) for text in TEXTS))

    assert asyncio.run(everything()) == expected


def test_too_many_requests_are_refused_and_the_others_answered(worker):
    ticket = worker.submit(ask(worker, *(["Hello"] * 6), sampling=ENDLESS), lambda *_: None)
    with pytest.raises(RequestError) as refused:
        worker.submit(ask(worker, "Hello", "Hello"), lambda *_: None)
    assert refused.value.code == "overloaded"
    with pytest.raises(RequestError) as refused:
        worker.submit(ask(worker, *(["Hello"] * 8)), lambda *_: None)
    assert refused.value.code == "too_many_answers"
    worker.cancel(ticket)
    worker.cancel(ticket)
    wait_until(lambda: worker.unfinished == 0)
    assert not worker.opened.engine.has_work
    assert len(finish(worker, ask(worker, *TEXTS))) == 6


def test_a_request_that_cannot_be_answered_is_refused_at_once(worker):
    with pytest.raises(RequestError):
        worker.submit([*ask(worker, "Hello"), type(ask(worker, "a")[0])((), SHORT)], lambda *_: None)
    assert worker.unfinished == 0


@settings(max_examples=15, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["wait", "leave"])), min_size=1, max_size=7))
def test_those_who_leave_do_not_change_what_others_get(opened, expected, plan):
    worker = Worker(opened, max_waiting=10, turns=Turns())
    try:
        staying = []
        for index, what in plan:
            if what == "leave":
                with Answers(worker, ask(worker, TEXTS[index], sampling=ENDLESS)) as answers:
                    next(iter(answers))
            else:
                staying.append((index, Answers(worker, ask(worker, TEXTS[index]))))
        for index, answers in staying:
            last = list(answers)[-1][1]
            assert last.completion.token_ids == expected[index]
        wait_until(lambda: worker.unfinished == 0)
    finally:
        worker.close()


def test_a_fault_fails_what_was_in_flight_and_nothing_else(worker, expected):
    faults = [RuntimeError("out of memory at /secret/path")]

    def break_once(*_):
        if faults:
            raise faults.pop()

    hook = worker.opened.loaded.model.get_decoder().register_forward_pre_hook(break_once)
    try:
        with pytest.raises(TunesmithError) as failed, Answers(worker, ask(worker, "Hello", "Yes.")) as answers:
            list(answers)
        assert failed.value.code == "answer_failed" and "/secret" not in str(failed.value)
        assert finish(worker, ask(worker, *TEXTS)) == expected
        assert worker.unfinished == 0
    finally:
        hook.remove()


def test_faults_that_come_again_leave_nobody_waiting(worker, expected):
    """In steps, and where a fresh engine tries the model out before its first one."""
    faults = [RuntimeError("out of memory") for _ in range(4)]

    def break_again(*_):
        if faults:
            raise faults.pop()

    requests = ask(worker, "Hello", "Yes.")
    hook = worker.opened.loaded.model.get_decoder().register_forward_pre_hook(break_again)
    try:
        while faults:  # the last one may be a fresh engine's, which then is made after all
            with suppress(TunesmithError, RuntimeError), Answers(worker, requests) as answers:
                list(answers)
        assert finish(worker, ask(worker, *TEXTS)) == expected and worker.unfinished == 0
    finally:
        hook.remove()


@contextmanager
def no_form_is_compiled():
    """Keep every place where forms are compiled."""
    for _ in range(4):
        assert constraints._COMPILATIONS.acquire(blocking=False)
    try:
        yield
    finally:
        constraints._COMPILATIONS.release(4)


@pytest.fixture
def formed(opened, worker, monkeypatch):
    """A request for an answer of a form that is forgotten at once, as when many others come."""
    monkeypatch.setattr(opened.engine._constraints, "_max_kept", 0)
    monkeypatch.setattr(opened.engine._constraints, "_kept", type(opened.engine._constraints._kept)())
    form = ChoiceSpec(choices=("yes", "no"))
    return ask(worker, "Hello", sampling=SamplingSpec(max_completion_tokens=6, output=form))


def test_a_form_that_was_forgotten_is_compiled_beside_the_event_loop(worker, formed):
    async def listen():
        with no_form_is_compiled():
            beginning = asyncio.ensure_future(AsyncAnswers.begin(worker, formed))
            began = time.monotonic()
            await asyncio.sleep(0.2)  # others get their turn meanwhile
            assert time.monotonic() - began < 25 and not beginning.done()
        answers = await beginning
        assert (await answers.completions())[0].text in ("yes", "no")

    asyncio.run(listen())


def test_a_form_is_not_compiled_where_all_others_wait(worker, formed):
    async def listen():
        matchers = worker.check(formed)
        with no_form_is_compiled():
            answers = AsyncAnswers(worker, formed, matchers)
            async with asyncio.timeout(25):
                assert (await answers.completions())[0].text in ("yes", "no")

    asyncio.run(listen())


def test_closing_ends_what_is_in_flight(opened):
    worker = Worker(opened, max_waiting=4, turns=Turns())
    heard = []
    worker.submit(ask(worker, "Hello", sampling=ENDLESS), lambda index, event: heard.append(event))
    wait_until(lambda: heard)
    worker.close()
    assert isinstance(heard[-1], RequestError)
    with pytest.raises(RequestError):
        worker.submit(ask(worker, "Hello"), lambda *_: None)
    opened.renew_engine()


def test_turns_are_given_in_the_order_of_asking():
    turns, order, threads = Turns(), [], []

    def work(i):
        with turns.take():
            order.append(i)

    with turns.take():
        for i in range(5):
            threads.append(threading.Thread(target=work, args=(i,)))
            threads[-1].start()
            wait_until(lambda: len(turns._queue) == len(threads) + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(5))
