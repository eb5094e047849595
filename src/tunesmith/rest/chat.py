"""The answers to `POST /v1/chat/completions`: whole, or as a stream of events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.rest.errors import wire_error
from tunesmith.rest.functions import as_function_call, function_delta, function_reason
from tunesmith.rest.session import KEEP_ALIVE, Session, SessionStream, Step
from tunesmith.rest.stored import keep_answer
from tunesmith.rest.tools import call_deltas
from tunesmith.rest.translate import choice_of, finish_reason_of, logprobs_of, usage_of
from tunesmith.rest.wire import ChatCompletion

_DONE = b"data: [DONE]\n\n"


async def whole_answer(session: Session, http: Request) -> Response:
    """Answer at once when all is done; a caller who hangs up stops the work."""
    try:
        completions = await session.completions(http)
        if completions is None:
            return Response(status_code=499)  # nobody reads it
        answer = _completion(session, completions)
        await keep_answer(http, session.request, answer)
        return Response(answer.model_dump_json(), media_type="application/json")
    finally:
        session.close()


def _completion(session: Session, completions: list[Completion]) -> ChatCompletion:
    request = session.request
    choices = [choice_of(i, one, session.tools, with_logprobs=request.logprobs) for i, one in enumerate(completions)]
    return ChatCompletion(
        id=session.id,
        created=session.created,
        model=session.model,
        choices=[as_function_call(choice) for choice in choices] if request.functions else choices,
        usage=usage_of(completions),
        system_fingerprint=session.fingerprint,
    )


class AnswerStream(SessionStream):
    """Answers as server-sent events while they grow."""

    def __init__(self, session: Session, http: Request) -> None:
        super().__init__(session, self._events())
        self._session = session
        self._http = http
        self._with_usage = session.request.with_usage
        #: Ids of the calls that each answer has made so far.
        self._call_ids: defaultdict[int, list[str]] = defaultdict(list)

    async def _events(self) -> AsyncIterator[bytes]:
        session = self._session
        # An answer that only calls has no content, which is known at its end.
        content = "" if session.tools is None else None
        for index in range(session.request.n):
            yield self._chunk(index, {"role": "assistant", "content": content, "refusal": None})
        done: dict[int, Completion] = {}
        try:
            async for step in session.steps():
                if step is None:
                    yield KEEP_ALIVE
                    continue
                if step.completion is not None:
                    done[step.index] = step.completion
                for chunk in self._chunks(step):
                    yield chunk
            completions = [done[index] for index in sorted(done)]
            await self._keep(completions)
        # The status is out already; clients raise this event as an error.
        except Exception as error:
            yield wire_error(error).event()
            return
        if self._with_usage:
            usage = usage_of(completions)
            yield _event({**self._head(), "choices": [], "usage": usage.model_dump()})
        yield _DONE

    def _chunks(self, step: Step) -> Iterator[bytes]:
        """Give the events of what one step added to an answer."""
        text = step.pieces.text
        if text or step.logprobs:
            yield self._chunk(step.index, {"content": text} if text else {}, self._logprobs(step.logprobs))
        has_functions = bool(self._session.request.functions)
        for call in call_deltas(step.pieces.calls):
            self._call_ids[step.index] += [call["id"]] if "id" in call else []
            yield self._chunk(step.index, function_delta(call) if has_functions else {"tool_calls": [call]})
        if step.completion is not None:
            reason = finish_reason_of(step.completion, has_calls=bool(self._call_ids[step.index]))
            yield self._chunk(step.index, {}, finish_reason=function_reason(reason) if has_functions else reason)

    async def _keep(self, completions: list[Completion]) -> None:
        """Store the answer as it was told, where that was asked for, before its caller hears that this is all."""
        if not self._session.request.store:
            return
        answer = _completion(self._session, completions)
        for choice in answer.choices:
            for call, call_id in zip(choice.message.tool_calls or (), self._call_ids[choice.index], strict=True):
                call.id = call_id
        await keep_answer(self._http, self._session.request, answer)

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        return logprobs_of(tokens).model_dump() if self._session.request.logprobs else None

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._with_usage else {}
        return _event({**self._head(), "choices": [choice], **usage})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._session.id,
            "object": "chat.completion.chunk",
            "created": self._session.created,
            "model": self._session.model,
            "service_tier": "default",
            "system_fingerprint": self._session.fingerprint,
        }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
