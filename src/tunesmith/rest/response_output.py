"""The output of a response: its items while they grow, each change as one of OpenAI's events, and the whole object.

The same code makes whole answers and streamed ones, so both say the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.chat.call_stream import CallPiece, Pieces
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.record.ids import new_id
from tunesmith.rest.response_wire import FunctionTool, ResponseRequest
from tunesmith.rest.session import Step
from tunesmith.rest.tools import ToolUse
from tunesmith.rest.translate import logprobs_of

Status = Literal["in_progress", "completed", "incomplete", "failed"]
_Event = dict[str, Any]


class Answer:
    """One answer as items, while it grows. Events come without their `sequence_number`.

    Words come before the calls that follow them; words behind a call are an item of their own.

    Args:
        with_logprobs: whether words carry their tokens' log-probabilities.
    """

    def __init__(self, *, with_logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self.completion: Completion | None = None
        self._with_logprobs = with_logprobs
        self._is_open = False  # the last item
        self._tokens: list[TokenLogprob] = []  # whose words aren't out yet

    def add(self, step: Step) -> Iterator[_Event]:
        """Take in what a step added; give the events of it."""
        if self._with_logprobs:
            self._tokens += step.logprobs
        if step.pieces.text:
            yield from self._words(step.pieces.text)
        for piece in step.pieces.calls:
            self._tokens.clear()  # they spelt the call
            yield from self._call(piece)
        if step.completion is not None:
            self.completion = step.completion
            yield from self._finish(step.completion)

    def _words(self, text: str) -> Iterator[_Event]:
        if not self._is_open or self._item["type"] != "message":
            yield from self._open_message()
        part = self._item["content"][0]
        part["text"] += text
        logprobs = self._logprobs(len(text.encode()))
        part["logprobs"] += logprobs
        yield self._part_event("output_text.delta", delta=text, logprobs=logprobs)

    def _call(self, piece: CallPiece) -> Iterator[_Event]:
        if piece.name:
            yield from self._open(
                {
                    "id": new_id("fc_"),
                    "type": "function_call",
                    "status": "in_progress",
                    "call_id": piece.id,
                    "name": piece.name,
                    "arguments": "",
                }
            )
        if piece.arguments:
            self._item["arguments"] += piece.arguments
            yield self._item_event("function_call_arguments.delta", delta=piece.arguments)

    def _finish(self, completion: Completion) -> Iterator[_Event]:
        if not self.items:
            yield from self._open_message()
        if self._is_open and self._item["type"] == "message" and self._tokens:
            # Tokens without words of their own: halves of characters, for one.
            self._item["content"][0]["logprobs"] += _wire_logprobs(self._tokens)
        yield from self._close("incomplete" if completion.finish_reason == "length" else "completed")

    def _open_message(self) -> Iterator[_Event]:
        yield from self._open(
            {"id": new_id("msg_"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        )
        self._item["content"].append(_text_part())
        yield self._part_event("content_part.added", part=_text_part())

    def _open(self, item: dict[str, Any]) -> Iterator[_Event]:
        """Begin an item; the one before it is done."""
        yield from self._close("completed")
        self.items.append(item)
        self._is_open = True
        # A copy, for the item goes on growing.
        shown = {**item, "content": []} if item["type"] == "message" else {**item}
        yield {"type": "response.output_item.added", "output_index": self._index, "item": shown}

    def _close(self, status: Status) -> Iterator[_Event]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._item
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            yield self._part_event("output_text.done", text=part["text"], logprobs=part["logprobs"])
            yield self._part_event("content_part.done", part=part)
        else:
            yield self._item_event("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        yield {"type": "response.output_item.done", "output_index": self._index, "item": item}

    def _part_event(self, kind: str, **facts: Any) -> _Event:
        return self._item_event(kind, content_index=0, **facts)

    def _item_event(self, kind: str, **facts: Any) -> _Event:
        return {"type": f"response.{kind}", "item_id": self._item["id"], "output_index": self._index, **facts}

    @property
    def _item(self) -> dict[str, Any]:
        return self.items[-1]

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _logprobs(self, word_bytes: int) -> list[dict[str, Any]]:
        """Return the tokens that spell so many bytes, and take them off."""
        count = 0
        while count < len(self._tokens) and word_bytes > 0:
            word_bytes -= len(self._tokens[count].text_bytes)
            count += 1
        spelling, self._tokens = self._tokens[:count], self._tokens[count:]
        return _wire_logprobs(spelling)


def whole_step(completion: Completion, tools: ToolUse | None) -> Step:
    """Return a whole answer as the one step that brought it."""
    if tools is None:
        return Step(0, Pieces(completion.text), completion.logprobs, completion)
    words, calls = tools.read(completion.text)
    pieces = tuple(CallPiece(i, call.id, call.name, call.arguments) for i, call in enumerate(calls))
    return Step(0, Pieces(words or "", pieces), completion.logprobs, completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What of a response is known before there is an answer.

    Attributes:
        id: its id.
        created: when it began, in Unix seconds.
        model: the model that answers.
        request: what was asked.
        functions: the functions that may be called, as they are used.
    """

    id: str
    created: int
    model: str
    request: ResponseRequest
    functions: Sequence[FunctionTool]

    def response(
        self, status: Status, answer: Answer | None = None, error: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the whole object as it goes out.

        Args:
            status: how far it is.
            answer: its items, once it is finished or failed.
            error: why it failed.
        """
        request = self.request
        completion = None if answer is None else answer.completion
        form = request.text.format
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "model": self.model,
            "output": [] if answer is None else answer.items,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": request.previous_response_id,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": request.store,
            "temperature": request.temperature,
            "text": {
                "format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True),
                "verbosity": "medium",
            },
            "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
            "tools": [function.model_dump() for function in self.functions],
            "top_logprobs": request.top_logprobs,
            "top_p": request.top_p,
            "truncation": request.truncation,
            "usage": None if completion is None else _usage(completion),
            "user": request.user,
        }

    def finished(self, answer: Answer) -> dict[str, Any]:
        """Return the object once the answer has come to its end."""
        assert answer.completion is not None
        return self.response("incomplete" if answer.completion.finish_reason == "length" else "completed", answer)


def _usage(completion: Completion) -> dict[str, Any]:
    return {
        "input_tokens": completion.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
    }


def _text_part() -> dict[str, Any]:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _wire_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [one.model_dump() for one in logprobs_of(tokens).content]
