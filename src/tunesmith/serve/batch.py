"""Answering a file of prompts: in order, with progress, and going on after an interruption where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tunesmith.data.chat_rows import RowCheck, read_messages, read_tools
from tunesmith.data.examples import Conversation, Message
from tunesmith.data.problems import RowProblem, refusal
from tunesmith.data.readers import read_rows
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RequestError
from tunesmith.generate.completion import Completion
from tunesmith.generate.request import Request
from tunesmith.record.atomic import write_json
from tunesmith.record.hashing import sha256_json
from tunesmith.record.lines import JsonLines
from tunesmith.record.observer import Observer
from tunesmith.serve.answering import OpenModel
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.results import GenerateFigures

#: Requests handed to the engine at once; their answers are written before the next ones start.
_WINDOW = 512


def read_prompts(path: Path, system: str | None = None) -> list[Conversation]:
    """Read the prompts of a file: rows with `messages` (and perhaps `tools`), or with `prompt`.

    A conversation that ends with an assistant's turn is asked without that turn. `system` is put before prompts that
    have no system message of their own.

    Raises:
        DataError: the file or a row can't be read; nothing is answered then.
    """
    prompts: list[Conversation] = []
    problems: list[RowProblem] = []
    for row in read_rows(path):
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        check = RowCheck(row.place)
        prompt = _prompt(row, check)
        problems += check.problems
        if prompt is not None:
            prompts.append(_with_system(prompt, system))
    if problems:
        raise refusal(problems)
    if not prompts:
        raise DataError("There is no prompt in this file.", where=str(path), code="empty_file")
    return prompts


def answer_file(
    opened: OpenModel,
    prompts: Sequence[Conversation],
    target: Path,
    sampling: SamplingSpec,
    observer: Observer,
) -> GenerateFigures:
    """Answer prompts (see `read_prompts`) into `target`, one JSON object a line, in the prompts' order.

    Each line holds `index`, `text`, `finish_reason`, `prompt_tokens`, `completion_tokens` (and `choice` for several
    answers a prompt). A half-written target of the same model, prompts and sampling is continued.

    Raises:
        DataError: the target belongs to something else.
        RequestError: a prompt is longer than the model's context; the message names it.
        StorageError: the disk is full; what is written stays and can be continued.
    """
    job = target.with_name(f"{target.name}.job.json")
    requests = []
    for number, prompt in enumerate(prompts, 1):
        try:
            requests += opened.request(prompt, sampling).expand()
        except RequestError as error:
            error.where = str(prompt.place or f"prompt {number}")
            raise
    asked = [request.prompt_ids for request in requests]
    identity = sha256_json([opened.fingerprint, asked, sampling.model_dump(mode="json")])
    lines = JsonLines(target)
    finished = _finished(lines, job, identity, target)
    written, output_tokens, started = finished, 0, time.perf_counter()
    try:
        remaining = iter(requests[finished:])
        while window := list(islice(remaining, _WINDOW)):
            for completion in _in_order(opened, window, written, len(requests), observer):
                lines.append(_line(written, sampling.n, completion), durable=False)
                written += 1
                output_tokens += completion.completion_tokens
            lines.sync()
    finally:
        lines.close()
    job.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return GenerateFigures(
        requests=len(requests) - finished,
        output_tokens=output_tokens,
        seconds=round(seconds, 3),
        tokens_per_second=round(output_tokens / max(seconds, 1e-9), 1),
    )


def _in_order(
    opened: OpenModel, window: list[Request], before: int, total: int, observer: Observer
) -> Iterator[Completion]:
    """Yield the window's completions in order, each as soon as those before it are finished."""
    engine = opened.engine
    index_of = {engine.add(request): index for index, request in enumerate(window)}
    done: dict[int, Completion] = {}
    given = count = 0
    try:
        while given < len(window):
            for delta in engine.step():
                if delta.completion is not None:
                    done[index_of.pop(delta.request_id)] = delta.completion
                    count += 1
                    observer.progress("answering", before + count, total)
            while given in done:
                yield done.pop(given)
                given += 1
    finally:
        for request_id in index_of:
            engine.cancel(request_id)


def _finished(lines: JsonLines, job: Path, identity: str, target: Path) -> int:
    """Return how many answers the target holds already; note whose it is.

    Raises:
        DataError: it holds something else.
    """
    if target.exists():
        try:
            owner = job.read_text(encoding="utf-8")
        except FileNotFoundError:
            owner = ""
        if identity not in owner:
            raise DataError(
                "This file exists and holds something else.",
                where=str(target),
                fix="Choose another --output, or delete the file. (Only answers of the same model, prompts and "
                "settings are continued.)",
                code="output_exists",
            )
        return sum(1 for _ in lines.rows())
    write_json(job, {"identity": identity})
    return 0


def _line(number: int, answers: int, completion: Completion) -> dict[str, object]:
    index, choice = divmod(number, answers)
    return {
        "index": index,
        **({"choice": choice} if answers > 1 else {}),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }


def _prompt(row: Row, check: RowCheck) -> Conversation | None:
    values = row.values
    if isinstance(values.get("prompt"), str):
        return Conversation((Message("user", values["prompt"]),), place=row.place)
    name = "prompt" if "prompt" in values else "messages"
    if name not in values:
        columns = ", ".join(values)
        check.refuse(
            "messages", f"is missing; the row has {columns}", "Write `messages` or `prompt` in each row.", "no_prompt"
        )
        return None
    messages = read_messages(values[name], name, check)
    tools = read_tools(values.get("tools"), check)
    if check.problems:
        return None
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages:
        check.refuse(name, "holds no prompt", "Start with a user's message.", "no_prompt")
        return None
    return Conversation(tuple(messages), tools, row.place)


def _with_system(prompt: Conversation, system: str | None) -> Conversation:
    if system is None or prompt.messages[0].role in ("system", "developer"):
        return prompt
    return Conversation((Message("system", system), *prompt.messages), prompt.tools, prompt.place)
