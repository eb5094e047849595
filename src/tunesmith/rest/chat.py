"""`POST /v1/chat/completions`: from a request to its answers, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tunesmith.chat.call_stream import CallStream, Pieces
from tunesmith.data.examples import Conversation
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.completion import Completion
from tunesmith.generate.request import Delta
from tunesmith.generate.request import Request as Prompt
from tunesmith.rest.errors import WireFault, model_not_found, model_unavailable, wire_error
from tunesmith.rest.forms import blame_form
from tunesmith.rest.limits import Allowance
from tunesmith.rest.tools import ToolUse, blame_tools, call_deltas, with_tools
from tunesmith.rest.translate import (
    choice_of,
    conversation_of,
    finish_reason_of,
    logprobs_of,
    sampling_of,
    usage_of,
)
from tunesmith.rest.wire import ChatCompletion, ChatRequest
from tunesmith.serve.answers import AsyncAnswers
from tunesmith.serve.catalogue import ServedModel
from tunesmith.serve.opened import OpenModel
from tunesmith.serve.pool import Lease, ModelPool
from tunesmith.specs.generation import SamplingSpec

#: A comment goes out after this much silence, so that neither side nor what is between takes the line for dead.
_KEEP_ALIVE_SECONDS = 10.0
_KEEP_ALIVE = b": waiting\n\n"
_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Session:
    """A request that is being answered. `close` it in any case."""

    request: ChatRequest
    lease: Lease
    answers: AsyncAnswers
    fingerprint: str
    tools: ToolUse | None = None
    allowance: Allowance | None = None
    #: Tokens of the prompt, and of answers as far as they have grown.
    used_tokens: int = 0
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def close(self) -> None:
        """Stop what isn't finished, let the model go, count what was used; twice is fine."""
        used_tokens, self.used_tokens = self.used_tokens, 0
        if self.allowance is not None and used_tokens:
            self.allowance.spend(used_tokens)
        self.answers.close()
        self.lease.release()


async def open_session(
    request: ChatRequest, pool: ModelPool, default_max_tokens: int, allowance: Allowance | None = None
) -> Session:
    """Load the model if need be, and hand its worker the request.

    Args:
        request: what is asked.
        pool: the models.
        default_max_tokens: the longest answer where the request doesn't say.
        allowance: the caller's, from which the tokens are taken.

    Raises:
        WireFault: there is no such model, or it can't be loaded.
        RequestError: the request can't be answered, or too much waits already.
    """
    conversation = conversation_of(request)
    sampling = sampling_of(request, default_max_tokens)
    lease = pool.lease(await find_model(request.model, pool))
    try:
        try:
            seat = await asyncio.wrap_future(lease.ready)
        except ModelError as error:
            raise WireFault(model_unavailable(request.model)) from error
        # Rendering a long prompt takes a while; other requests go on meanwhile.
        prompt, tools = await asyncio.to_thread(_prompt, seat.opened, request, conversation, sampling)
        answers = AsyncAnswers(seat.worker, prompt.expand(), whole=not request.stream)
        used_tokens = len(prompt.prompt_ids)
        return Session(request, lease, answers, seat.opened.fingerprint, tools, allowance, used_tokens)
    except BaseException:
        lease.release()
        raise


def _prompt(
    opened: OpenModel, request: ChatRequest, conversation: Conversation, sampling: SamplingSpec
) -> tuple[Prompt, ToolUse | None]:
    """Render a request, and say how calls in its answers are found.

    Raises:
        RequestError: it can't be answered.
    """
    try:
        prompt = opened.request(conversation, sampling)
    except RequestError as error:
        blame_form(error, request)
        raise
    if not request.tools:
        return prompt, None
    prompt, tools = with_tools(prompt, request, opened.call_format)
    if tools is not None and tools.is_certain:
        try:
            opened.engine.check(prompt.expand()[0])
        except RequestError as error:
            raise blame_tools(error) from error
    return prompt, tools


async def find_model(name: str, pool: ModelPool) -> ServedModel:
    """Return a model on offer.

    Raises:
        WireFault: there is none of that name.
    """
    try:
        return await asyncio.to_thread(pool.catalogue.find, name)
    except ModelError as error:
        raise WireFault(model_not_found(name)) from error


async def whole_answer(session: Session, http: Request) -> Response:
    """Answer at once when all is done; a caller who hangs up stops the work."""
    answering = asyncio.ensure_future(session.answers.completions())
    leaving = asyncio.ensure_future(_hang_up(http))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return Response(status_code=499)  # nobody reads it
        completion = _completion(session, answering.result())
        session.used_tokens += completion.usage.completion_tokens
        return Response(completion.model_dump_json(), media_type="application/json")
    finally:
        answering.cancel()
        leaving.cancel()
        session.close()


def _completion(session: Session, completions: list[Completion]) -> ChatCompletion:
    request = session.request
    return ChatCompletion(
        id=session.id,
        created=session.created,
        model=request.model,
        choices=[choice_of(i, one, session.tools, with_logprobs=request.logprobs) for i, one in enumerate(completions)],
        usage=usage_of(completions),
        system_fingerprint=session.fingerprint,
    )


async def _hang_up(http: Request) -> None:
    """Wait until the caller is gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


class AnswerStream(StreamingResponse):
    """Answers as server-sent events while they grow; a caller who hangs up stops the work."""

    def __init__(self, session: Session) -> None:
        # A proxy that gathers the events before it passes them on would undo the streaming.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)
        self._session = session
        options = session.request.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._calls: dict[int, CallStream] = {}
        self._called: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not left to the generator: one that never ran, or waits in a `yield`, ends at some later time.
            self._session.close()

    async def _events(self) -> AsyncIterator[bytes]:
        session = self._session
        # An answer that only calls has no content, which is known at its end.
        content = "" if session.tools is None else None
        for index in range(session.request.n):
            yield self._chunk(index, {"role": "assistant", "content": content, "refusal": None})
        completions: dict[int, Completion] = {}
        steps: Counter[int] = Counter()
        try:
            while not session.answers.is_finished:
                try:
                    index, delta = await session.answers.next(_KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield _KEEP_ALIVE
                    continue
                # At least one token each; how many they were is known at the end.
                steps[index] += 1
                session.used_tokens += 1
                if delta.completion is not None:
                    session.used_tokens += delta.completion.completion_tokens - steps[index]
                    completions[index] = delta.completion
                for chunk in self._chunks(index, delta):
                    yield chunk
        # The status is out already; clients raise this event as an error.
        except Exception as error:
            yield wire_error(error).event()
            return
        if self._with_usage:
            usage = usage_of([completions[index] for index in sorted(completions)])
            yield _event({**self._head(), "choices": [], "usage": usage.model_dump()})
        yield _DONE

    def _chunks(self, index: int, delta: Delta) -> Iterator[bytes]:
        """Give the events of what one step added to an answer."""
        pieces = self._pieces(index, delta)
        if pieces.text or delta.logprobs:
            yield self._chunk(index, {"content": pieces.text} if pieces.text else {}, self._logprobs(delta))
        for call in call_deltas(pieces.calls):
            self._called.add(index)
            yield self._chunk(index, {"tool_calls": [call]})
        if delta.completion is not None:
            reason = finish_reason_of(delta.completion, has_calls=index in self._called)
            yield self._chunk(index, {}, finish_reason=reason)

    def _pieces(self, index: int, delta: Delta) -> Pieces:
        """Tell the words from the calls in a delta."""
        tools = self._session.tools
        if tools is None:
            return Pieces(delta.text)
        calls = self._calls.setdefault(index, tools.stream())
        new = calls.add(delta.text)
        if delta.completion is None:
            return new
        rest = calls.finish()
        return Pieces(new.text + rest.text, new.calls + rest.calls)

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        return logprobs_of(delta.logprobs).model_dump() if self._session.request.logprobs else None

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
            "model": self._session.request.model,
            "service_tier": "default",
            "system_fingerprint": self._session.fingerprint,
        }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
