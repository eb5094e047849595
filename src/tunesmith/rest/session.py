"""A request for answers on its way: from a chat request to the words and calls that come back.

Every route that has a model answer goes through here, whatever it calls its fields.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tunesmith.chat.call_stream import CallStream, Pieces
from tunesmith.data.examples import Conversation
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.generate.request import Delta
from tunesmith.generate.request import Request as Prompt
from tunesmith.record.ids import new_id
from tunesmith.rest.errors import WireFault, model_unavailable
from tunesmith.rest.forms import blame_form
from tunesmith.rest.limits import Allowance
from tunesmith.rest.model_lookup import find_model, pool_of
from tunesmith.rest.tools import ToolUse, blame_tools, with_tools
from tunesmith.rest.translate import conversation_of, sampling_of
from tunesmith.rest.wire import ChatRequest
from tunesmith.serve.answers import AsyncAnswers
from tunesmith.serve.catalogue import ServedModel
from tunesmith.serve.opened import OpenModel
from tunesmith.serve.pool import Lease, Seat
from tunesmith.specs.generation import SamplingSpec

#: A comment goes out after this much silence, so that neither side nor what is between takes the line for dead.
_KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": waiting\n\n"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Step:
    """What was added to answer `index`: words and pieces of calls; at its end the whole completion."""

    index: int
    pieces: Pieces
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


@dataclass(slots=True, kw_only=True)
class Answering:
    """Answers on their way to a caller. `close` it in any case.

    Attributes:
        id: what the caller knows the answer by.
        model: the name of the model that answers; the request may have called it by an alias.
        lease: keeps the model in memory; it is given back as soon as all is computed, however slowly the caller reads.
        answers: what comes back.
        fingerprint: of the model.
        prompt_tokens: tokens of all prompts.
        tools: how calls in the answers are found; None: there are none.
        allowance: the caller's, from which the tokens are taken.
        created: when it began, in Unix seconds.
    """

    id: str
    model: str
    lease: Lease
    answers: AsyncAnswers
    fingerprint: str
    prompt_tokens: int
    tools: ToolUse | None = None
    allowance: Allowance | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    _is_closed: bool = False

    async def completions(self, http: Request) -> list[Completion] | None:
        """Wait for all answers, in their order; None: the caller has hung up.

        Raises:
            TunesmithError: one can't be finished.
        """
        try:
            return await unless_gone(http, self.answers.completions())
        except ClientDisconnect:
            return None

    async def steps(self) -> AsyncIterator[Step | None]:
        """Give what the answers grow by, as it comes; None after a long silence.

        Raises:
            TunesmithError: an answer can't be finished.
        """
        calls: dict[int, CallStream] = {}
        while not self.answers.is_finished:
            try:
                index, delta = await self.answers.next(_KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield None
                continue
            if self.tools is not None and index not in calls:
                calls[index] = self.tools.stream()
            yield Step(index, _pieces(calls.get(index), delta), delta.logprobs, delta.completion)

    def close(self) -> None:
        """Stop what isn't finished, let the model go, count what was used; twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.allowance is not None:
            self.allowance.spend(self.prompt_tokens + self.answers.computed_tokens)
        self.answers.close()
        self.lease.release()


@dataclass(slots=True, kw_only=True)
class Session(Answering):
    """Answers to a chat request."""

    request: ChatRequest


class SessionStream(StreamingResponse):
    """A session's answers as server-sent events while they grow; a caller who hangs up stops the work.

    Args:
        session: what is being answered; it is closed at the end.
        events: what goes out.
    """

    def __init__(self, session: Answering, events: AsyncIterator[bytes]) -> None:
        # A proxy that gathers the events before it passes them on would undo the streaming.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._closing = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not left to the generator: one that never ran, or waits in a `yield`, ends at some later time.
            self._closing.close()


async def open_session(
    http: Request,
    request: ChatRequest,
    default_max_tokens: int,
    shorter: Sequence[Callable[[], ChatRequest]] = (),
) -> Session:
    """Load the model if need be, and hand its worker the request.

    Args:
        http: the request as it came: for its caller, who may not use every model, and whose allowance it takes from.
        request: what is asked.
        default_max_tokens: the longest answer where the request doesn't say.
        shorter: the same request with ever shorter prompts; where its own is too long, the first that fits is answered.

    Raises:
        WireFault: there is no such model, or it can't be loaded.
        RequestError: the request can't be answered, or too much waits already.
        ClientDisconnect: the caller has hung up.
    """
    conversation = conversation_of(request)
    sampling = sampling_of(request, default_max_tokens)

    async def begin(model: ServedModel, lease: Lease, seat: Seat) -> Session:
        # Rendering a long prompt takes a while; other requests go on meanwhile.
        rendering = asyncio.to_thread(_fitting_prompt, seat.opened, request, conversation, sampling, shorter)
        prompt, tools = await rendering
        answers = await AsyncAnswers.begin(
            seat.worker, prompt.expand(), whole=not request.stream, on_ended=lease.release
        )
        return Session(
            id=new_id("chatcmpl-"),
            request=request,
            model=model.name,
            lease=lease,
            answers=answers,
            fingerprint=seat.opened.fingerprint,
            prompt_tokens=len(prompt.prompt_ids),
            tools=tools,
            allowance=http.state.allowance,
        )

    return await with_model(http, request.model, begin)


async def with_model(
    http: Request, name: str, begin: Callable[[ServedModel, Lease, Seat], Coroutine[Any, Any, _T]]
) -> _T:
    """Have a model in memory, and begin something with it that gives its lease back.

    Args:
        http: the request as it came; its body has been read.
        name: the model, as the request has it.
        begin: is given the model, its lease and its seat; where it fails, the lease is given back here.

    Raises:
        WireFault: there is no such model, or it can't be loaded.
        RequestError: too much waits already.
        ClientDisconnect: the caller has hung up.
    """

    async def take() -> _T:
        model = await find_model(http, name)
        lease = pool_of(http).lease(model)
        try:
            try:
                seat = await asyncio.wrap_future(lease.ready)
            except (ModelError, OSError) as error:
                await find_model(http, name)  # it may have been deleted meanwhile
                raise WireFault(model_unavailable(name)) from error
            return await begin(model, lease, seat)
        except BaseException:
            lease.release()
            raise

    return await unless_gone(http, take())


async def unless_gone(http: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Do something for a caller as long as they wait for it.

    Raises:
        ClientDisconnect: they have hung up; the work is stopped.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(hang_up(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def hang_up(http: Request) -> None:
    """Wait until the caller is gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _fitting_prompt(
    opened: OpenModel,
    request: ChatRequest,
    conversation: Conversation,
    sampling: SamplingSpec,
    shorter: Sequence[Callable[[], ChatRequest]],
) -> tuple[Prompt, ToolUse | None]:
    """Render a request, or the longest of the shorter ones that fits.

    Raises:
        RequestError: it can't be answered, or none fits.
    """
    try:
        return _prompt(opened, request, conversation, sampling)
    except RequestError as error:
        if error.code != "context_length_exceeded" or not shorter:
            raise
    first, last = 0, len(shorter) - 1  # the first that fits is among these
    while first < last:
        middle = (first + last) // 2
        try:
            opened.request(conversation_of(shorter[middle]()), sampling)
        except RequestError as error:
            if error.code != "context_length_exceeded":
                raise
            first = middle + 1
        else:
            last = middle
    return _prompt(opened, request, conversation_of(shorter[first]()), sampling)


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


def _pieces(calls: CallStream | None, delta: Delta) -> Pieces:
    """Tell the words from the calls in a delta."""
    if calls is None:
        return Pieces(delta.text)
    new = calls.add(delta.text)
    if delta.completion is None:
        return new
    rest = calls.finish()
    return Pieces(new.text + rest.text, new.calls + rest.calls)
