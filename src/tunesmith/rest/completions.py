"""`POST /v1/completions`: texts that go on, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunesmith.errors import RequestError
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.generate.request import Request as Prompted
from tunesmith.record.ids import new_id
from tunesmith.rest.bodies import check_content_type
from tunesmith.rest.chat_schema import STREAM_RESPONSE
from tunesmith.rest.completions_wire import (
    CompletionRequest,
    EndReason,
    TextChoice,
    TextCompletion,
    completion_body,
    read_completion_request,
)
from tunesmith.rest.echoes import Echo, LogprobsOfText, plain_echoes, scored_echoes
from tunesmith.rest.errors import wire_error
from tunesmith.rest.session import KEEP_ALIVE, Answering, SessionStream, Step, with_model
from tunesmith.rest.translate import spec_of
from tunesmith.rest.wire import Usage
from tunesmith.serve.answers import AsyncAnswers
from tunesmith.serve.catalogue import ServedModel
from tunesmith.serve.opened import OpenModel
from tunesmith.serve.pool import Lease, Seat

router = APIRouter()

_DONE = b"data: [DONE]\n\n"


@router.post(
    "/v1/completions", response_model=TextCompletion, responses=STREAM_RESPONSE, openapi_extra=completion_body()
)
async def create_completion(http: Request) -> Response:
    """Go on with texts, as they are: no chat template is used."""
    check_content_type(http)
    request = await asyncio.to_thread(read_completion_request, await http.body())
    texts = await _open(http, request)
    return _TextStream(texts) if request.stream else await _whole(texts, http)


@dataclass(slots=True, kw_only=True)
class _Texts(Answering):
    """Texts that grow: `best_of` or `n` for each prompt."""

    request: CompletionRequest
    #: What the texts of each prompt begin with.
    echoes: list[Echo]


async def _open(http: Request, request: CompletionRequest) -> _Texts:
    """Load the model if need be, and hand its worker the prompts.

    Raises:
        WireFault: there is no such model, or it can't be loaded.
        RequestError: a prompt can't be gone on with, or too much waits already.
        ClientDisconnect: the caller has hung up.
    """

    async def begin(model: ServedModel, lease: Lease, seat: Seat) -> _Texts:
        _check_count(seat, request)
        prompts, echoes = await asyncio.to_thread(_prompted, seat.opened, request)
        if request.echo and request.logprobs is not None:
            echoes = await scored_echoes(seat, echoes, prompts, request.logprobs)
        requests = [one for prompt in prompts for one in prompt.expand()] if request.max_tokens else []
        answers = await AsyncAnswers.begin(seat.worker, requests, whole=not request.stream, on_ended=lease.release)
        return _Texts(
            id=new_id("cmpl-"),
            request=request,
            echoes=echoes,
            model=model.name,
            lease=lease,
            answers=answers,
            fingerprint=seat.opened.fingerprint,
            prompt_tokens=sum(len(prompt.prompt_ids) for prompt in prompts),
            allowance=http.state.allowance,
        )

    return await with_model(http, request.model, begin)


def _check_count(seat: Seat, request: CompletionRequest) -> None:
    """Refuse more texts than the server ever makes at once before any is made: a small body can ask for millions.

    Raises:
        RequestError: there are more; blames the prompts, or how many texts each is to have.
    """
    count = len(request.prompts)
    try:
        seat.worker.check_count(count)
    except RequestError as error:
        error.param, error.fix = "prompt", "Send fewer prompts at once."
        raise
    try:
        seat.worker.check_count(count * request.each)
    except RequestError as error:
        error.param = "n" if request.best_of is None else "best_of"
        raise


def _prompted(opened: OpenModel, request: CompletionRequest) -> tuple[list[Prompted], list[Echo]]:
    """Return the prompts as the engine takes them, and what their texts begin with.

    Raises:
        RequestError: one can't be gone on with.
    """
    wants_logprobs = request.logprobs is not None or request.each > request.n
    sampling = spec_of(
        request, max(1, request.max_tokens), logprobs=wants_logprobs, top_logprobs=request.logprobs or 0
    ).model_copy(update={"n": request.each})
    try:
        prompts = [opened.text_request(prompt, sampling) for prompt in request.prompts]
    except RequestError as error:
        if error.param == "messages":
            error.param = "prompt"
            if error.code == "context_length_exceeded":
                error.fix = "Shorten the prompt."
        raise
    return prompts, plain_echoes(opened, request.prompts) if request.echo else [Echo()] * len(prompts)


async def _whole(texts: _Texts, http: Request) -> Response:
    """Answer at once when all is done; a caller who hangs up stops the work."""
    try:
        completions = await texts.completions(http)
        if completions is None:
            return Response(status_code=499)  # nobody reads it
        return Response(_completion(texts, completions).model_dump_json(), media_type="application/json")
    finally:
        texts.close()


def _completion(texts: _Texts, completions: Sequence[Completion]) -> TextCompletion:
    """Return the answer: of each prompt's texts the best, in the order of the prompts."""
    request = texts.request
    choices: list[TextChoice] = []
    for place, echo in enumerate(texts.echoes):
        own = completions[place * request.each : (place + 1) * request.each]
        if request.each > request.n:
            own = sorted(own, key=_mean_logprob, reverse=True)[: request.n]
        told = [(echo.text + one.text, one.logprobs, _reason(one)) for one in own]
        for text, logprobs, reason in told or [_nothing_more(echo)] * request.n:
            tokens = (*echo.tokens, *logprobs)
            own_logprobs = LogprobsOfText.behind(echo, request.logprobs).add(tokens)
            index = len(choices)
            choices.append(TextChoice(text=text, index=index, logprobs=own_logprobs, finish_reason=reason))
    return TextCompletion(
        id=texts.id,
        created=texts.created,
        model=texts.model,
        choices=choices,
        usage=_usage(texts, completions),
        system_fingerprint=texts.fingerprint,
    )


class _TextStream(SessionStream):
    """Texts as server-sent events while they grow."""

    def __init__(self, texts: _Texts) -> None:
        super().__init__(texts, self._events())
        self._texts = texts
        self._logprobs: list[LogprobsOfText] = []

    async def _events(self) -> AsyncIterator[bytes]:
        texts = self._texts
        completions: list[Completion] = []
        try:
            for echo in texts.echoes:
                for _ in range(texts.request.each):
                    choice = self._begun(echo)
                    if texts.request.echo:
                        yield self._event([choice])
            async for step in texts.steps():
                if step is None:
                    yield KEEP_ALIVE
                    continue
                if step.completion is not None:
                    completions.append(step.completion)
                if step.pieces.text or step.logprobs or step.completion is not None:
                    yield self._event([self._choice(step)])
        # The status is out already; clients raise this event as an error.
        except Exception as error:
            yield wire_error(error).event()
            return
        if texts.request.with_usage:
            yield self._event([], _usage(texts, completions))
        yield _DONE

    def _begun(self, echo: Echo) -> TextChoice:
        """Begin the next text; return what it begins with, which may be all of it."""
        logprobs = LogprobsOfText.behind(echo, self._texts.request.logprobs)
        self._logprobs.append(logprobs)
        return TextChoice(
            text=echo.text,
            index=len(self._logprobs) - 1,
            logprobs=logprobs.add(echo.tokens),
            finish_reason=None if self._texts.request.max_tokens else "length",
        )

    def _choice(self, step: Step) -> TextChoice:
        return TextChoice(
            text=step.pieces.text,
            index=step.index,
            logprobs=self._logprobs[step.index].add(step.logprobs),
            finish_reason=None if step.completion is None else _reason(step.completion),
        )

    def _event(self, choices: list[TextChoice], usage: Usage | None = None) -> bytes:
        piece = TextCompletion(
            id=self._texts.id,
            created=self._texts.created,
            model=self._texts.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._texts.fingerprint,
        )
        left_out = None if self._texts.request.with_usage else {"usage"}
        return b"data: " + piece.model_dump_json(exclude=left_out).encode() + b"\n\n"


def _nothing_more(echo: Echo) -> tuple[str, tuple[TokenLogprob, ...], EndReason]:
    """Return what a text is whose prompt isn't gone on with."""
    return echo.text, (), "length"


def _mean_logprob(completion: Completion) -> float:
    tokens = completion.logprobs
    return math.fsum(token.logprob for token in tokens) / len(tokens) if tokens else 0.0


def _reason(completion: Completion) -> EndReason:
    return "length" if completion.finish_reason == "length" else "stop"


def _usage(texts: _Texts, completions: Sequence[Completion]) -> Usage:
    """Return the token counts: each prompt counts once, however many texts go on with it."""
    tokens = sum(completion.completion_tokens for completion in completions)
    return Usage(
        prompt_tokens=texts.prompt_tokens,
        completion_tokens=tokens,
        total_tokens=texts.prompt_tokens + tokens,
    )
