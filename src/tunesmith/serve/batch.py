"""Answering a file of prompts: in order, with progress, and going on after an interruption where it stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import AnsweringInterrupted, DataError, RequestError
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.generate.request import Delta, Request
from tunesmith.record.atomic import write_json
from tunesmith.record.hashing import sha256_json
from tunesmith.record.lines import JsonLines
from tunesmith.record.observer import AnswersReport, Observer
from tunesmith.serve.answering import OpenModel
from tunesmith.serve.prompts import AskedRow, PromptFile
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.results import GenerateFigures

#: Requests that the engine has at once, by the size of its batch: it never waits for the next prompt.
_BATCHES_AHEAD = 3
#: An answer that takes long keeps at most this many later ones from being written; fewer if they are large.
_MOST_HELD = 4096
_MOST_HELD_WITH_LOGPROBS = 256
#: What is written is on the disk after this long. (A process that is killed loses nothing that it has written.)
_SYNC_SECONDS = 1.0
#: What stands behind these digits is rounding, and depends on what else was computed at the time.
_LOGPROB_DIGITS = 5
#: Prompts are checked in silence if there are few.
_CHECKED_AT_ONCE = 512


def answer_file(
    opened: OpenModel,
    prompts: PromptFile,
    target: Path,
    sampling: SamplingSpec,
    observer: Observer,
) -> GenerateFigures:
    """Answer prompts into `target`, one JSON object a line, in the prompts' order.

    Each line holds `index`, `text`, `finish_reason`, `prompt_tokens`, `completion_tokens`; `choice` for several answers
    a prompt, `custom_id` where the row has one, and `logprobs` where they are asked for. An answer that can't go on is
    written as far as it came, with its `error`, and the others aren't kept waiting. A half-written target of the same
    model, prompts and sampling is continued.

    Raises:
        DataError: the target belongs to something else.
        RequestError: a prompt is longer than the model's context; the message names it, and nothing is answered.
        AnsweringInterrupted: stopped by Ctrl-C; what is written stays and can be continued.
        StorageError: the disk is full; likewise.
    """
    job = target.with_name(f"{target.name}.job.json")
    identity = sha256_json([opened.fingerprint, prompts.sha256, sampling.model_dump(mode="json")])
    lines = JsonLines(target)
    finished = _finished(lines, job, identity, target)
    _check(opened, prompts, sampling, finished // sampling.n, observer)
    total = prompts.count * sampling.n
    progress = _Progress(observer, finished, total)
    written = finished
    try:
        with lines, _Feed(opened, prompts, sampling, finished) as feed:
            synced = time.perf_counter()
            for row, completion in feed.answers(progress):
                lines.append(_line(written, sampling.n, row, completion), durable=False)
                written += 1
                if time.perf_counter() - synced > _SYNC_SECONDS:
                    lines.sync()
                    synced = time.perf_counter()
            lines.sync()
    except KeyboardInterrupt as stop:
        raise AnsweringInterrupted(str(target), written, total) from stop
    job.unlink(missing_ok=True)
    return progress.figures()


class _Feed:
    """Keeps the engine busy with a file's prompts and gives the answers back in order.

    What the engine computes together depends on the prompts alone and not on the clock: another thread renders prompts
    ahead of time, and the engine waits for it rather than going on without the next one.

    Args:
        opened: who answers.
        prompts: the file.
        sampling: how.
        first: number of the first answer.
    """

    def __init__(self, opened: OpenModel, prompts: PromptFile, sampling: SamplingSpec, first: int) -> None:
        self._opened = opened
        self._sampling = sampling
        self._first = first
        self._rows = islice(prompts, first // sampling.n, None)
        self._rendering: deque[Future[list[_Asked]]] = deque()
        self._rendered: deque[_Asked] = deque()
        self._flying: dict[int, tuple[int, AskedRow]] = {}  # by the engine's request id: the answer's number, its row
        self._depth = _BATCHES_AHEAD * opened.limits.max_batch
        self._most_held = _MOST_HELD_WITH_LOGPROBS if sampling.logprobs else _MOST_HELD
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="render prompts")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for request_id in self._flying:
            self._opened.engine.cancel(request_id)

    def answers(self, progress: _Progress) -> Iterator[tuple[AskedRow, Completion]]:
        """Yield the answers in order, each as soon as those before it are finished."""
        engine = self._opened.engine
        for _ in range(self._first % self._sampling.n):  # the prompt's other answers are written already
            self._next()
        given = added = self._first
        done: dict[int, tuple[AskedRow, Completion]] = {}
        while True:
            while len(self._flying) < self._depth and added - given < self._most_held:
                asked = self._next()
                if asked is None:
                    break
                self._flying[engine.add(asked.request)] = (added, asked.row)
                added += 1
            if not self._flying:
                return
            for delta in engine.step():
                if isinstance(delta, Delta) and delta.completion is not None:
                    number, row = self._flying.pop(delta.request_id)
                    done[number] = (row, delta.completion)
                    progress.count(delta.completion)
            while given in done:
                yield done.pop(given)
                given += 1

    def _next(self) -> _Asked | None:
        """Return the next request, or None after the last."""
        while len(self._rendering) < self._depth and (row := next(self._rows, None)) is not None:
            self._rendering.append(self._thread.submit(_render, self._opened, row, self._sampling))
        if not self._rendered and self._rendering:
            self._rendered.extend(self._rendering.popleft().result())
        return self._rendered.popleft() if self._rendered else None


@dataclass(frozen=True, slots=True)
class _Asked:
    row: AskedRow
    request: Request


def _render(opened: OpenModel, row: AskedRow, sampling: SamplingSpec) -> list[_Asked]:
    return [_Asked(row, request) for request in opened.request(row.conversation, row.sampling(sampling)).expand()]


def _check(opened: OpenModel, prompts: PromptFile, sampling: SamplingSpec, first: int, observer: Observer) -> None:
    """Refuse prompts that can't be answered before the first one is; prompts before `first` were answered.

    Raises:
        RequestError: naming the row.
    """
    for number, row in enumerate(islice(prompts, first, None), first + 1):
        try:
            opened.request(row.conversation, row.sampling(sampling))
        except RequestError as error:
            if error.param != "output":  # the form of the answers is the same for all rows
                error.where = str(row.conversation.place or f"prompt {number}")
            raise
        if number % _CHECKED_AT_ONCE == 0:
            observer.progress("checking the prompts", number, prompts.count)


class _Progress:
    """Counts answers and tells the observer.

    Args:
        observer: who is told.
        finished: answers that were there before.
        total: answers in all.
    """

    def __init__(self, observer: Observer, finished: int, total: int) -> None:
        self._observer = observer
        self._before = self._done = finished
        self._total = total
        self._output_tokens = self._failed = 0
        self._started = time.perf_counter()

    def count(self, completion: Completion) -> None:
        """Count an answer."""
        self._done += 1
        self._failed += completion.error is not None
        self._output_tokens += completion.completion_tokens
        seconds = self._seconds
        self._observer.answers(
            AnswersReport(
                done=self._done,
                total=self._total,
                tokens_per_second=self._output_tokens / seconds,
                remaining_seconds=seconds / (self._done - self._before) * (self._total - self._done),
            )
        )

    def figures(self) -> GenerateFigures:
        """Return what was done now."""
        return GenerateFigures(
            requests=self._done - self._before,
            failed=self._failed,
            output_tokens=self._output_tokens,
            seconds=round(self._seconds, 3),
            tokens_per_second=round(self._output_tokens / self._seconds, 1),
        )

    @property
    def _seconds(self) -> float:
        return max(time.perf_counter() - self._started, 1e-9)


def _finished(lines: JsonLines, job: Path, identity: str, target: Path) -> int:
    """Return how many answers the target holds already; note whose it is.

    Raises:
        DataError: it is finished, or holds something else.
    """
    if target.exists():
        try:
            owner = job.read_text(encoding="utf-8")
        except FileNotFoundError:
            owner = ""
        if identity not in owner:
            raise DataError(
                "This file is there already, and nothing that was stopped can go on in it.",
                where=str(target),
                fix="Choose another --output, or delete the file. (Only answers of the same model, prompts and "
                "settings are continued.)",
                code="output_exists",
            )
        return sum(1 for _ in lines.rows())
    write_json(job, {"identity": identity})
    return 0


def _line(number: int, answers: int, row: AskedRow, completion: Completion) -> dict[str, Any]:
    index, choice = divmod(number, answers)
    line: dict[str, Any] = {"index": index}
    if row.custom_id is not None:
        line["custom_id"] = row.custom_id
    if answers > 1:
        line["choice"] = choice
    line |= {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
    if completion.error is not None:
        line["error"] = {"code": completion.error.code, "message": completion.error.message}
    if completion.logprobs:
        line["logprobs"] = [_token(token) for token in completion.logprobs]
    return line


def _token(token: TokenLogprob) -> dict[str, Any]:
    facts: dict[str, Any] = {"token": token.text, "logprob": round(token.logprob, _LOGPROB_DIGITS)}
    if token.top:
        facts["top_logprobs"] = [
            {"token": text, "logprob": round(logprob, _LOGPROB_DIGITS)} for _, text, _, logprob in token.top
        ]
    return facts
