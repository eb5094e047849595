"""Listening to answers from asyncio: slowly, and after they have ended."""

from __future__ import annotations

import asyncio

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.generate.request import Delta, Request
from tunesmith.serve.answers import AsyncAnswers
from tunesmith.specs.generation import SamplingSpec

ASKED = Request((1,), SamplingSpec())
TOKENS = 5_000


class TalkingWorker:
    """Stands in for a worker; what it is told to say is heard at once."""

    def check(self, requests):
        return (None,) * len(requests)

    def submit(self, requests, listener, matchers):
        self.say = listener
        self.is_cancelled = False
        return requests

    def cancel(self, _):
        self.is_cancelled = True


def token(number):
    return TokenLogprob(number, str(number), b"", -1.0)


def completion(text):
    return Completion(text, tuple(range(TOKENS)), "stop", 1, 0.0)


def test_what_waits_for_a_slow_listener_stays_small_and_whole():
    async def listen():
        worker = TalkingWorker()
        ended = []
        answers = await AsyncAnswers.begin(worker, [ASKED, ASKED], on_ended=lambda: ended.append(True))
        texts = ["".join(f"{name}{i} " for i in range(TOKENS)) for name in "ab"]
        most_waiting = 0
        for i in range(TOKENS):
            for index, name in enumerate("ab"):
                done = completion(texts[index]) if i == TOKENS - 1 else None
                worker.say(index, Delta(index, f"{name}{i} ", (token(i),), done))
            await asyncio.sleep(0)
            most_waiting = max(most_waiting, len(answers._heard))
        await asyncio.sleep(0)
        assert most_waiting <= 64
        # Whoever computes is free, though nothing was heard.
        assert ended == [True] and not answers.is_finished
        assert answers.computed_tokens == 2 * TOKENS
        heard = {0: "", 1: ""}
        tokens = {0: [], 1: []}
        while not answers.is_finished:
            index, delta = await answers.next(1)
            heard[index] += delta.text
            tokens[index] += [one.token_id for one in delta.logprobs]
        assert list(heard.values()) == texts
        assert list(tokens.values()) == [list(range(TOKENS))] * 2
        answers.close()
        assert not worker.is_cancelled

    asyncio.run(listen())


def test_an_error_comes_behind_what_was_said_before_it():
    async def listen():
        worker = TalkingWorker()
        answers = await AsyncAnswers.begin(worker, [ASKED])
        for i in range(200):
            worker.say(0, Delta(0, f"{i} "))
        worker.say(0, TunesmithError("broken"))
        await asyncio.sleep(0)
        heard = ""
        with pytest.raises(TunesmithError, match="broken"):
            while True:
                heard += (await answers.next(1))[1].text
        assert heard == "".join(f"{i} " for i in range(200))

    asyncio.run(listen())


def test_silence_is_told_and_listening_goes_on():
    async def listen():
        worker = TalkingWorker()
        answers = await AsyncAnswers.begin(worker, [ASKED])
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await answers.next(0.01)
        worker.say(0, Delta(0, "late"))
        assert (await answers.next(1))[1].text == "late"
        answers.close()
        assert worker.is_cancelled

    asyncio.run(listen())
