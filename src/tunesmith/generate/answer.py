"""An answer while it grows: each chosen token becomes text, log-probabilities and, at the end, a completion."""

from __future__ import annotations

import time
from collections.abc import Collection

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import TunesmithError
from tunesmith.generate.completion import Completion, FinishReason, TokenLogprob
from tunesmith.generate.constraints import Matcher
from tunesmith.generate.request import Delta, Request
from tunesmith.generate.sampling import Choice, Sampler
from tunesmith.generate.text import TextStream


class Answer:
    """A request in flight.

    Args:
        request_id: what its deltas carry.
        request: the request.
        renderer: knows the tokens' text.
        end_ids: tokens that end an answer.
        limit_tokens: most tokens to generate.
        matcher: the form that the answer must have; None for free text.
    """

    def __init__(
        self,
        request_id: int,
        request: Request,
        renderer: ChatRenderer,
        end_ids: Collection[int],
        limit_tokens: int,
        matcher: Matcher | None = None,
    ) -> None:
        self.request_id = request_id
        self.sampler = Sampler(request.sampling, request.prompt_ids, matcher, end_ids)
        #: The tokens so far.
        self.generated: list[int] = []
        self._request = request
        self._renderer = renderer
        self._end_ids = end_ids
        self.limit_tokens = limit_tokens
        self._stream = TextStream(renderer, request.sampling.stop, request.shown_ids, is_middle=request.is_middle)
        self._started = time.perf_counter()
        self._logprobs: list[TokenLogprob] = []
        #: Tokens whose text isn't given out yet, each with the place in the text at which it begins.
        self._waiting_logprobs: list[tuple[int, TokenLogprob]] = []

    def begin(self) -> None:
        """Start the clock: the request's turn has come."""
        self._started = time.perf_counter()

    def take(self, choice: Choice) -> Delta:
        """Add a token; return what it added to the text, with the completion if it is the last."""
        if choice.error is not None:
            return self._ended("error", self._stream.finish(), choice.error)
        self.generated.append(choice.token_id)
        is_end = choice.token_id in self._end_ids
        begins_at = self._stream.length
        text = "" if is_end else self._stream.add(choice.token_id)
        if self._request.sampling.logprobs and not is_end:
            self._waiting_logprobs.append((begins_at, self._token_logprob(choice)))
        if is_end or self._stream.is_stopped or self._has_no_way_on():
            return self._ended("stop", text + self._stream.finish())
        if len(self.generated) >= self.limit_tokens:
            return self._ended("length", text + self._stream.finish())
        return Delta(self.request_id, text, self._ready_logprobs())

    def _has_no_way_on(self) -> bool:
        """Whether the form is complete, of a model that has no token to say so."""
        matcher = self.sampler.matcher
        return matcher is not None and not self._end_ids and matcher.is_finished

    def _ended(self, reason: FinishReason, text: str, error: TunesmithError | None = None) -> Delta:
        """Return the last delta."""
        if self._stream.is_stopped:
            logprobs = self._ready_logprobs()
        else:  # all of the text is given out
            logprobs = tuple(token for _, token in self._waiting_logprobs)
            self._logprobs += logprobs
        return Delta(self.request_id, text, logprobs, self._completion(reason, error))

    def _ready_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return the tokens of which at least the beginning is given out; those held back wait with their text."""
        given = len(self._stream.text)
        count = sum(begins_at < given for begins_at, _ in self._waiting_logprobs)
        ready = tuple(token for _, token in self._waiting_logprobs[:count])
        del self._waiting_logprobs[:count]
        self._logprobs += ready
        return ready

    def _completion(self, reason: FinishReason, error: TunesmithError | None) -> Completion:
        return Completion(
            text=self._stream.text,
            token_ids=tuple(self.generated),
            finish_reason=reason,
            prompt_tokens=len(self._request.prompt_ids),
            seconds=time.perf_counter() - self._started,
            logprobs=tuple(self._logprobs),
            error=error,
        )

    def _token_logprob(self, choice: Choice) -> TokenLogprob:
        token_text, token_bytes = self._renderer.token_text, self._renderer.token_bytes
        top = tuple((i, token_text(i), token_bytes(i), logprob) for i, logprob in choice.top)
        chosen = choice.token_id
        return TokenLogprob(chosen, token_text(chosen), token_bytes(chosen), choice.logprob, top)
