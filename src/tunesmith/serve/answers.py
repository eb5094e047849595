"""Listening to a worker: from asyncio, or from a plain thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import TunesmithError
from tunesmith.generate.completion import Completion
from tunesmith.generate.constraints import Matcher
from tunesmith.generate.request import Delta, Request, Score, ScoreDone, ScoreRequest
from tunesmith.serve.worker import Worker

_Event = Delta | ScoreDone | TunesmithError

#: Pieces that wait for a slow listener before those of one answer are joined.
_MOST_WAITING = 64


class AsyncAnswers:
    """The answers to requests that were submitted together, as they grow. `close` it in any case.

    Made by `begin`, inside a running event loop. Who listens slowly hears of larger pieces, so that what waits stays
    small.

    Args:
        worker: who answers.
        requests: what is asked.
        matchers: what `Worker.check` returned for them.
        whole: hear only of finished answers: nobody need wake up for each token.
        keeps_errors: an answer that can't go on is a completion with an `error`, which isn't raised.
        on_ended: called in the event loop once the worker has nothing left to do, however much is still to be heard.

    Raises:
        RequestError: see `Worker.submit`.
    """

    def __init__(
        self,
        worker: Worker,
        requests: Sequence[Request | ScoreRequest],
        matchers: tuple[Matcher | None, ...],
        *,
        whole: bool = False,
        keeps_errors: bool = False,
        on_ended: Callable[[], None] | None = None,
    ) -> None:
        self._whole = whole
        self._keeps_errors = keeps_errors
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._heard: deque[tuple[int, _Event]] = deque()
        self._most_waiting = max(_MOST_WAITING, 2 * len(requests))
        self._arrived = asyncio.Event()
        self._worker = worker
        self._unfinished = self._unended = len(requests)
        self._computed = [0] * len(requests)
        self._ticket = worker.submit(requests, self._hear, matchers)

    @classmethod
    async def begin(cls, worker: Worker, requests: Sequence[Request | ScoreRequest], **how: Any) -> Self:
        """Check requests and hand them to a worker; `how` is what else an object of this class is made with.

        Raises:
            RequestError: see `Worker.check` and `Worker.submit`.
        """
        # Whoever made them has compiled their forms, but so many others may have come since that it was forgotten.
        if any(isinstance(request, Request) and request.sampling.output is not None for request in requests):
            matchers = await asyncio.to_thread(worker.check, requests)
        else:
            matchers = worker.check(requests)
        return cls(worker, requests, matchers, **how)

    @property
    def is_finished(self) -> bool:
        """Whether every answer has been heard to its end."""
        return self._unfinished == 0

    @property
    def computed_tokens(self) -> int:
        """Tokens of the answers so far, heard of or not; of one that grows, at least so many."""
        return sum(self._computed)

    async def next(self, timeout_seconds: float | None = None) -> tuple[int, Delta]:
        """Wait for what comes next: the index of a request, and what was added to its answer.

        Raises:
            TimeoutError: nothing came in time; ask again.
            TunesmithError: the answer can't be finished.
        """
        async with asyncio.timeout(timeout_seconds):
            index, event = await self._next()
        assert isinstance(event, Delta)
        return index, event

    async def completions(self) -> list[Completion]:
        """Wait for all answers; in the order of the requests.

        Raises:
            TunesmithError: one can't be finished.
        """
        done: dict[int, Completion] = {}
        while not self.is_finished:
            index, delta = await self.next()
            if delta.completion is not None:
                done[index] = delta.completion
        return [done[index] for index in sorted(done)]

    async def scores(self) -> list[Score]:
        """Wait for all scores, where scores were asked for; in the order of the requests.

        Raises:
            TunesmithError: one can't be computed.
        """
        done: dict[int, Score] = {}
        while not self.is_finished:
            index, event = await self._next()
            assert isinstance(event, ScoreDone)
            done[index] = event.score
        return [done[index] for index in sorted(done)]

    def close(self) -> None:
        """Stop what isn't finished."""
        if self._unended:
            self._worker.cancel(self._ticket)

    async def _next(self) -> tuple[int, Delta | ScoreDone]:
        while not self._heard:
            self._arrived.clear()
            await self._arrived.wait()
        index, event = self._heard.popleft()
        if isinstance(event, TunesmithError):
            raise event
        self._unfinished -= _is_last(event)
        if not self._keeps_errors:
            _check(event)
        return index, event

    def _hear(self, index: int, event: _Event) -> None:
        """Take what the worker says, in its thread."""
        if isinstance(event, Delta):
            done = event.completion
            self._computed[index] = self._computed[index] + 1 if done is None else done.completion_tokens
        if self._whole and _is_piece(event):
            return
        # A loop that is closed has nobody left who could listen.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, index, event)

    def _put(self, index: int, event: _Event) -> None:
        self._heard.append((index, event))
        if len(self._heard) > self._most_waiting:
            self._heard = _joined(self._heard)
        self._arrived.set()
        if not _is_piece(event):
            self._unended -= 1
            if self._unended == 0 and self._on_ended is not None:
                self._on_ended()


class Answers:
    """As `AsyncAnswers`, for a plain thread: iterate over it; leaving its `with` block stops what isn't finished."""

    def __init__(
        self,
        worker: Worker,
        requests: Sequence[Request | ScoreRequest],
        *,
        whole: bool = False,
        keeps_errors: bool = False,
    ) -> None:
        self._whole = whole
        self._keeps_errors = keeps_errors
        self._heard: queue.SimpleQueue[tuple[int, _Event]] = queue.SimpleQueue()
        self._worker = worker
        self._unfinished = len(requests)
        self._ticket = worker.submit(requests, self._hear)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unfinished:
            self._worker.cancel(self._ticket)

    def __iter__(self) -> Iterator[tuple[int, Delta]]:
        """Give the index of a request and what was added to its answer, until all are finished.

        Raises:
            TunesmithError: an answer can't be finished.
        """
        for index, event in self._events():
            assert isinstance(event, Delta)
            yield index, event

    def scores(self) -> list[Score]:
        """Wait for all scores, where scores were asked for; in the order of the requests.

        Raises:
            TunesmithError: one can't be computed.
        """
        done = {index: event.score for index, event in self._events() if isinstance(event, ScoreDone)}
        return [done[index] for index in sorted(done)]

    def _hear(self, index: int, event: _Event) -> None:
        if not (self._whole and _is_piece(event)):
            self._heard.put((index, event))

    def _events(self) -> Iterator[tuple[int, Delta | ScoreDone]]:
        while self._unfinished:
            index, event = self._heard.get()
            if isinstance(event, TunesmithError):
                raise event
            self._unfinished -= _is_last(event)
            if not self._keeps_errors:
                _check(event)
            yield index, event


def _joined(heard: Iterable[tuple[int, _Event]]) -> deque[tuple[int, _Event]]:
    """Return what waits with one piece for each answer; what ends an answer stays behind its pieces."""
    pieces: dict[int, list[Delta]] = {}
    ends: list[tuple[int, _Event]] = []
    for index, event in heard:
        if isinstance(event, Delta):
            pieces.setdefault(index, []).append(event)
        else:
            ends.append((index, event))
    joined: deque[tuple[int, _Event]] = deque()
    for index, deltas in pieces.items():
        text = "".join(delta.text for delta in deltas)
        logprobs = tuple(token for delta in deltas for token in delta.logprobs)
        joined.append((index, Delta(deltas[-1].request_id, text, logprobs, deltas[-1].completion)))
    joined.extend(ends)
    return joined


def _is_piece(event: _Event) -> bool:
    """Whether this is a part of an answer that goes on."""
    return isinstance(event, Delta) and event.completion is None


def _is_last(event: Delta | ScoreDone) -> bool:
    """Whether nothing more comes for this request."""
    return isinstance(event, ScoreDone) or event.completion is not None


def _check(event: Delta | ScoreDone) -> None:
    """Raise what ended an answer that couldn't go on."""
    if isinstance(event, Delta) and event.completion is not None and event.completion.error is not None:
        raise event.completion.error
