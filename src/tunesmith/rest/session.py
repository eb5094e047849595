"""A request for answers on its way: from a chat request to the words and calls that come back.

Every route that has a model answer goes through here, whatever it calls its fields.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tunesmith.chat.call_stream import CallStream, Pieces
from tunesmith.data.examples import Conversation
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.generate.request import Delta
from tunesmith.generate.request import Request as Prompt
from tunesmith.rest.errors import WireFault, model_unavailable
from tunesmith.rest.forms import blame_form
from tunesmith.rest.limits import Allowance
from tunesmith.rest.model_lookup import find_model, pool_of
from tunesmith.rest.tools import ToolUse, blame_tools, with_tools
from tunesmith.rest.translate import conversation_of, sampling_of
from tunesmith.rest.wire import ChatRequest
from tunesmith.serve.answers import AsyncAnswers
from tunesmith.serve.opened import OpenModel
from tunesmith.serve.pool import Lease
from tunesmith.specs.generation import SamplingSpec

#: A comment goes out after this much silence, so that neither side nor what is between takes the line for dead.
_KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": waiting\n\n"


@dataclass(frozen=True, slots=True)
class Step:
    """What was added to answer `index`: words and pieces of calls; at its end the whole completion."""

    index: int
    pieces: Pieces
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


@dataclass(slots=True)
class Session:
    """A request that is being answered. `close` it in any case.

    `model` is the name of the model that answers; the request may have called it by an alias.
    """

    request: ChatRequest
    model: str
    lease: Lease
    answers: AsyncAnswers
    fingerprint: str
    tools: ToolUse | None = None
    allowance: Allowance | None = None
    #: Tokens of the prompt, and of answers as far as they have grown.
    used_tokens: int = 0
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def completions(self, http: Request) -> list[Completion] | None:
        """Wait for all answers, in their order; None: the caller has hung up.

        Raises:
            TunesmithError: one can't be finished.
        """
        answering = asyncio.ensure_future(self.answers.completions())
        leaving = asyncio.ensure_future(hang_up(http))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return None
            completions = answering.result()
            self.used_tokens += sum(completion.completion_tokens for completion in completions)
            return completions
        finally:
            answering.cancel()
            leaving.cancel()

    async def steps(self) -> AsyncIterator[Step | None]:
        """Give what the answers grow by, as it comes; None after a long silence.

        Raises:
            TunesmithError: an answer can't be finished.
        """
        calls: dict[int, CallStream] = {}
        counts: Counter[int] = Counter()
        while not self.answers.is_finished:
            try:
                index, delta = await self.answers.next(_KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield None
                continue
            # At least one token each; how many they were is known at the end.
            counts[index] += 1
            self.used_tokens += 1
            if delta.completion is not None:
                self.used_tokens += delta.completion.completion_tokens - counts[index]
            if self.tools is not None and index not in calls:
                calls[index] = self.tools.stream()
            yield Step(index, _pieces(calls.get(index), delta), delta.logprobs, delta.completion)

    def close(self) -> None:
        """Stop what isn't finished, let the model go, count what was used; twice is fine."""
        used_tokens, self.used_tokens = self.used_tokens, 0
        if self.allowance is not None and used_tokens:
            self.allowance.spend(used_tokens)
        self.answers.close()
        self.lease.release()


class SessionStream(StreamingResponse):
    """A session's answers as server-sent events while they grow; a caller who hangs up stops the work.

    Args:
        session: what is being answered; it is closed at the end.
        events: what goes out.
    """

    def __init__(self, session: Session, events: AsyncIterator[bytes]) -> None:
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


async def open_session(http: Request, request: ChatRequest, default_max_tokens: int) -> Session:
    """Load the model if need be, and hand its worker the request.

    Args:
        http: the request as it came: for its caller, who may not use every model, and whose allowance it takes from.
        request: what is asked.
        default_max_tokens: the longest answer where the request doesn't say.

    Raises:
        WireFault: there is no such model, or it can't be loaded.
        RequestError: the request can't be answered, or too much waits already.
    """
    conversation = conversation_of(request)
    sampling = sampling_of(request, default_max_tokens)
    model = await find_model(http, request.model)
    lease = pool_of(http).lease(model)
    try:
        try:
            seat = await asyncio.wrap_future(lease.ready)
        except (ModelError, OSError) as error:
            await find_model(http, request.model)  # it may have been deleted meanwhile
            raise WireFault(model_unavailable(request.model)) from error
        # Rendering a long prompt takes a while; other requests go on meanwhile.
        prompt, tools = await asyncio.to_thread(_prompt, seat.opened, request, conversation, sampling)
        answers = AsyncAnswers(seat.worker, prompt.expand(), whole=not request.stream)
        fingerprint, allowance, used_tokens = seat.opened.fingerprint, http.state.allowance, len(prompt.prompt_ids)
        return Session(request, model.name, lease, answers, fingerprint, tools, allowance, used_tokens)
    except BaseException:
        lease.release()
        raise


async def hang_up(http: Request) -> None:
    """Wait until the caller is gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


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
