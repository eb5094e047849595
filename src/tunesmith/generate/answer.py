"""An answer while it grows: each chosen token becomes text, log-probabilities and, at the end, a completion."""

from __future__ import annotations

import time
from collections.abc import Collection

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.completion import Completion, FinishReason, TokenLogprob
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
    """

    def __init__(
        self, request_id: int, request: Request, renderer: ChatRenderer, end_ids: Collection[int], limit_tokens: int
    ) -> None:
        self.request_id = request_id
        self.sampler = Sampler(request.sampling)
        #: The tokens so far.
        self.generated: list[int] = []
        self._request = request
        self._renderer = renderer
        self._end_ids = end_ids
        self._limit_tokens = limit_tokens
        self._stream = TextStream(renderer, request.sampling.stop)
        self._started = time.perf_counter()
        self._logprobs: list[TokenLogprob] = []
        self._waiting_logprobs: list[TokenLogprob] = []

    def take(self, choice: Choice) -> Delta:
        """Add a token; return what it added to the text, with the completion if it is the last."""
        self.generated.append(choice.token_id)
        is_end = choice.token_id in self._end_ids
        text = "" if is_end else self._stream.add(choice.token_id)
        if self._request.sampling.logprobs and not is_end:
            self._waiting_logprobs.append(self._token_logprob(choice))
        reason: FinishReason | None = None
        if is_end or self._stream.is_stopped:
            reason = "stop"
        elif len(self.generated) >= self._limit_tokens:
            reason = "length"
        if reason is not None:
            text += self._stream.finish()
        logprobs: tuple[TokenLogprob, ...] = ()
        if text or reason is not None:  # tokens whose text is held back wait with it
            logprobs = tuple(self._waiting_logprobs)
            self._logprobs += logprobs
            self._waiting_logprobs = []
        return Delta(self.request_id, text, logprobs, None if reason is None else self._completion(reason))

    def _completion(self, reason: FinishReason) -> Completion:
        return Completion(
            text=self._stream.text,
            token_ids=tuple(self.generated),
            finish_reason=reason,
            prompt_tokens=len(self._request.prompt_ids),
            seconds=time.perf_counter() - self._started,
            logprobs=tuple(self._logprobs),
        )

    def _token_logprob(self, choice: Choice) -> TokenLogprob:
        token_text, token_bytes = self._renderer.token_text, self._renderer.token_bytes
        top = tuple((i, token_text(i), token_bytes(i), logprob) for i, logprob in choice.top)
        chosen = choice.token_id
        return TokenLogprob(chosen, token_text(chosen), token_bytes(chosen), choice.logprob, top)
